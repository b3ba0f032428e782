"""The classic recipe: waterz on blocks with context, merged by the connected components of local scores.

As in the pipelines of Funke et al. (2019) and of local shape descriptors (Sheridan et al. 2023): waterz's watershed
makes fragments of each block; in a second pass it agglomerates each block with context, and each contact of the block
gets the score at which its two fragments got together there. Segments at a threshold are the connected components of
the contacts that score at least it, which is what `stages.agglomerate` finds of the scores that are given here.

The result depends on the blocks, at every step: fragments end at faces, plateaus are divided from the rims of a block
with its context, and a score takes the mean over what has merged inside them. One false merge in one block holds for
all. It is here for those who want it, and as the yardstick for `stages.fragments`, which depends on no blocks.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Grid, Vec, add, as_vec, sub
from neuroshed.kernels import adjust
from neuroshed.kernels.across import WAYS
from neuroshed.kernels.blocks import Rules, basin_graph
from neuroshed.kernels.parts import parts
from neuroshed.kernels.relabel import Ids, paint
from neuroshed.kernels.scores import TOP_SCORE
from neuroshed.kernels.watershed import Place
from neuroshed.kernels.waterz import scored_edges, watershed
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.blocks import NONE, PROCESS_BYTES, CutStage
from neuroshed.stages.masks import left_out
from neuroshed.stages.octree import concatenate, needs
from neuroshed.storage.nodes import Columns, read_node, write_node


class WaterzFragments(CutStage):
    """waterz's own watershed (Zlateski and Seung 2015) and our size rule, of each block with context.

    Fragments are cut at the block's faces after the size rule, so parts of large ones may be as small as they like.
    """

    kind: Literal["waterz_fragments"] = "waterz_fragments"
    high: int
    """Edges of at least this affinity (0..255) always join, inside a block with its context."""

    def segment(self, affinities: npt.NDArray[np.uint8], around: Box) -> npt.NDArray[np.uint32]:
        """The watershed, and what the size rule makes of it where nothing is beyond the context."""
        basins = parts(watershed(affinities, self.low / 255, self.high / 255))
        place = Place(around, around, self.source.volume_shape)
        rules = Rules(self.low, NONE, self.small, self.dust)
        return basin_graph(basins, affinities, place, rules).labels

    def memory_bytes(self, step: str) -> int:
        """Affinities here and as float32 in waterz's process, labels in both: 34 bytes a voxel there, 16 here."""
        return PROCESS_BYTES + max(56 * math.prod(self.grown), self.mask_bytes(self.grown))


class WaterzScores(Stage):
    """The score, by waterz, of each contact of a block's fragments with each other and with those of lower neighbours.

    So each contact is scored once, in the block on its upper side. (The recipe's usual code takes the block that holds
    the centre of the fragment with the smaller id, which is a block on either side.) Where the context is 0, contacts
    across faces have no score, and nothing is joined there.
    """

    kind: Literal["waterz_scores"] = "waterz_scores"
    version = 2
    fragments: WaterzFragments
    context: Vec
    """Voxels around a block that waterz agglomerates too, z y x, as far as the region goes."""
    score: str
    """A name in `kernels.waterz.SCORES`."""
    lowest: int
    """Integer score down to which waterz merges."""

    @property
    def grid(self) -> Grid:
        """The blocks of the fragments."""
        return self.fragments.grid

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass; a block reads affinities and fragments around it."""
        below, near = self.fragments, self.context
        far = add(near, as_vec(adjust.reach(below.smooth)))
        read = (*needs(below, low=near, high=near), *needs(below.source, low=far, high=far))
        return (Step("", self.grid, read, left_out(below.skipped)),)

    def run(self, step: str, index: Vec) -> Done:
        """Tables `edges` (left, right, score) between fragments of the block, and `cross` (upper, lower, way, score) to
        those of lower neighbours: uint64 ids, uint8 numbers of `across.WAYS`, int64 scores of units of 1 / `TOP_SCORE`.
        """
        box = self.grid.block_box(index).grow(self.context).intersect(self.fragments.region)
        labels, ids = self._fragments(box)
        found = scored_edges(self.fragments.affinities(box), labels, self.lowest / TOP_SCORE, self.score)
        left, right, scores = found[0], found[1], np.rint(found[2] * TOP_SCORE).astype(np.int64)
        lies = {side: np.isin(end, ids[index]) for side, end in (("left", left), ("right", right))}
        inner = lies["left"] & lies["right"]
        cross = [_no_crossing()]
        for number in (1, 2, 4):
            lower = ids.get(sub(index, WAYS[number]))
            if lower is not None:
                turned = lies["left"] & np.isin(right, lower)
                rows = turned | (lies["right"] & np.isin(left, lower))
                upper_end, lower_end = np.where(turned, left, right)[rows], np.where(turned, right, left)[rows]
                way = np.full(upper_end.size, number, np.uint8)
                cross.append({"upper": upper_end, "lower": lower_end, "way": way, "score": scores[rows]})
        tables = {
            "edges": {"left": left[inner], "right": right[inner], "score": scores[inner]},
            "cross": concatenate(cross),
        }
        write_node(self.node_path(step, index), tables)
        return Done(0, {"edges": float(inner.sum() + tables["cross"]["score"].size)})

    def _fragments(self, box: Box) -> tuple[Ids, dict[Vec, Ids]]:
        """Fragments of a box by id, uint64 `(z, y, x)`, and the ids of each block that it touches."""
        labels, ids = np.zeros(box.shape, np.uint64), {}
        for index in filter(self.fragments.is_there, self.grid.touching(box)):
            part = self.grid.block_box(index).intersect(box)
            (fragments,) = read_node(self.fragments.node_path("", index), "fragments")
            ids[index] = fragments["id"]
            values = np.concatenate([np.zeros(1, np.uint64), ids[index]])
            labels[part.slices(box.start)] = paint(self.fragments.labels.read(part), values)
        return labels, ids

    def memory_bytes(self, step: str) -> int:
        """Affinities and labels here and in waterz's process: 28 bytes a voxel there, 30 here. Its quantiles take
        1.2 KB a contact more, of which noisy affinities have one in 20 voxels where small fragments do not join.
        """
        voxel = 136 if self.score.startswith("quantile") else 72
        grown = Box.of_shape(self.fragments.block_shape).grow(self.context).shape
        return PROCESS_BYTES + max(voxel * math.prod(grown), self.fragments.mask_bytes(grown))


def _no_crossing() -> Columns:
    none = np.zeros(0, np.uint64)
    return {"upper": none, "lower": none, "way": np.zeros(0, np.uint8), "score": np.zeros(0, np.int64)}
