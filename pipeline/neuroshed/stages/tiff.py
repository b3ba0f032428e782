"""A volume as a folder of TIFF sections, and these as one file."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Need, Step
from neuroshed.stages.passes import Making
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.tiffs import (
    DTYPES,
    Compression,
    NewSection,
    part_shape,
    read_section,
    section_name,
    write_stack,
)
from neuroshed.storage.volumes import Volume, open_volume

PART_BYTES = 128 * 2**20
"""A slab is read in parts of about so many bytes, or of a shard if that is more."""
DEEPEST = 256
"""Sections that are written at a time, at most."""


class Tiff(Making):
    """Slabs as deep as the volume's shards, so that each shard is read once; a file for each section."""

    kind: Literal["tiff"] = "tiff"
    given: Location
    identity: dict[str, Any]
    """What the volume was when this was planned."""
    volume_shape: Vec
    voxel_size: tuple[float, float, float]
    shard_shape: Vec
    dtype: str
    """Of what is written."""

    @classmethod
    def of(cls, run_folder: Location, given: Location, name: str) -> Tiff:
        """Plan an export. Raises `InputError` for a volume that TIFFs cannot hold."""
        volume = open_volume(given)
        # Labels of 64 bits are written as 32 where all fit.
        dtype = "uint32" if volume.dtype == np.uint64 else volume.dtype.name
        if dtype not in DTYPES or volume.channels is not None:
            raise InputError(
                f"{given} holds {volume.dtype.name} with {volume.channels or 1} channels; TIFF sections hold one of "
                f"{', '.join(DTYPES)}, use another format"
            )
        z, y, x = volume.shard_shape
        return cls(
            run_folder=run_folder,
            given=given,
            identity=volume_identity(volume),
            name=name,
            volume_shape=volume.shape,
            voxel_size=volume.voxel_size,
            shard_shape=(min(z, DEEPEST), y, x),
            dtype=dtype,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over slabs of a volume that is there already."""
        _, y, x = self.volume_shape
        return (Step("", Grid(Box.of_shape(self.volume_shape), (self.shard_shape[0], y, x))),)

    def prepare(self) -> None:
        """Make the folder."""
        self.target.make_folder()

    def outputs(self, step: str, index: Vec) -> tuple[Location, ...]:
        """The files of a slab's sections."""
        box = self.writes(step, index)
        names = (section_name(z, self.volume_shape[0]) for z in range(box.start[0], box.stop[0]))
        return tuple(self.target / name for name in names)

    @cached_property
    def _source(self) -> Volume:
        return open_volume(self.given)

    @property
    def _part_shape(self) -> Vec:
        return part_shape(self.shard_shape, self.volume_shape[1:], PART_BYTES // np.dtype(self.dtype).itemsize)

    def run(self, step: str, index: Vec) -> Done:
        """Read a slab part by part, and write its sections, which appear at the end."""
        box = self.writes(step, index)
        dtype = np.dtype(self.dtype)
        with ExitStack() as stack:
            # Left last: sections appear only if what was read is still there.
            files = [stack.enter_context(file.replacing()) for file in self.outputs(step, index)]
            sections = [NewSection(file, self.volume_shape[1:], dtype, self.voxel_size) for file in files]
            parts = Grid(box, self._part_shape)
            stack.enter_context(unchanged(self._source, self.identity))
            for place in parts:
                part = parts.block_box(place)
                data = self._narrowed(self._source.read(part), part)
                for section, plane in zip(sections, data, strict=True):
                    section.write(part.start[1:], plane)
        return Done(box.size)

    def _narrowed(self, data: npt.NDArray[Any], box: Box) -> npt.NDArray[Any]:
        limit = np.iinfo(np.uint32).max
        if data.dtype == np.uint64 and data.max() > limit:
            first = np.argwhere(data > limit)[0] + box.start
            raise BlockError(
                f"{self.given} has labels that need more than the 32 bits that readers of TIFF take, the first at "
                f"voxel {first.tolist()}; export it as ome-zarr or precomputed"
            )
        return data.astype(self.dtype, copy=False)

    def memory_bytes(self, step: str) -> int:
        """A part as read, as written, and its rows once more."""
        z, y, x = (min(a, b) for a, b in zip(self._part_shape, self.volume_shape, strict=True))
        read = open_volume(self.given).read_bytes((z, y, x))
        return (16 << 20) + read + 3 * z * y * x * np.dtype(self.dtype).itemsize

    def report(self) -> dict[str, Any]:
        """Where the sections are."""
        return {"sections": str(self.target)}


class TiffStack(Making):
    """Sections, once all are there, as the pages of one file, which has one writer: one block."""

    kind: Literal["tiff-stack"] = "tiff-stack"
    sections: Tiff
    compression: Compression

    @property
    def steps(self) -> tuple[Step, ...]:
        """One block of all sections."""
        shape = self.sections.volume_shape
        return (Step("", Grid(Box.of_shape(shape), shape), (Need(self.sections.fingerprint, ""),)),)

    def outputs(self, step: str, index: Vec) -> tuple[Location, ...]:
        """The file."""
        return (self.target,)

    def run(self, step: str, index: Vec) -> Done:
        """Write page after page; the file appears at the end."""
        made = self.sections
        files = (file for slab in made.steps[0].grid for file in made.outputs("", slab))
        with self.target.replacing() as file:
            pages = map(read_section, files)
            write_stack(file, pages, made.volume_shape, np.dtype(made.dtype), made.voxel_size, self.compression)
        return Done(self.writes(step, index).size)

    def memory_bytes(self, step: str) -> int:
        """A page as it is, and compressed."""
        _, y, x = self.sections.volume_shape
        return (64 << 20) + 3 * y * x * np.dtype(self.sections.dtype).itemsize

    def report(self) -> dict[str, Any]:
        """Where the file is."""
        return {"stack": str(self.target)}
