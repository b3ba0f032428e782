"""A volume beside another one: over the same tissue, at its resolution or coarser by whole numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.identity import volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume

Size = tuple[float, float, float]


class Coarse(BaseModel):
    """Such a volume, of integers or booleans, beside a finer one whose voxels are meant where nothing else is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Location
    identity: dict[str, Any]
    """What the array was when the run was planned."""
    factor: Vec
    """Voxels of the finer volume to one voxel of this one, z y x."""

    def cells(self, box: Box) -> Box:
        """The voxels of this volume that a box of the finer one touches."""
        z, y, x = (a // f for a, f in zip(box.start, self.factor, strict=True))
        nz, ny, nx = (-(-b // f) for b, f in zip(box.stop, self.factor, strict=True))
        return Box((z, y, x), (nz, ny, nx))

    def stored(self, cells: Box) -> npt.NDArray[Any]:
        """The values of some of its own voxels, `(z, y, x)`."""
        return self._volume.read(cells)

    @property
    def _volume(self) -> Volume:
        # With what says how it is stored, so that nobody keeps the one that was there before it.
        return open_cached(self.path, self.identity.get("metadata_sha256", ""))

    def spread(self, values: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
        """What was made of the values of `cells(box)` for each voxel of the box, `(z, y, x)`."""
        for axis, factor in enumerate(self.factor):
            if factor > 1:
                cells = np.arange(box.start[axis], box.stop[axis]) // factor
                values = values.take(cells - cells[0], axis)
        return values

    def read_bytes(self, shape: Vec) -> int:
        """Upper bound in bytes of what reading takes at its peak for a box of `shape`, without what is made of it."""
        z, y, x = (1 + -(-n // f) for n, f in zip(shape, self.factor, strict=True))
        return self._volume.read_bytes((z, y, x))


@functools.lru_cache(maxsize=16)
def open_cached(path: Location, metadata_sha256: str) -> Volume:
    """The volume at a path, opened once a process and layout."""
    return open_volume(path)


def beside(
    what: str, path: Location, shape: Vec, voxel_size: Size, offset: Size, kinds: str = "ui"
) -> tuple[Volume, dict[str, Any]]:
    """Open the volume at `path`, which a user knows as `what`, and find how it lies to one of the given shape, voxel
    size and offset (nm). Returns it with the fields of `Coarse`.

    Raises `InputError` if it has channels or its type is none of `kinds` (of numpy), or its voxels are not whole
    multiples of the others from the same corner on, or it does not cover them.
    """
    volume = open_volume(path)
    if volume.channels is not None or volume.dtype.kind not in kinds:
        channels = "" if volume.channels is None else f" of {volume.channels} channels"
        wanted = "integers or booleans" if "b" in kinds else "integers"
        raise InputError(f"{what} {path} must be a label volume of {wanted}, got {volume.dtype}{channels}")
    ratios = [coarse / fine for coarse, fine in zip(volume.voxel_size, voxel_size, strict=True)]
    z, y, x = (round(ratio) for ratio in ratios)
    if min(z, y, x) < 1 or any(abs(r - f) > 1e-3 * r for r, f in zip(ratios, (z, y, x), strict=True)):
        raise InputError(
            f"{what} {path} has voxels of {volume.voxel_size} nm; needed are whole multiples of {voxel_size} nm"
        )
    if any(abs(a - b) > 1e-3 * s for a, b, s in zip(volume.offset, offset, voxel_size, strict=True)):
        raise InputError(f"{what} {path} begins at {volume.offset} nm, the volume at {offset} nm; crop one")
    if any(n * f < whole for n, f, whole in zip(volume.shape, (z, y, x), shape, strict=True)):
        raise InputError(
            f"{what} {path} of shape {volume.shape} at {(z, y, x)} voxels each does not cover the volume {shape}"
        )
    return volume, {"path": volume.path, "identity": volume_identity(volume), "factor": (z, y, x)}
