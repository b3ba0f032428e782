"""Components of a graph whose edges come in pieces: what must be in memory together, and what need not.

Ends of edges are uint32 nodes; tables of unions as in `kernels.unions`, uint32.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.kernels.unions import find, union

Ends = npt.NDArray[np.uint32]


@numba.njit(cache=True, nogil=True)
def join(table: Any, left: Any, right: Any, chosen: Any) -> Any:
    """Join the ends of the edges that are `chosen`."""
    for k in range(left.size):
        if chosen[k]:
            union(table, left[k], right[k])


@numba.njit(cache=True, nogil=True)
def roots_of(table: Any, ends: Any) -> Any:
    """The root of each end, uint32."""
    found = np.empty(ends.size, np.uint32)
    for k in range(ends.size):
        found[k] = find(table, ends[k])
    return found


@numba.njit(cache=True, nogil=True)
def count_inside(table: Any, left: Any, right: Any, inside: Any) -> Any:
    """Add to `inside`, int64 by root, how many edges have both ends in one component."""
    for k in range(left.size):
        root = find(table, left[k])
        if root == find(table, right[k]):
            inside[root] += 1


@numba.njit(cache=True, nogil=True)
def batches(inside: Any, room: Any) -> Any:
    """Replace the number of edges in each component by that of its batch; returns how many batches there are.

    Components go to batches in turn, so many as hold at most `room` edges, or one alone.
    """
    batch, filled = 0, 0
    for root in range(inside.size):
        if inside[root] == 0:
            continue
        if filled > 0 and filled + inside[root] > room:
            batch, filled = batch + 1, 0
        filled += inside[root]
        inside[root] = batch
    return batch + 1
