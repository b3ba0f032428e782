"""Other ways to see a volume: kept in memory, with grown labels, or as the thin sections that it was not imaged as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from neuroshed.geometry import Box, Vec
from neuroshed.storage.locations import Location


class Voxels(Protocol):
    """What a volume `(z, y, x)` without channels and the views of one have in common."""

    @property
    def path(self) -> Location:
        """Where it comes from, for messages."""

    @property
    def shape(self) -> Vec:
        """Voxels, z y x."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Sides of a voxel in nm, z y x."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box inside the shape."""


@dataclass(frozen=True)
class View:
    """Other voxels as they are: what a view changes, it overrides."""

    seen: Voxels

    @property
    def path(self) -> Location:
        """Where it comes from, for messages."""
        return self.seen.path

    @property
    def shape(self) -> Vec:
        """Voxels, z y x."""
        return self.seen.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.seen.dtype

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Sides of a voxel in nm, z y x."""
        return self.seen.voxel_size

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box inside the shape."""
        return self.seen.read(box)


@dataclass(frozen=True)
class Kept(View):
    """Voxels of which a box is in memory; nothing else can be read."""

    box: Box
    array: npt.NDArray[Any]

    @classmethod
    def of(cls, voxels: Voxels, box: Box) -> Kept:
        """Read a box and keep it."""
        return cls(voxels, box, voxels.read(box))

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box inside the box that is kept, not to be changed."""
        if not self.box.contains(box):
            raise ValueError(f"box {box} of {self.path} is not inside {self.box}, which is in memory")
        return self.array[box.slices(self.box.start)]


@dataclass(frozen=True)
class Grown(View):
    """Labels in which voxels of label 0 take the nearest label of the box that is read, within `distance` voxels."""

    distance: int

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The labels of a box inside the shape."""
        return grow_labels(self.seen.read(box), self.distance)


def grow_labels(labels: npt.NDArray[Any], distance: int) -> npt.NDArray[Any]:
    """Labels `(z, y, x)` in which voxels of label 0 take the nearest label within `distance` voxels.

    >>> grow_labels(np.array([[[3, 0, 0, 0, 5]]]), 1).tolist()
    [[[3, 3, 0, 5, 5]]]
    """
    empty = labels == 0
    if not distance or not empty.any() or empty.all():
        return labels
    far, nearest = ndimage.distance_transform_edt(empty, return_indices=True)
    return np.where(far <= distance, labels[tuple(nearest)], 0)


@dataclass(frozen=True)
class Sections(View):
    """Voxels cut across `axis` into sections of `thickness` voxels, the first of which begins at voxel `phase`.

    The cut axis becomes z; the others keep their order. A section of an image is what electrons see that go through it:
    the mean of its voxels. Labels are those of its middle voxel. Voxels that do not fill a section are left out.
    """

    axis: int
    thickness: int
    phase: int
    averaged: bool

    @property
    def shape(self) -> Vec:
        """Sections, then rows and columns."""
        cut, rows, columns = self._turned(self.seen.shape)
        return (cut - self.phase) // self.thickness, rows, columns

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Thickness of a section and sides of its pixels in nm."""
        sizes = self.seen.voxel_size
        cut, rows, columns = (sizes[axis] for axis in self._order)
        return cut * self.thickness, rows, columns

    def box_inside(self, box: Box) -> Box:
        """The sections that lie as a whole in a box of the volume that is cut."""
        (first, *start), (last, *stop) = self._turned(box.start), self._turned(box.stop)
        low = -((self.phase - first) // self.thickness)
        high = (last - self.phase) // self.thickness
        return Box((low, start[0], start[1]), (max(low, high), stop[0], stop[1]))

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The sections of a box inside the shape."""
        start, stop = (
            self._turned_back((self.phase + self.thickness * section, rows, columns))
            for section, rows, columns in (box.start, box.stop)
        )
        solid = self.seen.read(Box(start, stop)).transpose(self._order)
        parts: npt.NDArray[Any] = solid.reshape(box.shape[0], self.thickness, *box.shape[1:])
        if not self.averaged:
            middle: npt.NDArray[Any] = parts[:, self.thickness // 2]
            return middle
        total = parts.sum(1, dtype=np.uint32)  # of unsigned images: 16 bits times a section's voxels
        mean: npt.NDArray[Any] = ((total + self.thickness // 2) // self.thickness).astype(self.dtype)
        return mean

    @property
    def _order(self) -> Vec:
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        return self.axis, rows, columns

    def _turned(self, place: Vec) -> Vec:
        cut, rows, columns = (place[axis] for axis in self._order)
        return cut, rows, columns

    def _turned_back(self, place: Vec) -> Vec:
        z, y, x = (place[self._order.index(axis)] for axis in range(3))
        return z, y, x
