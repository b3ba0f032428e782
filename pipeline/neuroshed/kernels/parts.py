"""Labels of one block that came from a larger one: cutting takes segments apart, so each connected part is its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.watershed import LIT, Basins, connect


def parts(labels: npt.NDArray[Any]) -> Basins:
    """The connected parts of equal labels, as basins of which none was joined across a face.

    `labels` is `(z, y, x)` of any integers, 0 for background, which stays. Voxels are connected by faces.

    >>> parts(np.array([[[7, 7, 0, 7]]], np.uint64)).labels.tolist()
    [[[1, 1, 0, 2]]]
    """
    joined = np.where(labels != 0, LIT, np.uint8(0))
    for axis in range(3):
        upper, lower = np.moveaxis(labels, axis, 0)[1:], np.moveaxis(labels, axis, 0)[:-1]
        bits = np.moveaxis(joined, axis, 0)[1:]
        bits |= ((upper == lower) & (upper != 0)).astype(np.uint8) << np.uint8(axis)
    found, first, sizes = connect(joined, int(np.count_nonzero(joined == LIT)))
    planes = (np.zeros([n for a, n in enumerate(labels.shape) if a != axis], np.uint8) for axis in range(3))
    return Basins(found, first, sizes, tuple((plane, plane) for plane in planes))
