"""Fragments to neurons, up an octree: each node settles what nothing beyond its box can change.

In a node, fragments of its children that the watershed joined across their faces become one; then the size rule joins
small fragments, and what is settled by then merges by score. What reaches the node's outer faces, and what meets that,
goes up. So one climb does what would be two, first all fragments, then all segments: a fragment that may still change
is frozen for merging.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from neuroshed.errors import BlockError
from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.across import WAYS
from neuroshed.kernels.merging import MAX_ROWS
from neuroshed.kernels.relabel import look_up
from neuroshed.kernels.scores import Score
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.leaves import home_numbers, leaf, scored_leaf
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.octree import Entering, climb, concatenate, level_of, needs, select
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.settle import TreeRules, settle
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.nodes import Columns, read_nodes, read_pieces, write_node


class Density(NamedTuple):
    """Fragments where `small` is at least this: of a block for each voxel; and of what a node hands up those that touch
    none of its faces, for each voxel of its faces and of its box.
    """

    small: int
    per_voxel: float
    frozen_per_face_voxel: float
    frozen_per_voxel: float


# Measured on real neuron shapes with noisy membranes at lowest_threshold 0.2 (docs/scaling.md), times 1.5: networks
# find as many basins or more. Below 50 voxels, what is frozen fills the volume.
DENSITIES = (Density(200, 1e-3, 0.006, 1e-5), Density(50, 1e-3, 0.04, 6e-5), Density(0, 0.06, 0.06, 0.045))
FRAGMENTS_PER_FACE_VOXEL = 0.2
"""That a block cannot settle."""
TOUCHING_PER_FACE_VOXEL, TOUCHING_PER_LINE_VOXEL = 0.003, 2.0
"""That no leaf takes over: neurites that cross, and crumbs on the lines where faces of blocks meet."""
EDGES_PER_FRAGMENT = 3.5
SETTLED_BYTES, JOINED_BYTES = 250, 120
"""Of a fragment while the size rule is at work, and while fragments are merged."""
EDGE_BYTES, COLUMN_BYTES = 80, 24
"""Of an edge while fragments are merged, and for each column of its statistics."""
VOTE_BYTES, FAR_EDGE_BYTES = 12, 120
"""Of a voxel of a block while classes are counted, and of a long-range edge that leaves a block."""
ALLOWANCE_BYTES = 48 << 20
FIGURES = {"merges": "merges", "nodes_up": "nodes", "edges_up": "edges"}
"""Of the summary: rows of tables."""


class Agglomerate(Stage):
    """Stitching and hierarchical agglomeration over an octree, recording every merge with its score."""

    kind: Literal["agglomerate"] = "agglomerate"
    version = 4
    fragments: Fragments | MutexFragments | WaterzFragments = Field(discriminator="kind")
    scores: WaterzScores | None = None
    """Scores of edges, if they are given."""
    score: str
    """How edges are scored: mean, max, min, quantile_P, or given."""
    lowest: int
    """Integer score down to which merges are recorded."""
    max_size: int = 0
    """Merges that would make a segment of more voxels are refused; 0 for any size."""
    semantics: Semantics | None = None
    """Classes whose segments are not merged with each other."""
    graph_gb: float = 8.0
    """Memory for a node's region graph, in GB; one that is larger is settled in windows of falling score."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "graph_gb"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.scores is not None) != (self.score == "given"):
            raise ValueError(f"the score is {self.score!r}; it must be 'given' if scores are, and only then")
        if self.scores is not None and self.scores.fragments.fingerprint != self.fragments.fingerprint:
            raise ValueError("the scores are those of other fragments")
        return self

    @cached_property
    def grids(self) -> list[Grid]:
        """The levels of the octree, leaves first."""
        return self.fragments.grid.octree()

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Up from the leaves to the root; a leaf also reads the planes of its lower neighbours."""
        scored = needs(self.scores) if self.scores else ()
        leaf_needs = (*needs(self.fragments, low=(1, 1, 1)), *scored)
        return climb(self.fingerprint, self.grids, leaf_needs, self.fragments.skipped)

    def run(self, step: str, index: Vec) -> Done:
        """Settle one node; its tables are those of `settle`."""
        level = level_of(step)
        tables = settle(self._parent(level, index) if level else self._leaf(index), level, self._rules)
        rows = write_node(self.node_path(step, index), tables)
        return Done(0, {figure: float(rows[table]) for figure, table in FIGURES.items()})

    def memory_bytes(self, step: str) -> int:
        """What enters a node, with its edges: of a leaf the fragments of its block and of the three below it, else what
        touches the faces of its children, and what that freezes.
        """
        level = level_of(step)
        found = next(density for density in DENSITIES if self.fragments.small >= density.small)
        voxels, faces = self._extent(level)
        if level == 0:
            below = 1 + sum(count > 1 for count in self.grids[0].counts)
            entering = below * (found.per_voxel * voxels + FRAGMENTS_PER_FACE_VOXEL * faces)
        else:
            touching = TOUCHING_PER_FACE_VOXEL + TOUCHING_PER_LINE_VOXEL / min(self.fragments.block_shape)
            entering = (touching + found.frozen_per_face_voxel) * faces + found.frozen_per_voxel * voxels
        edges = min(EDGES_PER_FRAGMENT * entering, self._rules.room) * self._edge_bytes
        votes = 3 * 8 * len(self.semantics.classes) * entering if self.semantics else 0
        tables = int(votes + max(SETTLED_BYTES * entering, JOINED_BYTES * entering + edges))
        return ALLOWANCE_BYTES + tables + (0 if level else self._label_bytes())

    def _label_bytes(self) -> int:
        """For the labels that a leaf reads: those of one block at a time, and those at the ends of long-range edges."""
        grid = self.fragments.grid
        z, y, x = (first + count - 1 for first, count in zip(grid.first, grid.counts, strict=True))
        ends = (voxels.size for way in WAYS[1:] for voxels in self.fragments.upper_ends(grid.block_box((z, y, x)), way))
        voted = math.prod(self.fragments.block_shape) if self.semantics else 0
        return VOTE_BYTES * voted + FAR_EDGE_BYTES * max(ends, default=0)

    def _extent(self, level: int) -> tuple[int, int]:
        """Voxels of the largest node of a level, and of the faces of its children, or of its own if it is a leaf, that
        have region beyond.
        """
        grid, children = self.grids[level], self.grids[max(level - 1, 0)]
        sides = [min(pair) for pair in zip(grid.block_shape, grid.box.shape, strict=True)]
        voxels, faces = math.prod(sides), 0
        for side, child, count in zip(sides, children.block_shape, grid.counts, strict=True):
            faces += (2 * (-(-side // child) - 1) + min(count - 1, 2)) * (voxels // side)
        return voxels, faces

    def homes(self, nodes: Columns) -> npt.NDArray[np.uint8]:
        """The number in `across.WAYS` of the way to the leaf that each of a block's fragments belongs to, uint8."""
        return home_numbers(nodes, self._rules.small)

    @cached_property
    def _rules(self) -> TreeRules:
        # Given scores are those of the fragments as they are, so the size rule is not gone on with.
        small, dust = (0, 0) if self.scores else (self.fragments.small, self.fragments.dust)
        room = min(max(int(1e9 * self.graph_gb / self._edge_bytes), 1), MAX_ROWS // 2)
        return TreeRules(small, dust, Score(self.score), self.lowest, self.max_size, room)

    @property
    def _edge_bytes(self) -> int:
        return EDGE_BYTES + COLUMN_BYTES * Score(self.score).columns

    def _leaf(self, index: Vec) -> Entering:
        if self.scores:
            return scored_leaf(self.scores, index, self.semantics)
        return leaf(self.fragments, index, self._rules.score, self.semantics)

    def _parent(self, level: int, index: Vec) -> Entering:
        """What the children handed up, and the edges across the faces between them."""
        below = self.steps[level - 1]
        children = filter(below.holds, below.grid.touching(self.grids[level].block_box(index)))
        paths = [self.node_path(below.name, child) for child in children]
        tables = read_nodes(paths, "nodes", "gains", "links", "copies", "names")
        nodes = next(tables)
        order = np.argsort(nodes["id"])
        nodes = {name: nodes.pop(name)[order] for name in list(nodes)}
        gains, links, copies, names = tables
        met = copies["level"] == level
        return Entering(
            nodes=nodes,
            gains=gains,
            links=concatenate([links, _joining(select(copies, met), names)]),
            edges=(piece for child in paths for piece in read_pieces(child, "edges")),
            copies=select(copies, ~met),
            names=select(names, names["level"] > level),
        )


def _joining(copies: Columns, names: Columns) -> Columns:
    """Links that join copies to what they are copies of."""
    order = np.argsort(names["leaf"])
    originals, found = look_up(copies["original"], names["leaf"][order], names["id"][order])
    if not found.all():
        raise BlockError(
            f"fragment {copies['original'][~found][0]}, of which another leaf has a copy, is not in its own: they "
            "are not of one run; remove the folder of this stage and run again"
        )
    return {
        "left": copies["copy"],
        "right": originals,
        "key": np.zeros(originals.size, np.uint64),
        "joined": np.ones(originals.size, np.bool_),
    }
