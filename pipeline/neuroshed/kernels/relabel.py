"""Lookups from one set of ids to another: composing them down a tree, and painting them into voxels."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]


def look_up(ids: Ids, keys: Ids, values: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """`values` at the sorted `keys` that equal `ids` (ids that are not among the keys stay), and which were found.

    >>> look_up(np.array([4, 9], np.uint64), np.array([1, 4], np.uint64), np.array([1, 2], np.uint64))[0].tolist()
    [2, 9]
    """
    if keys.size == 0:
        return ids.copy(), np.zeros(ids.size, dtype=np.bool_)
    place = np.minimum(np.searchsorted(keys, ids), keys.size - 1)
    found = keys[place] == ids
    return np.where(found, values[place], ids), found


def paint(labels: npt.NDArray[np.uint32], values: Ids) -> Ids:
    """Each label, uint32 of any shape, replaced by its entry in `values`, uint64.

    Raises KeyError for a label beyond the entries: nothing is ever relabelled by guess.

    >>> paint(np.array([[0, 2]], np.uint32), np.array([0, 7, 9], np.uint64)).tolist()
    [[0, 9]]
    """
    out = np.empty(labels.shape, dtype=np.uint64)
    beyond = _paint(labels.ravel(), values, out.ravel())
    if beyond:
        raise KeyError(f"label {beyond} has no entry among {values.size}")
    return out


@numba.njit(cache=True, nogil=True)
def _paint(labels: Any, values: Any, out: Any) -> Any:
    for i in range(labels.size):
        if labels[i] >= values.size:
            return labels[i]
        out[i] = values[labels[i]]
    return np.uint32(0)
