"""Levels of a volume, each from the one before: the mean of an image, the most frequent of labels.

They grow beside level 0, in the volume itself, and readers are told of them when all are whole. Grids are those of
level 0: a block of a level is the box of voxels that it stands for, so it needs what is done in that box, no more.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid, Vec, mul
from neuroshed.kernels import downsample
from neuroshed.stages.base import Done, Need, Stage, Step
from neuroshed.stages.copy import Copy
from neuroshed.stages.imports import Import
from neuroshed.stages.segment import Segment
from neuroshed.storage.identity import volume_identity
from neuroshed.storage.inspection import SAMPLE_SIDE, SAMPLES, display_window
from neuroshed.storage.levels import (
    announce_levels,
    create_level,
    is_labels,
    level_factors,
    level_shards,
    smaller_box,
    total_factor,
)
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume

TELL = "tell"
FIXED_BYTES = 64 << 20
"""What a first block takes beside its voxels: compiled kernels, codecs and their threads."""


class Pyramid(Stage):
    """Levels 1, 2, ... of the volume that `source` writes, or of one that is `given`.

    Voxels of level 0 that lie outside the region are 0, as they read. So the levels follow from the volume alone.
    """

    kind: Literal["pyramid"] = "pyramid"
    source: Annotated[Copy | Import | Segment, Field(discriminator="kind")] | None = None
    given: Location | None = None
    """Instead of a source: a volume of ours that is there already."""
    identity: dict[str, Any] | None = None
    """What the given one was when this was planned."""
    labels: bool
    """Whether voxels are labels."""
    factors: tuple[Vec, ...]
    """By how much each level is smaller than the one before, z y x."""
    region: Box
    """The part of level 0 outside which nothing is written."""
    volume_shape: Vec
    shard_shape: Vec
    """Of level 0."""
    dtype: str

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "given"})

    @classmethod
    def of(
        cls, run_folder: Location, source: Copy | Import | Segment, pyramid: bool | int, labels: bool | None = None
    ) -> Pyramid | None:
        """Of what a stage will write, with as many levels as it takes (True), or so many; None if there is nothing to
        add: no level, and no image whose range of values viewers are told.
        """
        if isinstance(source, Segment):
            below = source.agglomerate.fragments
            shape, size, region = below.source.volume_shape, below.source.voxel_size, below.region
            shards, dtype = below.shard_shape, "uint64"
        else:
            shape, size, region = source.volume_shape, source.voxel_size, Box.of_shape(source.volume_shape)
            shards, dtype = source.block_shape, source.dtype
        factors = level_factors(shape, size, None if pyramid is True else int(pyramid))
        if np.dtype(dtype).kind not in "ui":
            raise InputError(f"the volume holds {dtype}; levels are made of integers")
        found = is_labels(np.dtype(dtype)) if labels is None else labels
        if not factors and found:
            return None
        return cls(
            run_folder=run_folder,
            source=source,
            labels=found,
            factors=tuple(factors),
            region=region,
            volume_shape=shape,
            shard_shape=shards,
            dtype=dtype,
        )

    @classmethod
    def of_volume(cls, run_folder: Location, path: Location, labels: bool | None, levels: int | None) -> Pyramid:
        """Of a volume that is there. Raises `InputError` if it is none to which levels can be added."""
        volume = open_volume(path)
        plain = volume.array.ndim - 3 == (volume.channels is not None) and volume.order == (*range(volume.array.ndim),)
        if volume.array.metadata.zarr_format != 3 or volume.array.basename != "0" or not plain:
            raise InputError(
                f"{path} is not laid out as neuroshed writes volumes (OME-Zarr 0.5, axes z, y, x); make one that is "
                "with `neuroshed export`"
            )
        if volume.dtype.kind not in "ui":
            raise InputError(f"{path} holds {volume.dtype}; levels are made of integers")
        return cls(
            run_folder=run_folder,
            given=path,
            identity=volume_identity(volume),
            labels=is_labels(volume.dtype) if labels is None else labels,
            factors=tuple(level_factors(volume.shape, volume.voxel_size, levels)),
            region=volume.box,
            volume_shape=volume.shape,
            shard_shape=volume.shard_shape,
            dtype=volume.dtype.name,
        )

    @property
    def title(self) -> str:
        """What sets this stage apart from those of other volumes."""
        name = self.source.title if self.source else "volume"
        return f"{self.kind} {name.partition(' ')[2] or name}"

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """A pass for each level, and one block at the end that tells readers of them."""
        steps = []
        before = [Need(self.source.fingerprint, self.source.steps[-1].name)] if self.source else []
        for number in range(1, len(self.factors) + 1):
            total = total_factor(self.factors[:number])
            block = mul(self._shards(number), total)
            steps.append(Step(f"level{number}", Grid(self.region, block), tuple(before)))
            before = [Need(self.fingerprint, f"level{number}")]
        return (*steps, Step(TELL, Grid(self.region, self.region.stop), tuple(before)))

    @property
    def path(self) -> Location:
        """The volume."""
        if self.source is None:
            assert self.given is not None
            return self.given
        return self.source.target if isinstance(self.source, Import | Copy) else self.source.path

    @property
    def _written_to(self) -> Location:
        """Where levels are written: in the volume, but for those that are computed once more to be compared."""
        return self.path if self._standing is None else self.folder / self.path.name

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the metadata of each level."""
        levels = range(1, len(self.factors) + 1)
        return (*super().marks, *(self.path / f"{number}/zarr.json" for number in levels))

    def has_tables(self, step: str) -> bool:
        """None."""
        return False

    @cached_property
    def _finest(self) -> Volume:
        if self.source is None:
            return open_volume(self.path)
        return self.source.written(self.source.steps[-1].name)[0]

    @cached_property
    def _levels(self) -> dict[tuple[Location, int], Volume]:
        return {}

    def _level(self, number: int, path: Location) -> Volume:
        """A level, created in the volume at `path` if it is not there; 0 is the finest."""
        if number == 0:
            return self._finest
        if (path, number) not in self._levels:
            total = total_factor(self.factors[:number])
            level = create_level(self._finest, number, total, self._shards(number), path)
            self._levels[path, number] = level
        return self._levels[path, number]

    def _shards(self, number: int) -> Vec:
        whole = Box.of_shape(self.volume_shape)
        return level_shards(smaller_box(whole, total_factor(self.factors[:number])).shape, self.shard_shape)

    def _box(self, number: int, box: Box) -> Box:
        """The voxels of a level that stand for a box of level 0."""
        return smaller_box(box, total_factor(self.factors[:number]))

    def writes(self, step: str, index: Vec) -> Box:
        """The voxels of its level that a block writes."""
        box = super().writes(step, index)
        return box if step == TELL else self._box(_number(step), box)

    def written(self, step: str) -> tuple[Volume, ...]:
        """The step's level."""
        return () if step == TELL else (self._level(_number(step), self._written_to),)

    def run(self, step: str, index: Vec) -> Done:
        """Compute a block of a level, or tell readers of all levels."""
        if step == TELL:
            window = None if self.labels or self._finest.channels is not None else display_window(self._finest)
            if self._standing is None:
                announce_levels(self.path, self.factors, "mode" if self.labels else "mean", window)
            return Done(0)
        number = _number(step)
        box = self.writes(step, index)
        level, above = self._level(number, self._written_to), self._level(number - 1, self.path)
        lead = () if level.channels is None else (level.channels,)
        data = np.empty((*lead, *box.shape), level.dtype)
        for channel in range(level.channels or 1):
            plain = data[channel] if lead else data
            for part in self._parts(number, box):
                plain[part.slices(box.start)] = self._smaller(number, above, part, channel if lead else None)
        level.write(box, data, self._box(number, self.region))
        return Done(box.size)

    def _parts(self, number: int, box: Box) -> list[Box]:
        """Parts of a block that each come from about one shard of the level before."""
        z, y, x = (
            max(shard // f, 1) for shard, f in zip(self._shards(number - 1), self.factors[number - 1], strict=True)
        )
        parts = Grid(box, (z, y, x))
        return [parts.block_box(index) for index in parts]

    def _smaller(self, number: int, above: Volume, part: Box, channel: int | None) -> npt.NDArray[Any]:
        factor = self.factors[number - 1]
        windows = Box(mul(part.start, factor), mul(part.stop, factor)).intersect(above.box)
        inside = windows.intersect(self._box(number - 1, self.region))
        plain = np.zeros(windows.shape, above.dtype)
        for box in self._written_parts(number - 1, inside):
            found = above.read(box, None if channel is None else slice(channel, channel + 1))
            plain[box.slices(windows.start)] = found if channel is None else found[0]
        return downsample.mode(plain, factor) if self.labels else downsample.mean(plain, factor)

    def _written_parts(self, number: int, box: Box) -> list[Box]:
        """Those parts of a box of a level in which there is something to read; elsewhere it is 0."""
        if number or not isinstance(self.source, Segment):
            return [box]
        blocks = self.source.agglomerate.fragments
        there = filter(blocks.is_there, blocks.grid.touching(box))
        return [blocks.grid.block_box(index).intersect(box) for index in there]

    def shards(self, step: str) -> Vec | None:
        """A block of a level is one."""
        if step == TELL:
            return None
        return mul(self._shards(_number(step)), total_factor(self.factors[: _number(step)]))

    @property
    def output_bytes(self) -> int:
        """Of all levels."""
        item = np.dtype(self.dtype).itemsize
        return item * sum(self._box(number, self.region).size for number in range(1, len(self.factors) + 1))

    def memory_bytes(self, step: str) -> int:
        """The block, its padded shard and its compressed copy; a part of the level before as read, and once more; the
        samples of an image.
        """
        item = np.dtype(self.dtype).itemsize
        if step == TELL:
            return FIXED_BYTES + 4 * item * SAMPLES * SAMPLE_SIDE**3
        number = _number(step)
        return FIXED_BYTES + item * (3 * _size(self._shards(number)) + 5 * _size(self._shards(number - 1)))


def _number(step: str) -> int:
    return int(step.removeprefix("level"))


def _size(shape: Vec) -> int:
    return Box.of_shape(shape).size
