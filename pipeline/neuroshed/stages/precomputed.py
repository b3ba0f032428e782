"""A volume as Neuroglancer's precomputed format: all levels that it has, one block a file."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Literal

import numpy as np

from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Step
from neuroshed.stages.passes import Making
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.levels import factor_of, is_labels, open_levels
from neuroshed.storage.locations import Location
from neuroshed.storage.precomputed import INFO_FILE, Encoding, Scale, encode_shard, info
from neuroshed.storage.volumes import Volume, open_volume

IMAGES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32")
"""Types of voxels that the format has."""
PICTURES = {"png": ("uint8", "uint16"), "jpeg": ("uint8",)}
CLOSE = 0.01
"""In voxels: an offset that is nearer to a whole number is one."""


class Precomputed(Making):
    """Each level is written from the volume's own; none is computed."""

    kind: Literal["precomputed"] = "precomputed"
    given: Location
    identity: dict[str, Any]
    """What the volume was when this was planned."""
    encoding: Encoding
    scales: tuple[Scale, ...]
    channels: int
    dtype: str
    """Of what is written."""

    @classmethod
    def of(
        cls,
        run_folder: Location,
        given: Location,
        name: str,
        *,
        labels: bool | None = None,
        encoding: Encoding | None = None,
        voxel_offset: Vec | None = None,
    ) -> Precomputed:
        """Plan an export. `encoding` of an image is raw (compressed by gzip) unless it is png or jpeg.

        Raises `InputError` for a volume that the format cannot hold, `WorkflowError` for an `encoding` that does not
        fit, or an offset of the volume that is no whole number of voxels if there is no `voxel_offset`.
        """
        levels = [*open_levels(given)]
        finest = levels[0]
        segmentation = is_labels(finest.dtype) if labels is None else labels
        used, dtype = _encoding(finest, encoding, segmentation=segmentation)
        offset = voxel_offset or _voxel_offset(finest)
        return cls(
            run_folder=run_folder,
            given=given,
            identity=volume_identity(finest),
            name=name,
            encoding=used,
            scales=tuple(_scale(finest, level, offset) for level in levels),
            channels=finest.channels or 1,
            dtype=dtype,
        )

    @property
    def _voxel_bytes(self) -> int:
        return np.dtype(self.dtype).itemsize * self.channels

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """A pass for each level; all that they read is there."""
        return tuple(
            Step(f"level{number}", Grid(Box.of_shape(scale.shape), scale.shard_shape(self._voxel_bytes)))
            for number, scale in enumerate(self.scales)
        )

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the volume's."""
        return (*super().marks, self.target / INFO_FILE)

    def prepare(self) -> None:
        """Write what the volume says of itself."""
        for scale in self.scales:
            (self.target / scale.key).make_folder()
        (self.target / INFO_FILE).put(json.dumps(self._told, indent=2).encode())

    @property
    def _told(self) -> dict[str, Any]:
        return info(self.scales, self.encoding, np.dtype(self.dtype), self.channels)

    def outputs(self, step: str, index: Vec) -> tuple[Location, ...]:
        """The file of a block."""
        return (self.target / self._file(step, index),)

    def _file(self, step: str, index: Vec) -> str:
        return self.scales[_number(step)].shard_file(index, self._voxel_bytes)

    @cached_property
    def _opened(self) -> dict[int, Volume]:
        return {}

    def _level(self, number: int) -> Volume:
        if number not in self._opened:
            self._opened[number] = open_volume(self.given, level=number)
        return self._opened[number]

    def run(self, step: str, index: Vec) -> Done:
        """Read a block and put its file."""
        number, box = _number(step), self.writes(step, index)
        with unchanged(self._level(0), self.identity):
            data = self._level(number).read(box).astype(self.dtype, copy=False)
        name = self._file(step, index)
        (self.target / name).put(encode_shard(self._told, number, box.start, data, name))
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as read, turned round, encoded, and all of that compressed."""
        number = _number(step)
        shape = self.steps[number].grid.block_shape
        z, y, x = (min(a, b) for a, b in zip(shape, self.scales[number].shape, strict=True))
        read = open_volume(self.given, level=number).read_bytes((z, y, x), self.channels)
        return (32 << 20) + read + 4 * z * y * x * self._voxel_bytes


def _number(step: str) -> int:
    return int(step.removeprefix("level"))


def _encoding(volume: Volume, encoding: Encoding | None, *, segmentation: bool) -> tuple[Encoding, str]:
    """How voxels are written, and as which type."""
    name = volume.dtype.name
    if segmentation:
        if volume.dtype.kind != "u" or volume.channels is not None:
            raise InputError(
                f"{volume.path} holds {name} with {volume.channels or 1} channels; segmentations are "
                "unsigned integers of one, write others with `--image`"
            )
        if encoding not in (None, "compressed_segmentation"):
            raise WorkflowError(f"encoding {encoding} is one of images; segmentations are compressed_segmentation")
        return "compressed_segmentation", name if volume.dtype.itemsize >= 4 else "uint32"
    if name not in IMAGES:
        raise InputError(f"{volume.path} holds {name}; precomputed images hold {', '.join(IMAGES)}")
    used: Encoding = encoding or "raw"
    channels = volume.channels or 1
    fits = used == "raw" or (channels == 1 and name in PICTURES.get(used, ()))
    if not fits:
        raise WorkflowError(f"encoding {used} is none for an image of {name} with {channels} channels; raw is")
    return used, name


def _voxel_offset(volume: Volume) -> Vec:
    exact = [place / size for place, size in zip(volume.offset, volume.voxel_size, strict=True)]
    z, y, x = (round(place) for place in exact)
    if any(abs(place - whole) > CLOSE for place, whole in zip(exact, (z, y, x), strict=True)):
        raise WorkflowError(
            f"{volume.path} lies at {list(volume.offset)} nm, no whole number of its voxels of "
            f"{list(volume.voxel_size)} nm, and precomputed volumes can lie nowhere else; give `--voxel-offset Z Y X`"
        )
    return z, y, x


def _scale(finest: Volume, level: Volume, offset: Vec) -> Scale:
    """A level. Its first voxel stands for the first ones of the volume, so it lies where the nearest of its own whole
    voxels is.
    """
    z, y, x = (round(place / f) for place, f in zip(offset, factor_of(finest, level), strict=True))
    return Scale(shape=level.shape, resolution=level.voxel_size, voxel_offset=(z, y, x))
