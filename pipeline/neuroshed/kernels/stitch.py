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

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.relabel import row_pairs, rows_of
from neuroshed.kernels.unions import find, union


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
    gains = _once(gains, table)
    order = falling_order(np.concatenate([links.keys, gains.keys]))
    kept = np.zeros(links.keys.size, np.bool_)
    found = _take_in_turn(
        table, starts, now, open_, links.left, links.right, links.keys, gains.fragment, gains.keys,
        gains.voxels, order, kept, small,
    )  # fmt: skip
    totals = sum_up(table, fragments.totals)
    roots = table.astype(np.int64)
    up = open_.copy()
    up[roots[links.left[kept]]] = up[roots[links.right[kept]]] = True
    up &= roots == np.arange(roots.size)
    return SizeRule(roots, np.where(open_, starts, totals), totals, up, kept, by_root(Gains(*found), roots))


def best_links(links: Links) -> Links:
    """One link a pair, `left < right`, sorted: the best key, and whether any was joined."""
    if links.keys.size == 0:
        return links
    # Fragments are rows of a table in memory, so two numbers of them fit in one.
    pairs = row_pairs(links.left, links.right)
    order = np.argsort(pairs)
    pairs = pairs[order]
    starts = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
    return Links(
        *rows_of(pairs[starts]),
        np.maximum.reduceat(links.keys[order], starts),
        np.logical_or.reduceat(links.joined[order], starts),
    )


def falling_order(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Indices of edges from the strongest to the weakest. No two edges of a volume have the same key."""
    return np.argsort(keys)[::-1]


def _once(gains: Gains, table: npt.NDArray[np.uint32]) -> Gains:
    """Gains without those that a fragment has both itself and by a copy of it: the key of an edge names one gain."""
    if gains.keys.size == 0:
        return gains
    sum_up(table, np.zeros(table.size, np.int64))
    root = table[gains.fragment]
    order = np.lexsort((gains.keys, root))
    fragment, keys = root[order], gains.keys[order]
    first = np.ones(order.size, np.bool_)
    first[1:] = (fragment[1:] != fragment[:-1]) | (keys[1:] != keys[:-1])
    return Gains(gains.fragment[order[first]], keys[first], gains.voxels[order[first]])


def by_root(gains: Gains, roots: npt.NDArray[np.int64]) -> Gains:
    """Gains named by roots and sorted by them, those of one in falling order."""
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
def sum_up(roots: Any, voxels: Any) -> Any:
    """Name the root of each fragment in `roots`; returns the sum of `voxels` at each root."""
    totals = np.zeros(roots.size, np.int64)
    for i in range(roots.size):
        roots[i] = find(roots, i)
        totals[roots[i]] += voxels[i]
    return totals
