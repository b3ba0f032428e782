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


def relabel(labels: Ids, keys: Ids, values: Ids) -> Ids:
    """Replace every label (uint64, any shape) by the value of its key; 0 stays 0.

    `keys` are sorted and unique. Raises KeyError for a non-zero label without a key: nothing is ever relabelled by
    guess.
    """
    out = np.zeros(labels.size, dtype=np.uint64)
    missing = _relabel(labels.ravel(), keys, values, out)
    if missing:
        raise KeyError(f"label {missing} has no entry in the lookup")
    return out.reshape(labels.shape)


@numba.njit(cache=True, nogil=True)
def _relabel(labels: Any, keys: Any, values: Any, out: Any) -> Any:
    last, value = np.uint64(0), np.uint64(0)
    for i in range(labels.size):
        label = labels[i]
        # Runs of one label are long, so the last answer is nearly always right.
        if label != last:
            place = np.searchsorted(keys, label)
            if label == 0:
                value = np.uint64(0)
            elif place == keys.size or keys[place] != label:
                return label
            else:
                value = values[place]
            last = label
        out[i] = value
    return np.uint64(0)
