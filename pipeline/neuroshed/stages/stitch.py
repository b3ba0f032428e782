"""Pieces to fragments, up and down an octree.

Up: a node joins what picked edges across its inner faces made one, applies the size rule to what nothing beyond its
box can change, and hands up what is open. Down: each node tells its children what became of what they handed up; the
leaves paint the fragments.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.graph import INSIDE, contacts, faces_touched, group_pairs, read_box
from neuroshed.kernels.order import key_affinity
from neuroshed.kernels.relabel import Ids, look_up, relabel
from neuroshed.kernels.stitch import size_rule
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.octree import (
    answer,
    climb,
    concatenate,
    descend,
    entering,
    level_of,
    needs,
    outer_bits,
    parent_of,
    select,
)
from neuroshed.storage.nodes import Columns, read_node, write_node
from neuroshed.storage.volumes import Volume


class Node(NamedTuple):
    """A tree node before its size rule.

    `fragments`: id, size (voxels). `edges`: left, right (fragment ids), key, joined. `cross`: upper, lower (piece
    ids), key, joined, axis, of edges that leave the box. `faces`: piece, fragment, mask of the outer faces that the
    piece touches.
    """

    fragments: Columns
    edges: Columns
    cross: Columns
    faces: Columns


class Stitch(Stage):
    """Size-dependent single linkage over an octree."""

    kind: Literal["stitch"] = "stitch"
    fragments: Fragments
    small: int
    """Fragments of fewer voxels join their best neighbour."""
    dust: int
    """Fragments of fewer voxels that found no neighbour become background."""

    @cached_property
    def grids(self) -> list[Grid]:
        """The levels of the octree, leaves first."""
        return self.fragments.grid.octree()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Up from the leaves to the root, and down again."""
        own, pieces = self.fingerprint, self.fragments
        return (
            *climb(own, self.grids, (*needs(pieces, low=(1, 1, 1)), *needs(pieces.source))),
            *descend(own, self.grids, own, needs(pieces)),
        )

    @property
    def path(self) -> Path:
        """Where the fragments are."""
        return self.folder / "fragments.zarr"

    @cached_property
    def labels(self) -> Volume:
        """Fragment ids, uint64."""
        return self.fragments.label_volume(self.path)

    @property
    def marks(self) -> tuple[Path, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.path)

    def prepare(self) -> None:
        """Create the volume of fragments and the folders of nodes."""
        super().prepare()
        _ = self.labels

    def run(self, step: str, index: Vec) -> Done:
        """One node on the way up or down."""
        level = level_of(step)
        box = self.grids[level].block_box(index)
        if step.startswith("down"):
            self._answer_children(level, index)
            return Done(0 if level else box.size)
        node = self._parent(level, index) if level else self._leaf(index)
        self._solve(node, step, index)
        return Done(box.size if level == 0 else 0)

    @property
    def output_bytes(self) -> int:
        """Eight bytes a voxel of the region."""
        return self.fragments.output_bytes

    def memory_bytes(self, step: str) -> int:
        """Leaves: pieces, affinities and the list of contacts, taken as two for each voxel."""
        z, y, x = self.fragments.block_shape
        return z * y * x * (2 * 8 + 3 + 2 * (3 * 8 + 1 + 16)) if level_of(step) == 0 else 64 << 20

    def report(self) -> dict[str, str]:
        """Where the fragments are."""
        return {"fragments": str(self.path)}

    def _leaf(self, index: Vec) -> Node:
        below = self.fragments
        box = below.grid.block_box(index)
        halo = read_box(box, below.region)
        labels = below.pieces.read(halo)
        place = below.place(box)
        rows = contacts(labels, below.source.affinities.read(box, channels=3), place, max(below.low, 0))
        own = labels[box.slices(halo.start)]
        ids, counts = np.unique(own, return_counts=True)
        touched, masks = faces_touched(own)
        masks = masks & np.uint8(outer_bits(box, box, below.region))
        inside = rows.axis == INSIDE
        picked = np.isin(rows.keys[~inside], self._picks_around(index)) | (
            key_affinity(rows.keys[~inside]) >= below.high
        )
        left, right = np.minimum(rows.upper, rows.lower)[inside], np.maximum(rows.upper, rows.lower)[inside]
        edges = {"left": left, "right": right, "key": rows.keys[inside], "joined": np.zeros(left.size, np.bool_)}
        cross = {
            "upper": rows.upper[~inside],
            "lower": rows.lower[~inside],
            "key": rows.keys[~inside],
            "joined": picked,
            "axis": rows.axis[~inside],
        }
        return Node(
            fragments={"id": ids[ids != 0], "size": counts[ids != 0].astype(np.int64)},
            edges=_best_of_pairs(edges, "left", "right"),
            cross=_best_of_pairs(cross, "upper", "lower", "axis"),
            faces=select({"piece": touched, "fragment": touched, "mask": masks}, masks != 0),
        )

    def _picks_around(self, index: Vec) -> Ids:
        """Keys of the edges across this block's faces that it or its lower neighbours picked."""
        below = self.fragments
        near = [tuple(i - (axis == a) for a, i in enumerate(index)) for axis in range(3)]
        first = below.grid.first
        blocks = [index, *((z, y, x) for z, y, x in near if z >= first[0] and y >= first[1] and x >= first[2])]
        return np.concatenate([read_node(below.node_path("", block), "picks")[0]["key"] for block in blocks])

    def _parent(self, level: int, index: Vec) -> Node:
        grid, region = self.grids[level - 1], self.fragments.region
        box = self.grids[level].block_box(index)
        fragments, kept, inner, outer, faces = [], [], [], [], []
        for child in grid.touching(box):
            child_box, step = grid.block_box(child), f"up{level - 1}"
            fragment, edge, cross, face = read_node(self.node_path(step, child), "fragments", "edges", "cross", "faces")
            enters = entering(cross["axis"], child_box, box)
            fragments.append(fragment)
            kept.append(edge)
            inner.append(select(cross, enters))
            outer.append(select(cross, ~enters))
            faces.append(face | {"mask": face["mask"] & np.uint8(outer_bits(child_box, box, region))})
        all_faces = concatenate(faces)
        edges = concatenate([*kept, _between_fragments(concatenate(inner), all_faces)])
        return Node(
            fragments=concatenate(fragments),
            edges=_best_of_pairs(edges, "left", "right"),
            cross=concatenate(outer),
            faces=select(all_faces, all_faces["mask"] != 0),
        )

    def _solve(self, node: Node, step: str, index: Vec) -> None:
        order = np.argsort(node.fragments["id"])
        ids: Ids = node.fragments["id"][order]
        left, right = (np.searchsorted(ids, node.edges[side]) for side in ("left", "right"))
        done = size_rule(
            sizes=node.fragments["size"][order],
            touching=np.isin(ids, node.faces["fragment"]),
            left=left,
            right=right,
            keys=node.edges["key"],
            joined=node.edges["joined"],
            small=self.small,
        )
        root_ids = ids[done.roots]
        dropped = ~done.open_[done.roots] & (done.sizes[done.roots] < self.dust)
        current = np.where(dropped, np.uint64(0), root_ids)
        handed_up = (done.roots == np.arange(ids.size)) & done.open_
        ends = np.sort(np.stack([root_ids[left], root_ids[right]]), axis=0)
        edges = node.edges | {"left": ends[0], "right": ends[1], "joined": np.zeros(left.size, np.bool_)}
        outputs = {
            "lookup": {"id": ids, "fragment": current},
            "fragments": {"id": ids[handed_up], "size": done.sizes[handed_up]},
            "edges": _best_of_pairs(select(edges, done.kept), "left", "right"),
            "cross": node.cross,
            "faces": node.faces | {"fragment": look_up(node.faces["fragment"], ids, root_ids)[0]},
        }
        write_node(self.node_path(step, index), outputs)

    def _answer_children(self, level: int, index: Vec) -> None:
        lookup, handed_up = read_node(self.node_path(f"up{level}", index), "lookup", "fragments")
        top = level + 1 == len(self.grids)
        parent = None if top else self.node_path(f"down{level + 1}", parent_of(index))
        final = answer(lookup["fragment"], handed_up["id"], parent, "fragment")
        if level:
            answers = {"id": lookup["id"], "fragment": final}
            write_node(self.node_path(f"down{level}", index), {"answers": answers})
            return
        box = self.grids[0].block_box(index)
        painted = relabel(self.fragments.pieces.read(box), lookup["id"], final)
        self.labels.write(box, painted, self.fragments.region)


def _best_of_pairs(rows: Columns, left: str, right: str, axis: str | None = None) -> Columns:
    """One row a pair (and axis): its best key, and whether any of its edges was picked."""
    order, starts = group_pairs(rows[left], rows[right], rows[axis] if axis else None)
    if starts.size == 0:
        return rows
    out = {name: column[order][starts] for name, column in rows.items()}
    out["key"] = np.maximum.reduceat(rows["key"][order], starts)
    out["joined"] = np.logical_or.reduceat(rows["joined"][order], starts)
    return out


def _between_fragments(cross: Columns, faces: Columns) -> Columns:
    """Edges across faces inside a node, between fragments instead of pieces."""
    order = np.argsort(faces["piece"])
    pieces, fragments = faces["piece"][order], faces["fragment"][order]
    ends: list[npt.NDArray[np.uint64]] = []
    for side in ("upper", "lower"):
        fragment, found = look_up(cross[side], pieces, fragments)
        if not found.all():
            raise BlockError(f"piece {cross[side][~found][0]} of an edge across a face is not on that face")
        ends.append(fragment)
    left, right = np.minimum(*ends), np.maximum(*ends)
    return {"left": left, "right": right, "key": cross["key"], "joined": cross["joined"]}
