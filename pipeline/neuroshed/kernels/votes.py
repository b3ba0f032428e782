"""How many voxels of each label are of each class."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt


def count_votes(
    labels: npt.NDArray[np.uint32], kinds: npt.NDArray[np.uint8], count: int, classes: int
) -> npt.NDArray[np.int64]:
    """Voxels of each of the labels 1 to `count` that are of each of the kinds 1 to `classes`, int64 `(count, classes)`;
    0 is no label and no kind.

    >>> count_votes(np.array([1, 1, 2, 0], np.uint32), np.array([2, 2, 0, 1], np.uint8), 2, 2).tolist()
    [[0, 2], [0, 0]]
    """
    table = np.zeros((count + 1, classes + 1), np.int64)
    _count(labels.ravel(), np.ascontiguousarray(kinds).ravel(), table)
    return table[1:, 1:].copy()


@numba.njit(cache=True, nogil=True)
def _count(labels: Any, kinds: Any, table: Any) -> Any:
    for i in range(labels.size):
        table[labels[i], kinds[i]] += 1
