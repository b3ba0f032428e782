"""A volume, written once more as we write volumes."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np

from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.storage.identity import volume_identity
from neuroshed.storage.labels import LABELS
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import CHUNK_SIDE
from neuroshed.storage.volumes import Volume, create_volume, open_volume

BLOCK_SIDE = 4 * CHUNK_SIDE
NOWHERE = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
"""Voxel size and offset of volumes that do not say theirs."""
SEGMENTATION = "segmentation"
"""Name of a segmentation among the labels of an image."""


class Copy(Stage):
    """The finest level of a volume, in a file of at most 256 voxels a side for each block."""

    kind: Literal["copy"] = "copy"
    given: Location
    identity: dict[str, Any]
    """What the volume was when this was planned."""
    name: str
    """Place of the new volume in the stage's folder."""
    block_shape: Vec
    volume_shape: Vec
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    dtype: str
    """Without byte order, which is this machine's."""
    image: Copy | None = None
    """An image in whose group of labels the copy lies."""

    @classmethod
    def of(cls, run_folder: Location, given: Location, name: str) -> Copy:
        """Plan a copy. Raises `InputError` if the volume cannot be read."""
        volume = open_volume(given)
        if volume.channels is not None and volume.voxel_offsets is None:
            raise InputError(
                f"{given} has {volume.channels} channels; copied are images, labels and affinities of ours"
            )
        z, y, x = (min(-(-side // CHUNK_SIDE) * CHUNK_SIDE, BLOCK_SIDE) for side in volume.shape)
        return cls(
            run_folder=run_folder,
            given=given,
            identity=volume_identity(volume),
            name=name,
            block_shape=(z, y, x),
            volume_shape=volume.shape,
            voxel_size=volume.voxel_size,
            offset=volume.offset,
            dtype=volume.dtype.name,
        )

    @classmethod
    def beside(cls, image: Copy, given: Location) -> Copy:
        """Plan the copy of a segmentation among the labels of the copy of an image. One that does not say where it
        lies, as it comes from affinities that did not, lies where the image does.

        Raises `WorkflowError` unless it has the same voxels, `InputError` if it cannot be read.
        """
        copy = cls.of(image.run_folder, given, SEGMENTATION)
        if (copy.voxel_size, copy.offset) == NOWHERE:
            copy = copy.model_copy(update={"voxel_size": image.voxel_size, "offset": image.offset})
        for word in ("volume_shape", "voxel_size", "offset"):
            mine, other = getattr(copy, word), getattr(image, word)
            if not np.allclose(mine, other, rtol=1e-4, atol=1e-3):
                name = word.replace("_", " ")
                raise WorkflowError(
                    f"{given} has {name} {list(mine)}, the image {image.given} has {list(other)}; labels have the "
                    "voxels of their image: name that one, or export the segmentation by itself"
                )
        return copy.model_copy(update={"image": image, "block_shape": image.block_shape})

    @property
    def title(self) -> str:
        """The stage, and where the copy will be."""
        return f"{self.kind} {self.name}"

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over a volume that is there already."""
        return (Step("", Grid(Box.of_shape(self.volume_shape), self.block_shape)),)

    @property
    def target(self) -> Location:
        """The copy, in the stage's own folder: the caller moves it when it is whole."""
        return self.folder / self.name if self.image is None else self.image.target / LABELS / self.name

    @cached_property
    def _source(self) -> Volume:
        return open_volume(self.given)

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
            voxel_offsets=self._source.voxel_offsets,
        )

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the copy."""
        return (*super().marks, self.target)

    def has_tables(self, step: str) -> bool:
        """None."""
        return False

    def written(self, step: str) -> tuple[Volume, ...]:
        """The copy."""
        return (self.volume,)

    def run(self, step: str, index: Vec) -> Done:
        """Read and write one block."""
        (only,) = self.steps
        box = only.grid.block_box(index)
        self.volume.write(box, self._source.read(box))
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as read, and its padded shard with its compressed copy."""
        padded = Box.of_shape(self.block_shape).size * (len(self._source.voxel_offsets or ()) or 1)
        return (
            self._source.read_bytes(self.block_shape, self._source.channels or 1)
            + 3 * padded * np.dtype(self.dtype).itemsize
        )

    def report(self) -> dict[str, Any]:
        """Where the copy is."""
        return {"volume": str(self.target)}
