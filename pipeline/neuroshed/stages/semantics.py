"""Classes of tissue that must not be merged with each other: soma, glia, vessel, as somebody else labelled them."""

from __future__ import annotations

import functools
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.votes import count_votes
from neuroshed.storage.identity import volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume

MAX_CLASSES = 32


class Semantics(BaseModel):
    """A label volume of classes over the same tissue, at the resolution of the affinities or coarser."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Location
    identity: dict[str, Any]
    """What the array was when the run was planned."""
    classes: tuple[int, ...]
    """Labels that count, each a class of its own; all others are of no class."""
    factor: Vec
    """Voxels of the affinities to one voxel of the classes, z y x."""

    @classmethod
    def of(
        cls,
        path: Location,
        classes: tuple[int, ...],
        shape: Vec,
        voxel_size: tuple[float, float, float],
        offset: tuple[float, float, float],
    ) -> Self:
        """Describe the volume at `path` beside affinities of the given shape, voxel size and offset (nm).

        Raises `InputError` if it holds no integers or cannot hold a class, or its voxels are not whole multiples of
        theirs from the same corner on, or it does not cover them.
        """
        volume = open_volume(path)
        if volume.channels is not None or volume.dtype.kind not in "ui":
            channels = "" if volume.channels is None else f" of {volume.channels} channels"
            raise InputError(f"semantics {path} must be a label volume of integers, got {volume.dtype}{channels}")
        if max(classes) > np.iinfo(volume.dtype).max:
            raise InputError(
                f"semantics {path} is {volume.dtype}, which cannot hold class {max(classes)}; name labels that it has"
            )
        ratios = [coarse / fine for coarse, fine in zip(volume.voxel_size, voxel_size, strict=True)]
        z, y, x = (round(ratio) for ratio in ratios)
        if min(z, y, x) < 1 or any(abs(r - f) > 1e-3 * r for r, f in zip(ratios, (z, y, x), strict=True)):
            raise InputError(
                f"semantics {path} has voxels of {volume.voxel_size} nm; needed are whole multiples of {voxel_size} nm"
            )
        if any(abs(a - b) > 1e-3 * s for a, b, s in zip(volume.offset, offset, voxel_size, strict=True)):
            raise InputError(f"semantics {path} begin at {volume.offset} nm, the affinities at {offset} nm; crop one")
        if any(n * f < whole for n, f, whole in zip(volume.shape, (z, y, x), shape, strict=True)):
            raise InputError(
                f"semantics {path} of shape {volume.shape} at {(z, y, x)} voxels each do not cover the volume {shape}"
            )
        return cls(path=volume.path, identity=volume_identity(volume), classes=classes, factor=(z, y, x))

    def votes(self, box: Box, labels: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
        """Voxels of each class in each of the `count` labels (uint32 over `box`, 0 for background), int64
        `(count, classes)`.
        """
        return count_votes(labels, self._kinds(box), count, len(self.classes))

    def _kinds(self, box: Box) -> npt.NDArray[np.uint8]:
        """For each voxel of a box 1 + the place of its class, 0 for none, uint8."""
        z, y, x = self.factor
        start = [a // f for a, f in zip(box.start, self.factor, strict=True)]
        stop = [-(-b // f) for b, f in zip(box.stop, self.factor, strict=True)]
        coarse = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        found = _open(self.path).read(coarse)
        kinds = np.zeros(found.shape, np.uint8)
        for place, label in enumerate(self.classes):
            kinds[found == label] = place + 1
        fine = kinds.repeat(z, axis=0).repeat(y, axis=1).repeat(x, axis=2)
        first = (coarse.start[0] * z, coarse.start[1] * y, coarse.start[2] * x)
        return fine[box.slices(first)]


@functools.lru_cache(maxsize=4)
def _open(path: Location) -> Volume:
    return open_volume(path)
