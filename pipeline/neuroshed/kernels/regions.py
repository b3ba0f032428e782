"""Region graph of one block: which labels touch, and what the affinities between them add up to.

Labels are the block's own: int32 from 1, numbered in the order of their first voxels. Only voxel faces inside the block
are seen here; those across its faces are in `kernels.faces`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec
from neuroshed.kernels.across import NEAREST
from neuroshed.kernels.order import MASK56, edge_key, hash64
from neuroshed.kernels.pairs import (
    PAIR,
    enter,
    longer,
    marked,
    meetings,
    more_heads,
    pack,
    rising_order,
    row_buffers,
    row_of,
    write_rows,
)
from neuroshed.kernels.watershed import Place

MAX_VOXELS = (1 << 32) // 3
"""Largest block whose edges fit in 32 bits."""
ROWS = 1 << 12
"""Rows that a growing table begins with."""
_STRIP = 1 << 14
"""Voxels of a plane whose pairs fit in the cache of a processor, those of the planes about it as well."""
_AFFINITY = np.uint64(56)
_WEAKEST, _STRONGEST = np.uint8(0), np.uint8(255)
_AXES = np.array(NEAREST)


class Contacts(NamedTuple):
    """Edges of a region graph, one row a pair, sorted: `left < right` int64 labels; statistics of the affinities of
    the voxel faces between them, `sums, counts` int64, `lowest, highest` uint8; `histograms` int64 `(n, 256)`, or
    `(0, 256)` where they were not asked for.
    """

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    lowest: npt.NDArray[np.uint8]
    highest: npt.NDArray[np.uint8]
    histograms: npt.NDArray[np.int64]


class Edges(NamedTuple):
    """Edges between voxels of a block, uint32: the labels of both ends, and 3 * (linear index in the block of the upper
    voxel) + axis.
    """

    upper: npt.NDArray[np.uint32]
    lower: npt.NDArray[np.uint32]
    code: npt.NDArray[np.uint32]


def region_graph(
    labels: npt.NDArray[np.int32],
    affinities: npt.NDArray[np.uint8],
    count: int,
    offsets: Sequence[Vec] = (),
    histograms: bool = False,
) -> Contacts:
    """All contacts inside a block between its `count` labels.

    `labels` int32 `(z, y, x)` of the block; `affinities` uint8 over the block or more beyond its high faces. Channel
    3 + i at voxel p is the edge between p and p + `offsets[i]`, whose components are at most 0 and not all 0: such an
    edge adds to its pair like those between neighbours, and makes one of labels that touch nowhere. Raises ValueError
    for other offsets, or more than there are channels for.
    """
    if len(affinities) < 3 + len(offsets) or any(max(offset) > 0 or not any(offset) for offset in offsets):
        raise ValueError(
            f"{len(affinities)} channels have the offsets {list(offsets)} after the first three; "
            "there must be a channel for each, and offsets must be at most 0 and not all 0"
        )
    ways = np.array([*NEAREST, *offsets], np.int64)
    heads = np.zeros(_power_of_two(4 * (count + 1)), np.uint32)
    row = row_buffers(labels.shape[2])
    rows, bins = _scan(*_flat(labels, affinities), ways, row, heads, np.empty(ROWS, PAIR), histograms)
    # Room for the contacts.
    del heads
    order = rising_order(rows)
    left, right, sums, counts = (np.empty(order.size, np.int64) for _ in range(4))
    lowest, highest = (np.empty(order.size, np.uint8) for _ in range(2))
    write_rows(rows, order, left, right, sums, counts, lowest, highest)
    spread = bins[order].astype(np.int64) if histograms else np.zeros((0, 256), np.int64)
    return Contacts(left, right, sums, counts, lowest, highest, spread)


def ranks(labels: npt.NDArray[np.int32], place: Place, count: int) -> npt.NDArray[np.uint64]:
    """The largest hash among the global linear indices of each label's voxels, uint64 `(count,)`."""
    found: npt.NDArray[np.uint64] = _scan_ranks(labels, place.first, place.steps, row_buffers(labels.shape[2]), count)
    return found[1:]


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _flat(labels: npt.NDArray[np.int32], affinities: npt.NDArray[np.uint8]) -> tuple[Any, ...]:
    """Both arrays in one dimension, each after its shape."""
    return labels.shape, labels.reshape(-1), affinities.shape[1:], affinities.reshape(-1)


@numba.njit(cache=True, nogil=True)
def _begins(shape: Any, edges_shape: Any, ways: Any, channel: Any, z: Any, y: Any) -> Any:
    """Where a row's edges of a channel begin: the upper and lower labels, the affinities; and how many there are."""
    (_, ny, nx), (ez, ey, ex) = shape, edges_shape
    below_z, below_y, back = z + ways[channel, 0], y + ways[channel, 1], min(-ways[channel, 2], nx)
    if below_z < 0 or below_y < 0:
        back = nx
    upper, lower = (z * ny + y) * nx + back, (below_z * ny + below_y) * nx
    edge = ((channel * ez + z) * ey + y) * ex + back
    return np.uint64(upper), np.uint64(lower), np.uint64(edge), nx - back


@numba.njit(cache=True, nogil=True)
def _scan(
    shape: Any,
    labels: Any,
    edges_shape: Any,
    affinities: Any,
    ways: Any,
    row: Any,
    heads: Any,
    rows: Any,
    histograms: Any,
) -> Any:
    """Statistics of pairs of labels, in the order in which they are found, and histograms if asked for."""
    nz, ny, nx = shape
    bins = np.empty((rows.size if histograms else 1, 256), np.uint32)
    # Row 0 is no pair's.
    count = 1
    # Strip by strip through all planes: so what one plane meets is in the processor's cache when the next meets it.
    strip = -(-_STRIP // max(nx, 1))
    for turn in range(-(-ny // strip) * nz):
        begin, z = turn // nz * strip, turn % nz
        for y in range(begin, min(begin + strip, ny)):
            while count + len(ways) * nx > rows.size:
                rows = longer(rows)
                if histograms:
                    bins = longer(bins)
            while count > heads.size:
                heads = more_heads(heads, rows, count)
            for channel in range(len(ways)):
                upper, lower, edge, length = _begins(shape, edges_shape, ways, channel, z, y)
                last_pair, k = np.uint64(0), np.uint64(0)
                for i in range(meetings(labels, upper, lower, affinities, edge, length, _WEAKEST, _STRONGEST, row)):
                    x = np.uint64(row.at[i])
                    a, b, affinity = labels[upper + x], labels[lower + x], affinities[edge + x]
                    pair = pack(min(a, b), max(a, b))
                    if pair != last_pair:
                        last_pair = pair
                        k = row_of(heads, rows, pair)
                        if k == 0:
                            k = np.uint64(count)
                            enter(heads, rows, k, pair)
                            if histograms:
                                bins[k] = 0
                            count += 1
                    rows[k].total += affinity
                    rows[k].count += 1
                    rows[k].lowest = min(rows[k].lowest, affinity)
                    rows[k].highest = max(rows[k].highest, affinity)
                    if histograms:
                        bins[k, affinity] += np.uint32(1)
    return rows[1:count], bins[1:count]


@numba.njit(cache=True, nogil=True)
def _scan_ranks(labels: Any, first: Any, step: Any, buffers: Any, count: Any) -> Any:
    nz, ny, nx = labels.shape
    marks, at = buffers.marks, buffers.at
    hashes = np.zeros(nx, np.uint64)
    found = np.zeros(count + 1, np.uint64)
    for z in range(nz):
        for y in range(ny):
            row = labels[z, y]
            start = first + np.uint64(z) * step[0] + np.uint64(y) * step[1]
            for x in range(nx):
                hashes[x] = hash64(start + np.uint64(x))
            # A mark on the last voxel of each run of one label.
            for x in range(nx - 1):
                marks[x] = np.uint8(row[x] != row[x + 1])
            marks[nx - 1] = 1
            begin = 0
            for i in range(marked(buffers)):
                end = at[i]
                largest = found[row[end]]
                for x in range(begin, end + 1):
                    largest = max(largest, hashes[x])
                found[row[end]] = largest
                begin = end + 1
    return found


def check_size(labels: npt.NDArray[np.int32]) -> None:
    """Raise ValueError for labels of a block whose edges do not fit in 32 bits."""
    if labels.size > MAX_VOXELS:
        raise ValueError(f"a block of {labels.size} voxels is beyond the limit of {MAX_VOXELS}; make blocks smaller")


def edge_count(
    labels: npt.NDArray[np.int32], affinities: npt.NDArray[np.uint8], place: Place, least: int, most: int
) -> npt.NDArray[np.int64]:
    """How many edges with keys from `least` to `most` lie between different labels, by affinity, int64 `(256,)`."""
    counts, none = np.zeros(256, np.int64), np.empty(0, np.uint32)
    keys, row = np.array([least, most], np.uint64), row_buffers(labels.shape[2])
    _scan_edges(*_flat(labels, affinities), row, keys, place.first, place.steps, counts, none, none, none)
    return counts


def edges_by_affinity(
    labels: npt.NDArray[np.int32],
    affinities: npt.NDArray[np.uint8],
    place: Place,
    least: int,
    most: int,
    counts: npt.NDArray[np.int64],
) -> Edges:
    """The edges that `edge_count` counted, from the highest affinity to the lowest, those of one row by row."""
    check_size(labels)
    ends = np.cumsum(counts[::-1])[::-1]
    edges = Edges(*(np.empty(ends[0], np.uint32) for _ in range(3)))
    keys, row = np.array([least, most], np.uint64), row_buffers(labels.shape[2])
    _scan_edges(*_flat(labels, affinities), row, keys, place.first, place.steps, ends - counts, *edges)
    return edges


@numba.njit(cache=True, nogil=True)
def _scan_edges(
    shape: Any,
    labels: Any,
    edges_shape: Any,
    affinities: Any,
    row: Any,
    keys: Any,
    first: Any,
    step: Any,
    places: Any,
    uppers: Any,
    lowers: Any,
    codes: Any,
) -> Any:
    """Enter edges at `places` by affinity, which move on; only the moving where there is no room for edges."""
    nz, ny, nx = shape
    least, most = keys
    lowest, highest = np.uint8(least >> _AFFINITY), np.uint8(most >> _AFFINITY)
    # Whether a part of the edges of one affinity is asked for: only then their keys are needed.
    divided = least & MASK56 != 0 or most & MASK56 != MASK56
    for z in range(nz):
        for y in range(ny):
            for axis in range(3):
                upper, lower, edge, length = _begins(shape, edges_shape, _AXES, axis, z, y)
                for i in range(meetings(labels, upper, lower, affinities, edge, length, lowest, highest, row)):
                    x = np.uint64(row.at[i])
                    affinity = affinities[edge + x]
                    if divided:
                        voxel = first + np.uint64(z) * step[0] + np.uint64(y) * step[1] + x + np.uint64(nx - length)
                        key = edge_key(affinity, voxel, np.uint64(axis))
                        if key < least or key > most:
                            continue
                    k = np.uint64(places[affinity])
                    places[affinity] += 1
                    if uppers.size:
                        uppers[k], lowers[k] = labels[upper + x], labels[lower + x]
                        codes[k] = np.uint32(upper + x) * np.uint32(3) + np.uint32(axis)
