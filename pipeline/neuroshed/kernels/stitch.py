"""Pieces to fragments: size-dependent single linkage (Zlateski and Seung 2015), exact in chunks.

Small fragments join their best neighbour: edges are taken in falling strict order, and one with an end of fewer than
`small` voxels joins its ends. In a node of the octree a fragment is *open* if it touches a face with region beyond.
An edge is certain if one end is closed and small, for then the end is all there and joins whatever the other end has
become; or if both ends are large, for they stay so. Any other edge is kept for the parent, where more is known.

What an open fragment has gained inside a node it has gained at a certain place in the order: before it, the parent must
see it without that gain, or it would seem large too early. So an open fragment is handed up with the size that it
started with and its gains, each with the key of the edge that brought it. (Lu, Zlateski and Seung 2021, arXiv
2106.10795, keep such pairs apart instead; then openness spreads along chains of small fragments, and far more goes up.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.order import hash56
from neuroshed.kernels.pairs import longer, pack, unpack
from neuroshed.kernels.regions import ROWS, edge_count, edges_by_affinity
from neuroshed.kernels.unions import find, union
from neuroshed.kernels.watershed import Place


class Fragments(NamedTuple):
    """Fragments `0..n-1` that enter a node.

    `starts` int64: voxels that a fragment had before the size rule began; `totals` int64: voxels that it has inside
    the nodes below. `touching` bool: it reaches a face of the node with region beyond.
    """

    starts: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    touching: npt.NDArray[np.bool_]


class Gains(NamedTuple):
    """Voxels that open fragments gained by the size rule: `fragment` int64, `keys` uint64 (place in the order), and
    `voxels` int64.
    """

    fragment: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    voxels: npt.NDArray[np.int64]


class Links(NamedTuple):
    """Edges of at least `low`: `left, right` int64 fragments, `keys` uint64; `joined` bool: by the watershed."""

    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    joined: npt.NDArray[np.bool_]


class SizeRule(NamedTuple):
    """Outcome of the size rule in one node.

    `roots` int64 `(n,)`: the smallest member of the fragment that each belongs to. At roots: `starts, totals` int64 and
    `up` bool, whether it is handed up. `kept` bool, one a link: it goes up. `gains`, by root: what goes up of them.
    """

    roots: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    up: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]
    gains: Gains


NO_GAINS = Gains(np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64))


def size_rule(fragments: Fragments, gains: Gains, links: Links, small: int) -> SizeRule:
    """Join what the watershed joined across faces, then small fragments to their best neighbour."""
    # Of 32 bits, for what is looked up at random should stay in the processor's cache.
    table = np.arange(fragments.starts.size, dtype=np.uint32)
    now, open_ = fragments.starts.copy(), fragments.touching.copy()
    _join_picked(table, now, open_, links.left, links.right, links.joined)
    starts = now.copy()
    order = falling_order(np.concatenate([links.keys, gains.keys]))
    kept = np.zeros(links.keys.size, np.bool_)
    found = _take_in_turn(
        table, starts, now, open_, links.left, links.right, links.keys, gains.fragment, gains.keys,
        gains.voxels, order, kept, small,
    )  # fmt: skip
    totals = _sum_up(table, fragments.totals)
    roots = table.astype(np.int64)
    up = open_.copy()
    up[roots[links.left[kept]]] = up[roots[links.right[kept]]] = True
    up &= roots == np.arange(roots.size)
    return SizeRule(roots, np.where(open_, starts, totals), totals, up, kept, _by_root(Gains(*found), roots))


def best_links(links: Links) -> Links:
    """One link a pair, `left < right`, sorted: the best key, and whether any was joined."""
    if links.keys.size == 0:
        return links
    left, right = np.minimum(links.left, links.right), np.maximum(links.left, links.right)
    # Fragments are rows of a table in memory, so two numbers of them fit in one.
    pairs = (left << 32) | right
    order = np.argsort(pairs)
    pairs = pairs[order]
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    return Links(
        pairs[starts] >> 32,
        pairs[starts] & 0xFFFFFFFF,
        np.maximum.reduceat(links.keys[order], starts),
        np.logical_or.reduceat(links.joined[order], starts),
    )


def falling_order(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Indices of edges from the strongest to the weakest. No two edges of a volume have the same key."""
    return np.argsort(keys)[::-1]


def _by_root(gains: Gains, roots: npt.NDArray[np.int64]) -> Gains:
    """Gains by root in falling order."""
    root = roots[gains.fragment]
    order = np.lexsort((~gains.keys, root))
    return Gains(root[order], gains.keys[order], gains.voxels[order])


@numba.njit(cache=True, nogil=True)
def _join(roots: Any, now: Any, open_: Any, a: Any, b: Any) -> Any:
    root = union(roots, a, b)
    other = b if root == a else a
    now[root] += now[other]
    open_[root] |= open_[other]
    return root


@numba.njit(cache=True, nogil=True)
def _join_picked(roots: Any, now: Any, open_: Any, left: Any, right: Any, joined: Any) -> Any:
    for k in range(joined.size):
        if joined[k]:
            a, b = find(roots, left[k]), find(roots, right[k])
            if a != b:
                _join(roots, now, open_, a, b)


@numba.njit(cache=True, nogil=True)
def _take_in_turn(
    roots: Any,
    starts: Any,
    now: Any,
    open_: Any,
    left: Any,
    right: Any,
    keys: Any,
    gainers: Any,
    gain_keys: Any,
    gain_voxels: Any,
    order: Any,
    kept: Any,
    small: Any,
) -> Any:
    """Links and gains in falling order. `now`: sizes at this place in the order. Returns the gains of what is open."""
    most = gainers.size + roots.size
    who, when, voxels = np.empty(most, np.int64), np.empty(most, np.uint64), np.empty(most, np.int64)
    count = 0
    for k in order:
        if k >= keys.size:
            g = k - keys.size
            a = find(roots, gainers[g])
            # What was large before has no need of its gains.
            if open_[a] and now[a] < small:
                who[count], when[count], voxels[count] = a, gain_keys[g], gain_voxels[g]
                count += 1
            now[a] += gain_voxels[g]
            continue
        a, b = find(roots, left[k]), find(roots, right[k])
        if a == b or (now[a] >= small and now[b] >= small):
            continue
        if open_[a] or now[a] >= small:
            a, b = b, a
        if open_[a] or now[a] >= small:
            # Neither end is certain to be small: one may yet grow, or join the other.
            kept[k] = True
            continue
        start = starts[b]
        if open_[b] and now[b] < small:
            who[count], when[count], voxels[count] = b, keys[k], now[a]
            count += 1
        starts[_join(roots, now, open_, a, b)] = start
    return who[:count].copy(), when[:count].copy(), voxels[:count].copy()


@numba.njit(cache=True, nogil=True)
def _sum_up(roots: Any, voxels: Any) -> Any:
    """Name the root of each fragment in `roots`; returns the sum of `voxels` at each root."""
    totals = np.zeros(roots.size, np.int64)
    for i in range(roots.size):
        roots[i] = find(roots, i)
        totals[roots[i]] += voxels[i]
    return totals


LARGE, OPEN = np.uint8(1), np.uint8(2)
"""Flags of a fragment: it has at least `small` voxels; it touches a face with region beyond."""


class _Progress(NamedTuple):
    """How far the fragments of a block have come, by label, entry 0 for background: `roots` uint32, and at roots `now`
    int64 (voxels) and `flags` uint8.
    """

    roots: npt.NDArray[np.uint32]
    now: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]


def links_that_matter(
    labels: npt.NDArray[np.int32],
    affinities: npt.NDArray[np.uint8],
    place: Place,
    fragments: Fragments,
    low: int,
    small: int,
    room: int,
) -> Links:
    """The edges of at least `low` in a block that join its fragments by the size rule or are kept, in falling order.

    The others change nothing: when their turn comes, their ends are one, or both large. So the rule is gone through
    beforehand, affinity by affinity, which lets most edges be dropped without putting them in order (filter-Kruskal:
    Osipov, Sanders and Singler 2009). Each end is named by the root of what it is part of when its turn comes.

    `labels` int32 `(z, y, x)`, i + 1 for fragment i; `affinities` uint8 over the block or more beyond its high faces.
    No more than about `room` edges, of 12 bytes, are in memory at a time. Raises ValueError for a block that is too
    large.
    """
    flags = fragments.touching * OPEN | (fragments.starts >= small) * LARGE
    progress = _Progress(
        np.arange(flags.size + 1, dtype=np.uint32), np.append(0, fragments.starts), np.append(np.uint8(0), flags)
    )
    found = []
    counts = edge_count(labels, affinities, place, low << 56, (256 << 56) - 1)
    for least, most, whole in _parts(counts, low, room):
        inside = np.zeros_like(counts)
        affinity = slice(least >> 56, (most >> 56) + 1)
        inside[affinity] = (counts if whole else edge_count(labels, affinities, place, least, most))[affinity]
        edges = edges_by_affinity(labels, affinities, place, least, most, inside)
        found.append(_take_by_affinity(progress, *edges, inside, small, labels.shape, place.first, place.steps))
        # Room for those of the next part.
        del edges
    pairs, keys = (np.concatenate(column) for column in zip(*found, strict=True))
    left, right = unpack(pairs)
    return Links(left - 1, right - 1, keys, np.zeros(keys.size, np.bool_))


def _parts(counts: npt.NDArray[np.int64], low: int, room: int) -> Iterator[tuple[int, int, bool]]:
    """First and last keys of parts of the order, the highest first, of about `room` edges at most; and whether a part
    holds all edges of its affinities.

    >>> counts = np.bincount([7, 7, 8, 9], minlength=256)
    >>> [(least / 2**56, (most + 1) / 2**56, whole) for least, most, whole in _parts(counts, 7, 2)]
    [(8.0, 256.0, True), (7.0, 8.0, True)]
    >>> [(least / 2**56, (most + 1) / 2**56, whole) for least, most, whole in _parts(counts, 7, 1)][-2:]
    [(7.5, 8.0, False), (7.0, 7.5, False)]
    """
    top = 256
    while top > low:
        bottom, edges = top - 1, int(counts[top - 1])
        while bottom > low and edges + counts[bottom - 1] <= room:
            bottom -= 1
            edges += int(counts[bottom])
        # What is too much of one affinity is divided by its hashes.
        pieces = max(1, -(-edges // room))
        keys = (top - bottom) << 56
        for piece in range(pieces, 0, -1):
            first, last = (bottom << 56) + keys * (piece - 1) // pieces, (bottom << 56) + keys * piece // pieces - 1
            yield first, last, pieces == 1
        top = bottom


@numba.njit(cache=True, nogil=True)
def _take_by_affinity(
    progress: Any, uppers: Any, lowers: Any, codes: Any, counts: Any, small: Any, shape: Any, first: Any, step: Any
) -> Any:
    """Take edges as `regions.edges_by_affinity` orders them, which are overwritten. Returns those that matter: pairs of
    labels, and keys.
    """
    pairs, keys = np.empty(ROWS, np.uint64), np.empty(ROWS, np.uint64)
    hashes, order = np.empty(0, np.uint64), np.empty(0, np.uint32)
    filled, end = 0, 0
    for affinity in range(255, -1, -1):
        begin, end = end, end + counts[affinity]
        upper, lower, code = uppers[begin:end], lowers[begin:end], codes[begin:end]
        count = np.int64(_undecided(progress, upper, lower, code))
        if hashes.size < count:
            hashes, order = np.empty(count, np.uint64), np.empty(count, np.uint32)
        _hash_edges(code[:count], shape, first, step, hashes)
        _fall(hashes[:count], order)
        while keys.size < filled + count:
            pairs, keys = longer(pairs), longer(keys)
        count = _join_in_turn(progress, upper, lower, order[:count], small)
        for i in order[:count]:
            pairs[filled] = pack(upper[i], lower[i])
            keys[filled] = (np.uint64(affinity) << np.uint64(56)) | hashes[i]
            filled += 1
    return pairs[:filled].copy(), keys[:filled].copy()


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
def _hash_edges(codes: Any, shape: Any, first: Any, step: Any, hashes: Any) -> Any:
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
def _join_in_turn(progress: Any, upper: Any, lower: Any, order: Any, small: Any) -> Any:
    """Join ends as `_take_in_turn` does. Move those indices to the front of `order` whose edges join their ends or are
    kept, and name these ends by their roots; returns how many there are.
    """
    roots, now, flags = progress
    count = 0
    for i in order:
        a, b = find(roots, upper[i]), find(roots, lower[i])
        if a == b or flags[a] & flags[b] & LARGE:
            continue
        upper[i], lower[i], order[count] = a, b, i
        count += 1
        if flags[a] == 0 or flags[b] == 0:
            total, open_ = now[a] + now[b], (flags[a] | flags[b]) & OPEN
            root = union(roots, a, b)
            now[root] = total
            flags[root] = open_ | LARGE if total >= small else open_
    return count
