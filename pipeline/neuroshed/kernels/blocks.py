"""From the affinities of one block to its fragments and their region graph, as far as the block alone can tell.

Watershed, then the size rule among the basins, then the contacts of what is left. Fragments that reach a face of the
block with region beyond are settled later, in the nodes of the octree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec
from neuroshed.kernels.across import NEAREST, reach
from neuroshed.kernels.faces import Plane
from neuroshed.kernels.inside import size_rule_inside
from neuroshed.kernels.regions import Contacts, ranks, region_graph
from neuroshed.kernels.stitch import (
    Fragments,
    Gains,
    Links,
    SizeRule,
    best_links,
)
from neuroshed.kernels.watershed import Basins, Place, watershed


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides the fragments: `low` and `high` affinities (0..255), `small` and `dust` in voxels."""

    low: int
    high: int
    small: int
    dust: int


class BlockGraph(NamedTuple):
    """Fragments of one block and what lies between them. Label i + 1 stands in row i.

    `labels` uint32 of the block's shape, 0 for background. `ids` uint64: 1 + global linear index of the first voxel.
    `starts`, `totals` int64 in voxels, see `stitch.Fragments`. `ranks` uint64. `above` uint8 and `below` bool: edges to
    other blocks, see `across.reach`. `up` bool: it is not settled in the block. `gains` and `links` (by row) and
    `contacts` (by label). `planes`: by axis, the low and the high one.
    """

    labels: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.uint64]
    above: npt.NDArray[np.uint8]
    below: npt.NDArray[np.bool_]
    up: npt.NDArray[np.bool_]
    gains: Gains
    links: Links
    contacts: Contacts
    planes: tuple[tuple[Plane, Plane], ...]


def block_graph(
    affinities: npt.NDArray[np.uint8],
    place: Place,
    rules: Rules,
    offsets: Sequence[Vec] = (),
    histograms: bool = False,
) -> BlockGraph:
    """Fragments and region graph of one block.

    `affinities` uint8 `(3 or more, z, y, x)` over `watershed.read_box`; `offsets`, no longer than a block, and
    `histograms` are those of `regions.region_graph`.
    """
    basins = watershed(affinities, place, rules.low, rules.high)
    return basin_graph(basins, affinities, place, rules, offsets, histograms)


def basin_graph(
    basins: Basins,
    affinities: npt.NDArray[np.uint8],
    place: Place,
    rules: Rules,
    offsets: Sequence[Vec] = (),
    histograms: bool = False,
) -> BlockGraph:
    """`block_graph` of basins that are there already, and that are used up; `affinities` over the block or more."""
    solved, links = _join_small(basins, affinities, place, rules)
    numbers, kept = _numbers(solved, rules.dust)
    labels = renumber(basins.labels, numbers)
    count = kept.size
    above, below = reach(labels, count, place, (*NEAREST, *offsets))
    contacts = region_graph(labels, affinities, count, offsets, histograms)
    rows = numbers[1:].astype(np.int64) - 1
    planes = tuple(
        (
            Plane(_face(labels, axis, 0).astype(np.int64).ravel(), low.ravel().astype(np.bool_)),
            Plane(_face(labels, axis, -1).astype(np.int64).ravel(), high.ravel().astype(np.bool_)),
        )
        for axis, (low, high) in enumerate(basins.picked)
    )
    up = solved.kept
    return BlockGraph(
        labels.view(np.uint32),
        place.global_index(basins.first[kept]) + np.uint64(1),
        solved.starts[kept],
        solved.totals[kept],
        ranks(labels, place, count),
        above,
        below,
        solved.up[kept],
        Gains(rows[solved.gains.fragment], solved.gains.keys, solved.gains.voxels),
        best_links(Links(rows[links.left[up]], rows[links.right[up]], links.keys[up], links.joined[up])),
        contacts,
        planes,
    )


def _face(labels: npt.NDArray[Any], axis: int, at: int) -> npt.NDArray[Any]:
    face: npt.NDArray[Any] = labels.take(at, axis)
    return face


def _join_small(
    basins: Basins,
    affinities: npt.NDArray[np.uint8],
    place: Place,
    rules: Rules,
) -> tuple[SizeRule, Links]:
    above, below = reach(basins.labels, basins.sizes.size, place, NEAREST)
    fragments = Fragments(basins.sizes, basins.sizes, (above > 0) | below)
    room = 1 + place.box.size // 2
    return size_rule_inside(basins.labels, affinities, place, fragments, rules.low, rules.small, room)


def _numbers(solved: SizeRule, dust: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The fragment's label, from 1, of each basin's label, 0 for dust; and the basin that each fragment begins with."""
    stays = (solved.roots == np.arange(solved.roots.size)) & (solved.up | (solved.totals >= dust))
    kept = np.flatnonzero(stays)
    number = np.zeros(solved.roots.size, np.int32)
    number[kept] = np.arange(1, kept.size + 1)
    return np.concatenate([np.zeros(1, np.int32), number[solved.roots]]), kept


@numba.njit(cache=True, nogil=True)
def renumber(labels: Any, numbers: Any) -> Any:
    """Each label replaced by its entry in `numbers`, in place."""
    flat = labels.ravel()
    for i in range(flat.size):
        flat[i] = numbers[flat[i]]
    return labels
