"""The size rule among all edges inside one block, as far as the block alone can tell: `kernels.stitch` without a graph.

A block has more edges than its fragments and affinities together have bytes, so they are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.order import hash56
from neuroshed.kernels.pairs import longer, pack, unpack
from neuroshed.kernels.regions import ROWS, check_size, edge_count, edges_by_affinity
from neuroshed.kernels.stitch import Fragments, Gains, Links, SizeRule, by_root, sum_up
from neuroshed.kernels.unions import find, union
from neuroshed.kernels.watershed import Place

LARGE, OPEN = np.uint8(1), np.uint8(2)
"""Flags of a fragment: it has at least `small` voxels; it touches a face with region beyond."""


class _Progress(NamedTuple):
    """How far the fragments of a block have come, by label, entry 0 for background: `roots` uint32, and at roots `now`
    uint32 (voxels) and `flags` uint8.
    """

    roots: npt.NDArray[np.uint32]
    now: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint8]


class _Table(NamedTuple):
    """Growing columns uint64, of which the first rows are filled: pairs of labels or labels and voxels (`pairs.pack`),
    and the keys of edges.
    """

    what: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    filled: int


def size_rule_inside(
    labels: npt.NDArray[np.int32],
    affinities: npt.NDArray[np.uint8],
    place: Place,
    fragments: Fragments,
    low: int,
    small: int,
    room: int,
) -> tuple[SizeRule, Links]:
    """`stitch.size_rule` of all edges of at least `low` inside a block; and the links that are kept, in falling order.

    Most edges change nothing: when their turn comes, their ends are one, or both large. So they are taken affinity by
    affinity, and most are dropped without putting them in order (filter-Kruskal: Osipov, Sanders and Singler 2009).

    `labels` int32 `(z, y, x)`, i + 1 for fragment i; `affinities` uint8 over the block or more beyond its high faces.
    No more than about `room` edges, of 12 bytes, are in memory at a time; those of the affinity in hand count twice,
    since they are put in order. Raises ValueError for a block that is too large.
    """
    check_size(labels)
    now = np.append(np.uint32(0), fragments.starts.astype(np.uint32))
    flags = np.append(np.uint8(0), fragments.touching * OPEN | (fragments.starts >= small) * LARGE)
    progress = _Progress(np.arange(now.size, dtype=np.uint32), now, flags)
    kept, gained = (_Table(np.empty(ROWS, np.uint64), np.empty(ROWS, np.uint64), 0) for _ in range(2))
    where = labels.shape, place.first, place.steps
    counts = edge_count(labels, affinities, place, low << 56, (256 << 56) - 1)
    for least, most, whole in _parts(counts, low, room):
        inside = np.zeros_like(counts)
        affinity = slice(least >> 56, (most >> 56) + 1)
        inside[affinity] = (counts if whole else edge_count(labels, affinities, place, least, most))[affinity]
        edges = edges_by_affinity(labels, affinities, place, least, most, inside)
        kept, gained = _take_by_affinity(progress, edges, inside, small, where, kept, gained)
        # Room for those of the next part.
        del edges
    del now, flags
    table = progress.roots[1:] - np.uint32(1)
    del progress
    left, right = unpack(kept.what[: kept.filled])
    links = Links(left - 1, right - 1, kept.keys[: kept.filled], np.zeros(kept.filled, np.bool_))
    who, voxels = unpack(gained.what[: gained.filled])
    return _solved(table, fragments, links, Gains(who - 1, gained.keys[: gained.filled], voxels)), links


def _solved(table: npt.NDArray[np.uint32], fragments: Fragments, links: Links, gains: Gains) -> SizeRule:
    """The outcome of the size rule where only the links that are kept are left."""
    totals = sum_up(table, fragments.totals)
    roots = table.astype(np.int64)
    starts = totals.copy()
    # No two open fragments are joined inside a block, so one alone gives its part the start.
    starts[roots[fragments.touching]] = fragments.starts[fragments.touching]
    up = np.zeros(roots.size, np.bool_)
    up[roots[fragments.touching]] = up[roots[links.left]] = up[roots[links.right]] = True
    return SizeRule(roots, starts, totals, up, np.ones(links.keys.size, np.bool_), by_root(gains, roots))


def _parts(counts: npt.NDArray[np.int64], low: int, room: int) -> Iterator[tuple[int, int, bool]]:
    """First and last keys of parts of the order, the highest first, of about `room` edges at most, those of the most
    frequent affinity counted twice; and whether a part holds all edges of its affinities.

    >>> counts = np.bincount([7, 7, 8, 9], minlength=256)
    >>> [(least / 2**56, (most + 1) / 2**56, whole) for least, most, whole in _parts(counts, 7, 4)]
    [(8.0, 256.0, True), (7.0, 8.0, True)]
    >>> [(least / 2**56, (most + 1) / 2**56, whole) for least, most, whole in _parts(counts, 7, 2)][-2:]
    [(7.5, 8.0, False), (7.0, 7.5, False)]
    """
    top = 256
    while top > low:
        bottom, edges = top - 1, int(counts[top - 1])
        while bottom > low and edges + counts[bottom - 1] + counts[bottom - 1 : top].max() <= room:
            bottom -= 1
            edges += int(counts[bottom])
        # What is too much of one affinity is divided by its hashes.
        pieces = max(1, -(-(edges + int(counts[bottom:top].max())) // room))
        keys = (top - bottom) << 56
        for piece in range(pieces, 0, -1):
            first, last = (bottom << 56) + keys * (piece - 1) // pieces, (bottom << 56) + keys * piece // pieces - 1
            yield first, last, pieces == 1
        top = bottom


@numba.njit(cache=True, nogil=True)
def _take_by_affinity(progress: Any, edges: Any, counts: Any, small: Any, where: Any, kept: Any, gained: Any) -> Any:
    """Take edges as `regions.edges_by_affinity` orders them, which are overwritten. Returns the two tables (`_Table`),
    to which links that are kept and gains are added.
    """
    uppers, lowers, codes = edges
    hashes, order = np.empty(0, np.uint64), np.empty(0, np.uint32)
    end = 0
    for affinity in range(255, -1, -1):
        begin, end = end, end + counts[affinity]
        upper, lower, code = uppers[begin:end], lowers[begin:end], codes[begin:end]
        count = np.int64(_undecided(progress, upper, lower, code))
        if hashes.size < count:
            hashes, order = np.empty(count, np.uint64), np.empty(count, np.uint32)
        _hash_edges(code[:count], where, hashes)
        _fall(hashes[:count], order)
        count = _join_in_turn(progress, upper, lower, code, order[:count], small)
        for i in order[:count]:
            key = (np.uint64(affinity) << np.uint64(56)) | hashes[i]
            if code[i]:
                kept = _added(kept, pack(upper[i], lower[i]), key)
            else:
                gained = _added(gained, pack(upper[i], lower[i]), key)
    return kept, gained


@numba.njit(cache=True, nogil=True)
def _added(table: Any, what: Any, key: Any) -> Any:
    column, keys, filled = table
    if filled == keys.size:
        column, keys = longer(column), longer(keys)
    column[filled], keys[filled] = what, key
    return _Table(column, keys, filled + 1)


@numba.njit(cache=True, nogil=True)
def _undecided(progress: Any, upper: Any, lower: Any, code: Any) -> Any:
    """Move the edges to the front whose ends are neither one nor both large, by roots; returns how many there are."""
    roots, _, flags = progress
    count = np.uint64(0)
    for i in range(upper.size):
        a, b = find(roots, upper[i]), find(roots, lower[i])
        upper[count], lower[count], code[count] = a, b, code[i]
        count += np.uint64((a != b) & (flags[a] & flags[b] & LARGE == 0))
    return count


@numba.njit(cache=True, nogil=True)
def _hash_edges(codes: Any, where: Any, hashes: Any) -> Any:
    shape, first, step = where
    ny, nx = np.uint32(shape[1]), np.uint32(shape[2])
    for i in range(codes.size):
        voxel, axis = codes[i] // np.uint32(3), codes[i] % np.uint32(3)
        row, x = voxel // nx, voxel % nx
        upper = first + np.uint64(row // ny) * step[0] + np.uint64(row % ny) * step[1] + np.uint64(x)
        hashes[i] = hash56(upper * np.uint64(3) + np.uint64(axis))


@numba.njit(cache=True, nogil=True)
def _fall(hashes: Any, order: Any) -> Any:
    """Write the falling order of 56-bit hashes to `order`: by first bits, then by insertion, as few share those."""
    bits = 1
    while 1 << bits < hashes.size:
        bits += 1
    shift, last = np.uint64(56 - bits), np.uint64((1 << bits) - 1)
    begins = np.zeros((1 << bits) + 1, np.uint32)
    for h in hashes:
        begins[last - (h >> shift) + np.uint64(1)] += np.uint32(1)
    for i in range(1 << bits):
        begins[i + 1] += begins[i]
    for i in range(hashes.size):
        place = last - (hashes[i] >> shift)
        order[begins[place]] = i
        begins[place] += np.uint32(1)
    for i in range(1, hashes.size):
        moved, j = order[i], i
        while j > 0 and hashes[order[j - 1]] < hashes[moved]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = moved


@numba.njit(cache=True, nogil=True)
def _join_in_turn(progress: Any, upper: Any, lower: Any, code: Any, order: Any, small: Any) -> Any:
    """Join ends as `stitch.size_rule` does. Move those indices to the front of `order` whose edges are kept (`code` 1,
    and the ends by their roots) or bring gains (`code` 0, who gains and voxels); returns how many there are.
    """
    roots, now, flags = progress
    count = 0
    for i in order:
        a, b = find(roots, upper[i]), find(roots, lower[i])
        if a == b or flags[a] & flags[b] & LARGE:
            continue
        if flags[a]:
            a, b = b, a
        if flags[a]:
            # Neither end is certain to be small: one may yet grow, or join the other.
            upper[i], lower[i], code[i], order[count] = a, b, 1, i
            count += 1
            continue
        if flags[b] == OPEN:
            upper[i], lower[i], code[i], order[count] = b, now[a], 0, i
            count += 1
        total, open_ = np.int64(now[a]) + np.int64(now[b]), flags[b] & OPEN
        root = union(roots, a, b)
        now[root] = total
        flags[root] = open_ | LARGE if total >= small else open_
    return count
