"""Which blocks of one grid touch which of another, axis by axis.

A block grown by its halo is a box, so what it touches is a box of blocks: three ranges, each of which depends on the
block's number along one axis alone. A few short arrays say it for all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from neuroshed.engine.sweep import Coordinates, Places, Sweep
from neuroshed.geometry import Grid, Vec

Range = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""For each block along one axis, the half-open range of the other grid's blocks: first, stop."""
Reach = tuple[Range, Range, Range]
"""Ranges along z, y, x; a block touches nothing where any of its three is empty."""

BATCH = 1 << 20
"""Most pairs of blocks that are looked at in one pass; keeps temporary arrays at some 10 MB."""
OUTSIDE = -(1 << 61)
"""Stands for no block in a sum of three places: the sum stays negative, and does not overflow."""


def reads(grid: Grid, upstream: Grid, low: Vec, high: Vec) -> Reach:
    """The upstream blocks that each block of `grid` touches, grown by `low` and `high` voxels, as `Grid.touching`.

    Raises `ValueError` if nothing is left of a block after it was grown by negative voxels.
    """
    z, y, x = (_axis_reads(grid, upstream, axis, low[axis], high[axis]) for axis in range(3))
    return z, y, x


def _axis_reads(grid: Grid, upstream: Grid, axis: int, low: int, high: int) -> Range:
    side, first, count = grid.block_shape[axis], grid.first[axis], grid.counts[axis]
    numbers = np.arange(first, first + count, dtype=np.int64)
    start = np.maximum(numbers * side, grid.box.start[axis]) - low
    stop = np.minimum((numbers + 1) * side, grid.box.stop[axis]) + high
    if (stop <= start).any():
        raise ValueError(f"no block of {side} voxels on axis {axis} may grow by {low} and {high}; use 0 or more")
    begin, end, side = upstream.box.start[axis], upstream.box.stop[axis], upstream.block_shape[axis]
    before, behind = stop <= begin, start >= end
    lowest = np.maximum(start, begin) // side - upstream.first[axis]
    highest = -(-np.minimum(stop, end) // side) - upstream.first[axis]
    # Empty ranges stand at the ends of the upstream grid, so that firsts and stops rise steadily.
    lowest[before] = highest[before] = 0
    lowest[behind] = highest[behind] = upstream.counts[axis]
    return lowest, highest


def turned(reach: Reach, counts: Vec) -> Reach:
    """The same pairs of blocks seen from the other grid, which has `counts` blocks along z, y, x."""
    z, y, x = (_axis_turned(span, count) for span, count in zip(reach, counts, strict=True))
    return z, y, x


def _axis_turned(span: Range, count: int) -> Range:
    numbers = np.arange(count)
    first, stop = span
    return np.searchsorted(stop, numbers, "right"), np.searchsorted(first, numbers, "right")


def most(reach: Reach) -> int:
    """The most blocks that one block touches."""
    z, y, x = (int((stop - first).max()) for first, stop in reach)
    return z * y * x


def box_sums(marked: npt.NDArray[np.bool_], reach: Reach) -> npt.NDArray[np.int32]:
    """How many blocks that are `marked` (z, y, x) each block of the other grid touches."""
    sums: npt.NDArray[np.int32] = marked.view(np.int8)
    for axis, (first, stop) in enumerate(reach):
        shape = list(sums.shape)
        shape[axis] += 1
        running = np.zeros(shape, np.int32)
        inner = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        np.cumsum(sums, axis=axis, dtype=np.int32, out=running[inner])
        sums = running.take(stop, axis) - running.take(first, axis)
    return sums


def slabs(reach: Reach, sweep: Sweep, other: Sweep) -> Iterator[tuple[slice, slice, Reach]]:
    """Cuts across the slowest axis of `sweep`, whose reach into `other` it is, of about `BATCH` blocks in either grid.

    Yields blocks along that axis, the range that they touch along the same axis of the other grid, and their reach
    into that range.
    """
    axis, (first, stop) = sweep.axis, reach[sweep.axis]
    larger = max(math.prod(sweep.counts), math.prod(other.counts))
    layers = max(1, BATCH * sweep.counts[axis] // larger)
    for begin in range(0, sweep.counts[axis], layers):
        own = slice(begin, min(begin + layers, sweep.counts[axis]))
        touched = slice(int(first[own].min()), int(stop[own].max()))
        z, y, x = (
            (span[0][own] - touched.start, span[1][own] - touched.start) if number == axis else span
            for number, span in enumerate(reach)
        )
        yield own, touched, (z, y, x)


class Table:
    """Finds the places of all blocks that a batch of blocks touches."""

    def __init__(self, reach: Reach, target: Sweep) -> None:
        """`reach` goes from the grid of the batch into the grid that `target` sweeps."""
        self._places = [_axis_places(span, stride) for span, stride in zip(reach, target.strides, strict=True)]
        self._width = most(reach)

    def touched(self, coordinates: Coordinates) -> Iterator[Places]:
        """Sweep places touched by blocks, with repetitions, in parts of about `BATCH`."""
        many = max(1, BATCH // max(self._width, 1))
        for begin in range(0, max(coordinates[0].size, 1), many):
            z, y, x = (
                table[along[begin : begin + many]] for table, along in zip(self._places, coordinates, strict=True)
            )
            places = (z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]).ravel()
            yield places[places >= 0]


def _axis_places(span: Range, stride: int) -> npt.NDArray[np.int64]:
    """What each block adds to a place, (blocks, most blocks touched); `OUTSIDE` where it touches fewer."""
    first, stop = span
    numbers = first[:, None] + np.arange((stop - first).max())
    return np.where(numbers < stop[:, None], numbers * stride, OUTSIDE)
