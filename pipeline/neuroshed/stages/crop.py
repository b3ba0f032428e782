"""A part of a volume as a volume of its own: each block is read, and written where it lies in the part."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar, Literal

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid, Vec, add
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.passes import check_type, even_blocks, voxel_bytes
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, create_volume, open_volume


class Crop(Stage):
    """A box of a volume, with its channels, type and place in space, written as an OME-Zarr volume."""

    kind: Literal["crop"] = "crop"
    source: Location
    box: Box
    """The part, in voxels of the source."""
    name: str
    """Name of the new volume, as it stands in its metadata."""
    block_shape: Vec
    """Sides of a block, which is one shard."""
    identity: dict[str, Any]
    """What the source was when the crop was planned."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "source"})

    @classmethod
    def of(
        cls, run_folder: Location, source: Location, name: str, box: Box | None = None, block_shape: Vec | None = None
    ) -> Crop:
        """Plan a crop. Raises `InputError` for a source that cannot be copied, and for a box that is not in it."""
        volume = open_volume(source)
        check_type(volume)
        part = volume.box if box is None else box
        if part.empty or not volume.box.contains(part):
            raise InputError(
                f"box {part} is not inside volume {volume.path} of shape {list(volume.shape)}; give another box"
            )
        return cls(
            run_folder=run_folder,
            source=volume.path,
            box=part,
            name=name,
            block_shape=block_shape or even_blocks(part.shape, voxel_bytes(volume)),
            identity=volume_identity(volume),
        )

    @property
    def grid(self) -> Grid:
        """The blocks of the new volume."""
        return Grid(Box.of_shape(self.box.shape), self.block_shape)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass that needs nothing."""
        return (Step("", self.grid),)

    @cached_property
    def opened(self) -> Volume:
        """The source."""
        return open_volume(self.source)

    @property
    def target(self) -> Location:
        """Where the new volume grows, in the stage's own folder: the caller moves it when it is whole."""
        return self.folder / self.name

    @cached_property
    def volume(self) -> Volume:
        """The new volume."""
        source = self.opened
        z, y, x = (o + s * n for o, s, n in zip(source.offset, source.voxel_size, self.box.start, strict=True))
        return create_volume(
            self.target,
            shape=self.box.shape,
            dtype=source.dtype.newbyteorder("="),
            shard_shape=self.block_shape,
            voxel_size=source.voxel_size,
            offset=(z, y, x),
            voxel_offsets=source.voxel_offsets,
            channels=source.channels,
            whole=True,
        )

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.target)

    def has_tables(self, step: str) -> bool:
        """None."""
        return False

    def written(self, step: str) -> tuple[Volume, ...]:
        """The new volume."""
        return (self.volume,)

    def run(self, step: str, index: Vec) -> Done:
        """Read and write one block."""
        box = self.grid.block_box(index)
        with unchanged(self.opened, self.identity):
            data = self.opened.read(Box(add(box.start, self.box.start), add(box.stop, self.box.start)))
        self.volume.write(box, data)
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as read, and its padded shard as it is encoded."""
        z, y, x = map(min, self.block_shape, self.box.shape)
        read = self.opened.read_bytes((z, y, x), self.opened.channels or 1)
        return read + 2 * math.prod(self.block_shape) * voxel_bytes(self.opened)

    @property
    def output_bytes(self) -> int:
        """All voxels of all channels."""
        return self.box.size * voxel_bytes(self.opened)

    def report(self) -> dict[str, Any]:
        """Where the new volume is."""
        return {"volume": str(self.target)}
