"""What readers of foreign formats have in common."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.storage.locations import Location
from neuroshed.storage.spacing import Place, VoxelSize


class Reader(Protocol):
    """Voxels of one format as they are stored.

    `unit` is the box that has to be decoded at once, `cache_bytes` the most that reading holds besides what it returns.
    """

    shape: Vec
    dtype: np.dtype[Any]
    unit: Vec
    cache_bytes: int
    description: str
    voxel_size: VoxelSize | None = None
    """As the file tells it, in nm, z y x."""
    offset: Place | None = None
    """Place of the first voxel as the file tells it, in nm, z y x."""
    labels: bool | None = None
    """Whether the voxels are labels, and no image, if the file says."""
    metadata: tuple[Location, ...] = ()
    """Of a volume of many files, those that describe it: they stand for all of them."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box inside the shape."""
