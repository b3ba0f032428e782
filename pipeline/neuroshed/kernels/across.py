"""Edges between blocks: which voxels have them, and in which neighbour the other end lies.

An edge belongs to the block of its upper voxel, p; its lower voxel is p + offset, with components of at most 0. With
offsets no longer than a block, the lower voxel lies in the block itself or in one of seven below it. A *way* is the
step from a block to one of the seven above it, such as (0, 1, 1), and numbered from 1 to 7 by `way_number`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.watershed import Place

NEAREST: tuple[Vec, Vec, Vec] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
"""Channel c at voxel p is the edge between p and p - e_c: the convention of waterz."""
WAYS: tuple[Vec, ...] = tuple((n >> 2 & 1, n >> 1 & 1, n & 1) for n in range(8))
"""The ways by their numbers; at 0 the way to the block itself."""


def way_number(way: Vec) -> int:
    """The place of a way in `WAYS`.

    >>> way_number((1, 0, 0)), way_number((0, 0, 1))
    (4, 1)
    """
    return 4 * way[0] + 2 * way[1] + way[2]


def ways_of(offset: Vec) -> list[Vec]:
    """The ways that edges of an offset may cross.

    >>> ways_of((0, -1, -3))
    [(0, 0, 1), (0, 1, 0), (0, 1, 1)]
    """
    steps = [(0, 1) if component < 0 else (0,) for component in offset]
    return [(z, y, x) for z, y, x in itertools.product(*steps) if z or y or x]


def check_offsets(offsets: Sequence[Vec], block_shape: Vec) -> None:
    """Raise ValueError for an offset with a component above 0, or that is longer than a block."""
    for offset in offsets:
        if max(offset) > 0 or any(-o > side for o, side in zip(offset, block_shape, strict=True)):
            raise ValueError(
                f"long_range offset {list(offset)} in blocks of {list(block_shape)}: to count in scores, components "
                "must be 0 or less, and no longer than a block; turn all signs round, which names the same edges, or "
                "make blocks larger"
            )


def upper_ends(box: Box, offset: Vec, way: Vec) -> Box:
    """The voxels p of a block's box for which p + `offset` lies in the block that is `way` below it.

    >>> upper_ends(Box((8, 8, 8), (16, 16, 16)), (0, 0, -3), (0, 0, 1))
    Box(start=(8, 8, 8), stop=(16, 16, 11))
    """
    near = [min(a - o, b) for a, b, o in zip(box.start, box.stop, offset, strict=True)]
    start, stop = (
        [(outer if step == side else inner) for outer, inner, step in zip(bound, near, way, strict=True)]
        for side, bound in ((1, box.start), (0, box.stop))
    )
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def lower_ends(box: Box, offset: Vec, way: Vec) -> Box:
    """The voxels of a block's box that are p + `offset` of a voxel p in the block that is `way` above it.

    >>> lower_ends(Box((8, 8, 8), (16, 16, 16)), (0, 0, -3), (0, 0, 1))
    Box(start=(8, 8, 13), stop=(16, 16, 16))
    """
    near = [max(b + o, a) for a, b, o in zip(box.start, box.stop, offset, strict=True)]
    start, stop = (
        [(outer if step == side else inner) for outer, inner, step in zip(bound, near, way, strict=True)]
        for side, bound in ((0, box.start), (1, box.stop))
    )
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def reach(
    labels: npt.NDArray[Any], count: int, place: Place, offsets: Sequence[Vec]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Which labels 1 to `count` of a block may have edges to other blocks of the region.

    `above` uint8 `(count,)`: bit n - 1 for edges that belong to the block above by way number n; `below` bool
    `(count,)`: edges to any block below. `labels` are integers over `place.box`.
    """
    above, below = np.zeros(count + 1, np.uint8), np.zeros(count + 1, np.bool_)
    inner = place.inner_faces()
    for offset in offsets:
        for way in ways_of(offset):
            crossed = np.array(way, np.bool_)
            if inner[crossed, 1].all():
                ends = labels[lower_ends(place.box, offset, way).slices(place.box.start)]
                above[ends] |= np.uint8(1 << (way_number(way) - 1))
            if inner[crossed, 0].all():
                below[labels[upper_ends(place.box, offset, way).slices(place.box.start)]] = True
    return above[1:], below[1:]
