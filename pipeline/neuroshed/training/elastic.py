"""Smooth random displacements of a training sample, image and labels alike, as in U-Net (Ronneberger et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from neuroshed.geometry import Vec, add
from neuroshed.training.config import Augment


@dataclass(frozen=True)
class Elastic:
    """A drawn displacement: `field` float32 `(3, z, y, x)`, voxels by which each is read elsewhere; None for none."""

    patch_shape: Vec
    margin: Vec
    """Voxels needed on each side of the patch, z y x."""
    field: npt.NDArray[np.float32] | None

    @property
    def read_shape(self) -> Vec:
        """Shape of the array to read, margins included."""
        return add(self.patch_shape, add(self.margin, self.margin))

    def apply(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The displaced `patch_shape` array of a `read_shape` array.

        Floating point ones are interpolated linearly, of others each voxel takes its nearest one.
        """
        if self.field is None:
            return array
        places = np.indices(self.patch_shape, np.float32, sparse=True)
        coordinates = np.stack(
            [part + place + side for part, place, side in zip(self.field, places, self.margin, strict=True)]
        )
        if array.dtype.kind == "f":
            bent: npt.NDArray[Any] = ndimage.map_coordinates(array, coordinates, order=1, mode="nearest")
            return bent
        z, y, x = np.rint(coordinates).astype(np.intp)
        nearest: npt.NDArray[Any] = array[z, y, x]
        return nearest


def draw_elastic(rng: np.random.Generator, patch_shape: Vec, augment: Augment) -> Elastic:
    """Draw displacements of control points `augment.elastic_spacing` voxels apart, and interpolate between them."""
    if rng.random() >= augment.elastic:
        return Elastic(patch_shape, (0, 0, 0), None)
    spacing, limit = augment.elastic_spacing, augment.elastic_shift
    points = tuple(-(-side // step) + 1 for side, step in zip(patch_shape, spacing, strict=True))
    field = np.zeros((3, *patch_shape), np.float32)
    for axis, largest in enumerate(limit):
        if largest:
            # Two deviations of a control point reach the limit; rarer, farther ones are cut.
            drawn = (rng.standard_normal(points) * largest / 2).clip(-largest, largest)
            grid = drawn.astype(np.float32)
            for along, (side, step) in enumerate(zip(patch_shape, spacing, strict=True)):
                grid = _interpolate(grid, along, side, step)
            field[axis] = grid
    z, y, x = limit
    return Elastic(patch_shape, (z, y, x), field)


def _interpolate(grid: npt.NDArray[np.float32], axis: int, side: int, step: int) -> npt.NDArray[np.float32]:
    # A raised cosine between neighbours: smooth, and never beyond them, so the margin holds.
    place = np.arange(side) / step
    low = place.astype(np.intp)
    share = ((1 - np.cos(np.pi * (place - low))) / 2).astype(np.float32)
    shape = [1] * grid.ndim
    shape[axis] = side
    part = share.reshape(shape)
    return grid.take(low, axis) * (1 - part) + grid.take(low + 1, axis) * part
