"""Classes of tissue that must not be merged with each other: soma, glia, vessel, as somebody else labelled them."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.votes import count_votes
from neuroshed.storage.coarse import Coarse, Size, beside
from neuroshed.storage.locations import Location

MAX_CLASSES = 32


class Semantics(Coarse):
    """A label volume of classes over the same tissue, at the resolution of the affinities or coarser."""

    classes: tuple[int, ...]
    """Labels that count, each a class of its own; all others are of no class."""

    @classmethod
    def of(cls, path: Location, classes: tuple[int, ...], shape: Vec, voxel_size: Size, offset: Size) -> Self:
        """Describe the volume at `path` beside affinities of the given shape, voxel size and offset (nm).

        Raises `InputError` if it cannot hold a class, or is none that can lie beside them (`storage.coarse.beside`).
        """
        volume, fields = beside("semantics", path, shape, voxel_size, offset)
        if max(classes) > np.iinfo(volume.dtype).max:
            raise InputError(
                f"semantics {path} is {volume.dtype}, which cannot hold class {max(classes)}; name labels that it has"
            )
        return cls(**fields, classes=classes)

    def votes(self, box: Box, labels: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
        """Voxels of each class in each of the `count` labels (uint32 over `box`, 0 for background), int64
        `(count, classes)`.
        """
        return count_votes(labels, self._kinds(box), count, len(self.classes))

    def _kinds(self, box: Box) -> npt.NDArray[np.uint8]:
        """For each voxel of a box 1 + the place of its class, 0 for none, uint8."""
        found = self.stored(self.cells(box))
        kinds = np.zeros(found.shape, np.uint8)
        for place, label in enumerate(self.classes):
            kinds[found == label] = place + 1
        return self.spread(kinds, box)
