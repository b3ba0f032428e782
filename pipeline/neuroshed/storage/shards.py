"""The files of a volume's voxels: which there are, what each holds, and whether it can be read.

A file is a shard, or a chunk of an array without shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage.disk_arrays import told
from neuroshed.storage.locations import Location
from neuroshed.storage.many import sizes
from neuroshed.storage.volumes import Volume

FaultKind = Literal["missing", "empty", "damaged", "unreadable"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that holds `box` of a volume, in voxels, and of its channels those of a half-open range."""

    place: Location
    box: Box
    channels: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What is the matter with a file: there is none, it has no bytes, they cannot be decoded, or not be had."""

    file: DataFile
    kind: FaultKind
    reason: str = ""


def root_of(volume: Volume) -> Location:
    """The folder of the array."""
    return volume.path / volume.array.path if volume.array.path else volume.path


def data_files(volume: Volume, box: Box) -> Iterator[DataFile]:
    """The files that hold voxels of a box, whether they are there or not."""
    array, grid = volume.array, Grid(volume.box, volume.shard_shape)
    # Axes before channels have one voxel, and so one file.
    axes, lead = volume.order[-3:], volume.order[:-3]
    parts: list[tuple[int, int] | None] = [None]
    if volume.channels is not None:
        step = (array.shards or array.chunks)[lead[-1]]
        parts = [(start, min(start + step, volume.channels)) for start in range(0, volume.channels, step)]
    for index in grid.touching(box):
        for number, channels in enumerate(parts):
            key = [0] * array.ndim
            for axis, place in zip(axes, index, strict=True):
                key[axis] = place
            if channels is not None:
                key[lead[-1]] = number
            name = array.metadata.encode_chunk_key(tuple(key))
            yield DataFile(root_of(volume) / name, grid.block_box(index), channels)


def examine(volume: Volume, box: Box, piece: Vec) -> list[Fault]:
    """Read all files of a box, which must hold whole files, and tell of those that are not there or cannot be read.

    At most `piece` is read at a time. Raises `WorkflowError` if the store does not do its work.
    """
    files = list(data_files(volume, box))
    try:
        seen = _with_values(volume, files, box, piece)
    except (BlockError, OSError):
        # One of them cannot be read: each by itself.
        faults = [_not_there(file, size) or _unreadable(volume, file, piece) for file, size in _sized(files)]
    else:
        # To ask a store may take as long as to read, to look at a disk takes nothing.
        suspects = [file for file in files if file.place.is_local or file not in seen]
        faults = [_not_there(file, size) for file, size in _sized(suspects)]
    return [fault for fault in faults if fault is not None]


def _with_values(volume: Volume, files: list[DataFile], box: Box, piece: Vec) -> set[DataFile]:
    """The files in which there is more than one value, and so no fill value everywhere."""
    found = set()
    grid = Grid(box, piece)
    for index in grid:
        part = grid.block_box(index)
        data = volume.read(part)
        for file in files:
            common = file.box.intersect(part)
            lead = () if file.channels is None else (slice(*file.channels),)
            if not common.empty and not _is_constant(data[(*lead, *common.slices(part.start))]):
                found.add(file)
    return found


def _sized(files: list[DataFile]) -> Iterator[tuple[DataFile, int | None]]:
    return zip(files, (size for _, size in sizes(file.place for file in files)), strict=True)


def _unreadable(volume: Volume, file: DataFile, piece: Vec) -> Fault | None:
    grid = Grid(file.box, piece)
    try:
        for index in grid:
            volume.read(grid.block_box(index), None if file.channels is None else slice(*file.channels))
    except BlockError as error:
        return Fault(file, "damaged", told(error.__cause__ or error).removeprefix(f"{file.place}: "))
    except OSError as error:
        return Fault(file, "unreadable", told(error))
    return None


def _not_there(file: DataFile, size: int | None) -> Fault | None:
    if size:
        return None
    return Fault(file, "missing" if size is None else "empty")


def _is_constant(part: npt.NDArray[Any]) -> bool:
    """Whether a part may be nothing but fill values."""
    first = part.flat[0]
    same = part == first if first == first else part != part
    return bool(np.all(same))
