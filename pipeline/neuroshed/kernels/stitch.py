"""Pieces to fragments: size-dependent single linkage (Zlateski and Seung 2015), exact in chunks.

Small basins join their best neighbour, in falling strict order of edges. In a node of the octree a fragment is open if
something beyond the node's box could still change it; what could come out otherwise is left to the parent (Lu,
Zlateski and Seung 2021, arXiv 2106.10795).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.unions import find, union


class SizeRule(NamedTuple):
    """Outcome of the size rule in one node, over fragments `0..n-1`.

    `roots` int64 `(n,)`: the smallest member of the fragment that each belongs to. `sizes` int64 and `open_` bool
    `(n,)`, right at roots. `kept` bool, one an edge: it goes up.
    """

    roots: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    open_: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.bool_]


def size_rule(
    sizes: npt.NDArray[np.int64],
    touching: npt.NDArray[np.bool_],
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    joined: npt.NDArray[np.bool_],
    small: int,
) -> SizeRule:
    """Join picked pairs, then small fragments to their best neighbour.

    `sizes` int64 (voxels) and `touching` bool (reaches a face with region beyond it), one a fragment; `left, right`
    int64 and `keys` uint64, one an edge of at least `low`; `joined` bool: the edge was picked, its ends are one
    fragment at any size. A pair is refused for good if both have `small` voxels, or for now if its outcome is not
    certain inside this node; then both ends are open and the edge is kept.
    """
    roots = np.arange(sizes.size, dtype=np.int64)
    sizes, open_ = sizes.copy(), touching.copy()
    kept = np.zeros(keys.size, dtype=np.bool_)
    order = falling_order(keys)
    _join_picked(roots, sizes, open_, left, right, joined)
    _join_small(roots, sizes, open_, left, right, order, kept, small)
    return SizeRule(roots, sizes, open_, kept)


def falling_order(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Indices of edges from the strongest to the weakest. No two edges of a volume have the same key."""
    return np.argsort(keys)[::-1]


@numba.njit(cache=True, nogil=True)
def _join(roots: Any, sizes: Any, open_: Any, a: Any, b: Any) -> Any:
    root = union(roots, a, b)
    other = b if root == a else a
    sizes[root] += sizes[other]
    open_[root] |= open_[other]


@numba.njit(cache=True, nogil=True)
def _join_picked(roots: Any, sizes: Any, open_: Any, left: Any, right: Any, joined: Any) -> Any:
    for k in range(joined.size):
        if joined[k]:
            a, b = find(roots, left[k]), find(roots, right[k])
            if a != b:
                _join(roots, sizes, open_, a, b)


@numba.njit(cache=True, nogil=True)
def _join_small(roots: Any, sizes: Any, open_: Any, left: Any, right: Any, order: Any, kept: Any, small: Any) -> Any:
    for k in order:
        a, b = find(roots, left[k]), find(roots, right[k])
        if a == b:
            continue
        a_large, b_large = sizes[a] >= small, sizes[b] >= small
        if a_large and b_large:
            continue
        certain = (not open_[a] and not open_[b]) or (a_large and not open_[b]) or (b_large and not open_[a])
        if certain:
            _join(roots, sizes, open_, a, b)
        else:
            open_[a] = True
            open_[b] = True
            kept[k] = True
    for i in range(roots.size):
        roots[i] = find(roots, i)
    # An edge whose ends became one fragment after it was refused says nothing any more.
    for k in order:
        if kept[k] and roots[left[k]] == roots[right[k]]:
            kept[k] = False
