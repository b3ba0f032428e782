"""A volume, or a part of one, written once more as we write volumes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec, add
from neuroshed.stages.base import Done
from neuroshed.stages.passes import NewVolume, check_type, even_blocks, voxel_bytes
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.labels import LABELS
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, create_volume, open_volume

NOWHERE = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
"""Voxel size and offset of volumes that do not say theirs."""
SEGMENTATION = "segmentation"
"""Name of a segmentation among the labels of an image."""


class Copy(NewVolume):
    """A box of the finest level of a volume, with its channels, type and place in space."""

    kind: Literal["copy"] = "copy"
    source: Location
    box: Box
    """The part, in voxels of the source."""
    block_shape: Vec
    """Sides of a block, which is one shard."""
    identity: dict[str, Any]
    """What the source was when this was planned."""
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    """Place of the copy's first voxel in nm, z y x."""
    dtype: str
    """Without byte order, which is this machine's."""
    image: Copy | None = None
    """An image in whose group of labels the copy lies."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "source"})

    @classmethod
    def of(
        cls, run_folder: Location, source: Location, name: str, box: Box | None = None, block_shape: Vec | None = None
    ) -> Copy:
        """Plan a copy. Raises `InputError` for a source that cannot be copied, and for a box that is not in it."""
        volume = open_volume(source)
        check_type(volume)
        part = volume.box if box is None else box
        if part.empty or not volume.box.contains(part):
            raise InputError(
                f"box {part} is not inside volume {volume.path} of shape {list(volume.shape)}; give another box"
            )
        z, y, x = (o + s * n for o, s, n in zip(volume.offset, volume.voxel_size, part.start, strict=True))
        return cls(
            run_folder=run_folder,
            source=volume.path,
            box=part,
            name=name,
            block_shape=block_shape or even_blocks(part.shape, voxel_bytes(volume)),
            identity=volume_identity(volume),
            voxel_size=volume.voxel_size,
            offset=(z, y, x),
            dtype=volume.dtype.name,
        )

    @classmethod
    def beside(cls, image: Copy, source: Location) -> Copy:
        """Plan the copy of a segmentation among the labels of the copy of an image. One that does not say where it
        lies, as it comes from affinities that did not, lies where the image does.

        Raises `WorkflowError` unless it has the same voxels, `InputError` if it cannot be read.
        """
        copy = cls.of(image.run_folder, source, SEGMENTATION)
        if (copy.voxel_size, copy.offset) == NOWHERE:
            copy = copy.model_copy(update={"voxel_size": image.voxel_size, "offset": image.offset})
        for word in ("volume_shape", "voxel_size", "offset"):
            mine, other = getattr(copy, word), getattr(image, word)
            if not np.allclose(mine, other, rtol=1e-4, atol=1e-3):
                name = word.replace("_", " ")
                raise WorkflowError(
                    f"{source} has {name} {list(mine)}, the image {image.source} has {list(other)}; labels have the "
                    "voxels of their image: name that one, or export the segmentation by itself"
                )
        return copy.model_copy(update={"image": image, "block_shape": image.block_shape})

    @property
    def title(self) -> str:
        """The stage, and where the copy will be."""
        return f"{self.kind} {self.name}"

    @property
    def volume_shape(self) -> Vec:
        """Voxels of the copy, z y x."""
        return self.box.shape

    @property
    def grid(self) -> Grid:
        """The blocks of the copy."""
        return Grid(Box.of_shape(self.volume_shape), self.block_shape)

    @property
    def target(self) -> Location:
        """The copy, if need be in that of its image."""
        return super().target if self.image is None else self.image.target / LABELS / self.name

    @cached_property
    def opened(self) -> Volume:
        """The source."""
        return open_volume(self.source)

    @cached_property
    def volume(self) -> Volume:
        """The copy."""
        return create_volume(
            self.target,
            shape=self.volume_shape,
            dtype=self.dtype,
            shard_shape=self.block_shape,
            voxel_size=self.voxel_size,
            offset=self.offset,
            voxel_offsets=self.opened.voxel_offsets,
            channels=self.opened.channels,
            whole=True,
        )

    def run(self, step: str, index: Vec) -> Done:
        """Read and write one block."""
        box = self.grid.block_box(index)
        with unchanged(self.opened, self.identity):
            data = self.opened.read(Box(add(box.start, self.box.start), add(box.stop, self.box.start)))
        self.volume.write(box, data)
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as read, and its padded shard with its compressed copy."""
        z, y, x = map(min, self.block_shape, self.volume_shape)
        read = self.opened.read_bytes((z, y, x), self.opened.channels or 1)
        return read + 3 * math.prod(self.block_shape) * voxel_bytes(self.opened)

    @property
    def output_bytes(self) -> int:
        """All voxels of all channels."""
        return self.box.size * voxel_bytes(self.opened)
