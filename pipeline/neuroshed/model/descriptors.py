"""Local shape descriptors (Sheridan et al. 2022, Nature Methods 20): what a neuron looks like around its voxels.

An auxiliary task for the network: to say in which direction the neuron's mass lies, how it is stretched and how much of
it there is, a network must see more than the nearest membrane.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

# 3 of the mean offset, 3 of the variance along the axes, 3 of their correlations, 1 of the size.
COUNT = 10
# A Gaussian window is cut at this many deviations.
REACH = 3.0
Vec3 = tuple[float, float, float]


def local_shape_descriptors(labels: npt.NDArray[np.integer[Any]], sigma: Vec3) -> npt.NDArray[np.float32]:
    """Descriptors float32 `(10, z, y, x)` in 0..1 of integer labels `(z, y, x)`; NaN where the label is 0.

    In a Gaussian window of deviation `sigma` (voxels, z y x) around a voxel, over the voxels of its own label alone:
    the mean offset along z, y, x (in deviations, halved, plus 1/2); the variance along z, y, x (in squared deviations);
    the correlations of zy, zx, yx (halved, plus 1/2); and the share of the window that they fill. What lies outside the
    array is of no label.

    >>> described = local_shape_descriptors(np.ones((1, 1, 9), int), (1.0, 1.0, 1.0))
    >>> [round(float(value), 2) for value in described[:, 0, 0, 4]]
    [0.5, 0.5, 0.5, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.16]
    """
    described = np.full((COUNT, *labels.shape), np.nan, np.float32)
    numbers, places = np.unique(labels, return_inverse=True)
    parts = ndimage.find_objects(places.reshape(labels.shape) + 1)
    for number, index in zip(numbers, range(len(numbers)), strict=True):
        if number == 0:
            continue
        box = parts[index]
        mine = labels[box] == number
        described[:, *box][:, mine] = _describe(mine, sigma)[:, mine]
    return described


def _describe(mine: npt.NDArray[np.bool_], sigma: Vec3) -> npt.NDArray[np.float32]:
    """Descriptors `(10, z, y, x)` of one object in its bounding box: nothing of it lies outside."""
    mass = mine.astype(np.float32)
    axes = [np.arange(side, dtype=np.float32) / s for side, s in zip(mine.shape, sigma, strict=True)]
    places = np.meshgrid(*axes, indexing="ij", sparse=True)
    share = np.maximum(_window(mass, sigma), np.float32(1e-6))
    means = [_window(mass * place, sigma) / share for place in places]
    spread = {
        (a, b): _window(mass * places[a] * places[b], sigma) / share - means[a] * means[b]
        for a, b in itertools.combinations_with_replacement(range(3), 2)
    }
    variances = [spread[axis, axis].clip(0, 1) for axis in range(3)]
    correlations = [
        spread[a, b] / np.sqrt(np.maximum(spread[a, a] * spread[b, b], np.float32(1e-3)))
        for a, b in itertools.combinations(range(3), 2)
    ]
    offsets = [(mean - place) / 2 + 0.5 for mean, place in zip(means, places, strict=True)]
    halves = [correlation / 2 + 0.5 for correlation in correlations]
    return np.stack([*offsets, *variances, *halves, share]).clip(0, 1).astype(np.float32)


def _window(values: npt.NDArray[np.floating[Any]], sigma: Vec3) -> npt.NDArray[np.float32]:
    summed: npt.NDArray[np.float32] = ndimage.gaussian_filter(values, sigma, mode="constant", truncate=REACH)
    return summed
