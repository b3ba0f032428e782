"""Fragments to neurons, up an octree: each node settles what nothing beyond its box can change.

In a node, fragments of its children that the watershed joined across their faces become one; then the size rule joins
small fragments, and what is settled by then merges by score. What reaches the node's outer faces, and what meets that,
goes up. So one climb does what would be two, first all fragments, then all segments: a fragment that may still change
is frozen for merging.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from neuroshed.errors import BlockError
from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.relabel import look_up
from neuroshed.kernels.scores import Score
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.leaves import leaf, scored_leaf
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.octree import Entering, climb, concatenate, level_of, needs, select
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.settle import TreeRules, settle
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.nodes import Columns, read_node, write_node

# Measured on real neuron shapes with noisy membranes, some 30,000 basins in a million voxels.
FRAGMENTS_PER_FACE_VOXEL = 0.12
FRAGMENTS_PER_VOXEL = 2e-4
EDGES_PER_FRAGMENT = 4
FRAGMENT_BYTES, EDGE_BYTES = 400, 80
ALLOWANCE_BYTES = 48 << 20


class Agglomerate(Stage):
    """Stitching and hierarchical agglomeration over an octree, recording every merge with its score."""

    kind: Literal["agglomerate"] = "agglomerate"
    version = 2
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
        return climb(self.fingerprint, self.grids, (*needs(self.fragments, low=(1, 1, 1)), *scored))

    def run(self, step: str, index: Vec) -> Done:
        """Settle one node; its tables are those of `settle`."""
        level = level_of(step)
        tables = settle(self._parent(level, index) if level else self._leaf(index), level, self._rules)
        write_node(self.node_path(step, index), tables)
        counted = {"merges": ("merges", "left"), "nodes_up": ("nodes", "id"), "edges_up": ("edges", "left")}
        return Done(0, {figure: float(tables[table][column].size) for figure, (table, column) in counted.items()})

    def memory_bytes(self, step: str) -> int:
        """What enters a node with its edges: mostly fragments at the faces of its children."""
        level = level_of(step)
        z, y, x = self.grids[max(level - 1, 0)].block_shape
        inside = z * y * x * FRAGMENTS_PER_VOXEL if level == 0 else 0
        entering = (8 if level else 1) * (2 * (z * y + z * x + y * x) * FRAGMENTS_PER_FACE_VOXEL + inside)
        return ALLOWANCE_BYTES + int(entering) * (
            FRAGMENT_BYTES + EDGES_PER_FRAGMENT * EDGE_BYTES * self._rules.score.columns
        )

    @cached_property
    def _rules(self) -> TreeRules:
        # Given scores are those of the fragments as they are, so the size rule is not gone on with.
        small, dust = (0, 0) if self.scores else (self.fragments.small, self.fragments.dust)
        return TreeRules(small, dust, Score(self.score), self.lowest, self.max_size)

    def _leaf(self, index: Vec) -> Entering:
        if self.scores:
            return scored_leaf(self.scores, index, self.semantics)
        return leaf(self.fragments, index, self._rules.score, self.semantics)

    def _parent(self, level: int, index: Vec) -> Entering:
        """What the children handed up, and the edges across the faces between them."""
        grid, path = self.grids[level - 1], f"up{level - 1}"
        children = [
            read_node(self.node_path(path, child), "nodes", "gains", "links", "edges", "cross", "names")
            for child in grid.touching(self.grids[level].block_box(index))
        ]
        nodes, gains, links, edges, cross, names = (concatenate(tables) for tables in zip(*children, strict=True))
        enters = cross["level"] == level
        between = _named(select(cross, enters), names)
        strong = (between["key"] > 0) | between["joined"]
        order = np.argsort(nodes["id"])
        return Entering(
            nodes={name: column[order] for name, column in nodes.items()},
            gains=gains,
            links=concatenate([links, select({name: between[name] for name in links}, strong)]),
            edges=concatenate([edges, {name: between[name] for name in edges}]),
            cross=select(cross, ~enters),
            names=select(names, names["level"] > level),
        )


def _named(cross: Columns, names: Columns) -> Columns:
    """Edges across faces inside a node, between the present ids of both ends."""
    order = np.argsort(names["leaf"])
    lower, found = look_up(cross["lower"], names["leaf"][order], names["id"][order])
    if not found.all():
        raise BlockError(f"fragment {cross['lower'][~found][0]} of an edge across a face is not on that face")
    return {
        "left": np.minimum(cross["upper"], lower),
        "right": np.maximum(cross["upper"], lower),
        "key": cross["key"],
        "joined": cross["joined"],
        "stats": cross["stats"],
    }
