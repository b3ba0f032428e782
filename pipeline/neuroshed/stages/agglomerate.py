"""Fragments to merges, up an octree: each node merges what nothing beyond its box can change."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.agglomerate import Edges, Nodes, agglomerate
from neuroshed.kernels.graph import merge_masks
from neuroshed.kernels.order import voxel_rank
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.graph import Graph, sum_pairs
from neuroshed.stages.octree import (
    climb,
    concatenate,
    entering,
    level_of,
    needs,
    outer_bits,
    select,
)
from neuroshed.storage.nodes import Columns, read_node, write_node


class Node(NamedTuple):
    """A tree node before merging.

    `clusters`: id, rank. `edges`: left, right, sum, count. `cross`: the same with the axis along which the edge
    leaves the box. `faces`: id, mask of the outer faces that the fragment touches.
    """

    clusters: Columns
    edges: Columns
    cross: Columns
    faces: Columns


class Agglomerate(Stage):
    """Mean-affinity agglomeration over an octree, recording every merge with its score."""

    kind: Literal["agglomerate"] = "agglomerate"
    graph: Graph
    lowest: int
    """Integer score down to which merges are recorded."""

    @cached_property
    def grids(self) -> list[Grid]:
        """The levels of the octree, leaves first."""
        return self.graph.grid.octree()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Up from the leaves to the root."""
        return climb(self.fingerprint, self.grids, needs(self.graph))

    def run(self, step: str, index: Vec) -> Done:
        """Merge in one node: tables `entering` (id), `merges`, and what goes up: `clusters`, `edges`, `cross`,
        `faces`.
        """
        level = level_of(step)
        node = self._parent(level, index) if level else self._leaf(index)
        ids = node.clusters["id"]
        merges, frozen, kept = agglomerate(
            Nodes(ids, node.clusters["rank"], np.isin(ids, node.faces["id"])),
            Edges(node.edges["left"], node.edges["right"], node.edges["sum"], node.edges["count"]),
            self.lowest,
        )
        outputs: dict[str, Columns] = {
            "entering": {"id": ids},
            "merges": {"left": merges.left, "right": merges.right, "score": merges.scores},
            "clusters": {"id": frozen.ids, "rank": frozen.ranks},
            "edges": {"left": kept.left, "right": kept.right, "sum": kept.sums, "count": kept.counts},
            "cross": node.cross,
            "faces": node.faces,
        }
        write_node(self.node_path(step, index), outputs)
        return Done(0, {"merges": float(merges.left.size), "handed_up": float(frozen.ids.size)})

    def memory_bytes(self, step: str) -> int:
        """Graphs are small beside voxels: a flat allowance, enough for some hundred thousand edges."""
        return 128 << 20

    def _leaf(self, index: Vec) -> Node:
        nodes, edges, cross = read_node(self.graph.node_path("", index), "nodes", "edges", "cross")
        clusters = {"id": nodes["id"], "rank": voxel_rank(nodes["id"])}
        return Node(clusters, edges, cross, select(nodes, nodes["mask"] != 0))

    def _parent(self, level: int, index: Vec) -> Node:
        grid = self.grids[level - 1]
        box = self.grids[level].block_box(index)
        clusters, edges, outer, faces = [], [], [], []
        for child in grid.touching(box):
            child_box = grid.block_box(child)
            cluster, edge, cross, face = read_node(
                self.node_path(f"up{level - 1}", child), "clusters", "edges", "cross", "faces"
            )
            enters = entering(cross["axis"], child_box, box)
            inner = select(cross, enters)
            outer.append(select(cross, ~enters))
            clusters.append(cluster)
            edges += [edge, {name: inner[name] for name in edge}]
            bits = np.uint8(outer_bits(child_box, box, self.graph.stitch.fragments.region))
            faces.append(face | {"mask": face["mask"] & bits})
        joined = concatenate(clusters)
        # A fragment that reaches into several children is frozen in each, so it comes with one rank.
        ids, first = np.unique(joined["id"], return_index=True)
        face_ids, masks = merge_masks(*(concatenate(faces)[name] for name in ("id", "mask")))
        return Node(
            clusters={"id": ids, "rank": joined["rank"][first]},
            edges=sum_pairs(concatenate(edges)),
            cross=sum_pairs(concatenate(outer)),
            faces=select({"id": face_ids, "mask": masks}, masks != 0),
        )
