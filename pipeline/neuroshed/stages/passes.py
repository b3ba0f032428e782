"""What stages share that pass once over volumes of others: their one step, the volume that some of them make, blocks
that fit files, and types that are numbers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from neuroshed.errors import InputError
from neuroshed.geometry import Grid, Vec
from neuroshed.stages.base import Stage, Step
from neuroshed.storage.growing import Growing
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import CHUNK_SIDE
from neuroshed.storage.volumes import Volume

BLOCK_BYTES = 128 * 2**20
"""A block has at most about this many bytes, as long as files of the volume have."""
SIDE = 4 * CHUNK_SIDE
"""And about this many voxels a side."""


class Pass(Stage):
    """A stage of one step over data that is there already."""

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The blocks."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass that needs nothing."""
        return (Step("", self.grid),)


class Making(Stage):
    """A stage that makes something new for a user, in a folder of its own, and no tables."""

    name: str
    """Of what is made, as it stands in its metadata if it has any."""

    @property
    def target(self) -> Location:
        """Where it grows: in the stage's own folder, from where the caller moves it when it is whole. In a bucket,
        where nothing can be moved: beside the run folder, with its metadata in the stage's own.
        """
        own = self.folder / self.name
        return own if own.is_local else Growing(self.run_folder.parent / self.name, own)

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and what is made."""
        return (*super().marks, self.target)

    def has_tables(self, step: str) -> bool:
        """None."""
        return False

    def report(self) -> dict[str, Any]:
        """Where it is."""
        return {"volume": str(self.target)}


class NewVolume(Pass, Making):
    """A stage that makes a volume of ours."""

    @property
    @abstractmethod
    def volume(self) -> Volume:
        """The new volume."""

    def written(self, step: str) -> tuple[Volume, ...]:
        """The new volume."""
        return (self.volume,)


def check_type(volume: Volume) -> None:
    """Raise `InputError` for voxels that are no numbers."""
    if volume.dtype.kind not in "buif":
        raise InputError(f"{volume.path} holds {volume.dtype}; needed are integers, floats or bool: convert it first")


def voxel_bytes(volume: Volume) -> int:
    """Bytes of a voxel with all its channels."""
    return (volume.channels or 1) * volume.dtype.itemsize


def even_blocks(shape: Vec, voxel: int) -> Vec:
    """Shards for a new volume of a shape, made of our chunks, no larger than they must be.

    >>> even_blocks((40, 1000, 1000), 1), even_blocks((1000, 1000, 1000), 48)
    ((64, 256, 256), (128, 128, 128))
    """
    z, y, x = (min(SIDE, -(-side // CHUNK_SIDE) * CHUNK_SIDE) for side in shape)
    sides = [z, y, x]
    for axis in (0, 2, 1) * 4:
        if voxel * math.prod(sides) > BLOCK_BYTES and sides[axis] > CHUNK_SIDE:
            sides[axis] //= 2
            sides[axis] = -(-sides[axis] // CHUNK_SIDE) * CHUNK_SIDE
    return sides[0], sides[1], sides[2]


def blocks_of(unit: Vec, voxel: int) -> Vec:
    """Blocks made of whole units: chunks or files.

    >>> blocks_of((64, 64, 64), 1), blocks_of((1, 512, 512), 1), blocks_of((512, 512, 512), 8)
    ((256, 256, 256), (256, 512, 512), (512, 512, 512))
    """
    sides = list(unit)
    while True:
        small = min(range(3), key=sides.__getitem__)
        if 2 * sides[small] > SIDE or 2 * voxel * math.prod(sides) > BLOCK_BYTES:
            return sides[0], sides[1], sides[2]
        sides[small] *= 2
