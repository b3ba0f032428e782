"""Union-find on flat arrays; the root of a set is its smallest member, whatever the order of joins."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(cache=True, nogil=True)
def find(roots: Any, i: Any) -> Any:
    """Root of `i`, halving the path on the way (`roots`: int32 or int64, each at most its own index)."""
    # Indices without a sign: numba looks whether others count from the end, in the middle of a chain of loads.
    at = np.uint64(i)
    parent = roots[at]
    while True:
        beyond = roots[np.uint64(parent)]
        if beyond == parent:
            return parent
        roots[at] = beyond
        at = np.uint64(beyond)
        parent = roots[at]


@numba.njit(cache=True, nogil=True)
def union(roots: Any, i: Any, j: Any) -> Any:
    """Join the sets of `i` and `j`; returns the new root, the smaller of the two roots."""
    a, b = find(roots, i), find(roots, j)
    if a < b:
        roots[b] = a
        return a
    roots[a] = b
    return b


@numba.njit(cache=True, nogil=True)
def _join_all(roots: Any, left: Any, right: Any) -> Any:
    for k in range(left.size):
        union(roots, left[k], right[k])
    for i in range(roots.size):
        roots[i] = find(roots, i)


def join_pairs(count: int, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The smallest member of each of `count` elements' set after joining the pairs `left[k], right[k]`, int64.

    >>> join_pairs(4, np.array([3]), np.array([1])).tolist()
    [0, 1, 2, 1]
    """
    roots = np.arange(count, dtype=np.int64)
    _join_all(roots, left.astype(np.int64), right.astype(np.int64))
    return roots
