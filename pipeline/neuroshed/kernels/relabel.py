"""Lookups from one set of ids to another, down a tree and into voxels, and pairs of rows as numbers."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint64]
_ROW_BITS, _ROW_MASK = np.uint64(32), np.uint64(0xFFFFFFFF)


def places(keys: npt.NDArray[Any], ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """`np.searchsorted(keys, ids)`, up to ten times as fast: sorted ids find their places one after the other.

    >>> places(np.array([1, 4, 9], np.uint64), np.array([9, 1, 9], np.uint64)).tolist()
    [2, 0, 2]
    """
    order = np.argsort(ids)
    found = np.empty(ids.size, np.int64)
    found[order] = np.searchsorted(keys, ids[order])
    return found


def row_pairs(one: npt.NDArray[np.integer[Any]], other: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """One number, uint64, for each pair of rows of a table (below 2^32, of any type), whichever comes first; they sort
    as the pairs do.

    >>> row_pairs(np.array([3, 1]), np.array([1, 3])).tolist() == [(1 << 32) + 3] * 2
    True
    """
    pairs: npt.NDArray[np.uint64] = np.minimum(one, other).astype(np.uint64)
    pairs <<= _ROW_BITS
    pairs |= np.maximum(one, other).astype(np.uint64)
    return pairs


def rows_of(pairs: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The smaller and the larger row, int64, of each of `row_pairs`.

    >>> [rows.tolist() for rows in rows_of(row_pairs(np.array([3]), np.array([1])))]
    [[1], [3]]
    """
    return (pairs >> _ROW_BITS).astype(np.int64), (pairs & _ROW_MASK).astype(np.int64)


def look_up(ids: Ids, keys: Ids, values: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """`values` at the sorted `keys` that equal `ids` (ids that are not among the keys stay), and which were found.

    >>> look_up(np.array([4, 9], np.uint64), np.array([1, 4], np.uint64), np.array([1, 2], np.uint64))[0].tolist()
    [2, 9]
    """
    if keys.size == 0:
        return ids.copy(), np.zeros(ids.size, dtype=np.bool_)
    place = np.minimum(places(keys, ids), keys.size - 1)
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
