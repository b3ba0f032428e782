"""Foreign formats to a volume: each block is read from the source, converted and written."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done
from neuroshed.stages.passes import NewVolume
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import CHUNK_SIDE
from neuroshed.storage.parts import Part
from neuroshed.storage.sections import CACHE_BYTES
from neuroshed.storage.sources import open_source
from neuroshed.storage.volumes import Volume, create_volume

BLOCK_BYTES = 128 * 2**20
"""A default block has about this many bytes: large enough to be worth a task, small enough for a worker's memory."""
WIDEST_SIDE = 4096
"""Default blocks of sections are at most this wide, so that several workers share a large section."""


class Import(NewVolume):
    """A volume in a format of others, written as an OME-Zarr image or label volume."""

    kind: Literal["import"] = "import"
    source: Location
    dataset: str | None = None
    """Array inside an HDF5 file, an N5 container or a Zarr group, or scale; None: the only one, or the finest."""
    box: Box | None = None
    """The part of the source that is imported; None: all."""
    factor: Vec = (1, 1, 1)
    """Voxels of the source that become one, z y x."""
    labels: bool
    """Whether that is the most frequent of them, or else their mean."""
    voxel_size: tuple[float, float, float]
    """Of the new volume in nm, z y x."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Place of the new volume's first voxel in nm, z y x."""
    block_shape: Vec
    """Sides of a block, which is one shard."""
    intensity: tuple[float, float] | None = None
    """Values that become 0 and 255 of a uint8 volume; None: integers are kept as they are."""
    volume_shape: Vec
    dtype: str
    """Type of the new volume."""
    identity: dict[str, Any]
    """What the source was when the run was planned."""

    @classmethod
    def of(
        cls,
        run_folder: Location,
        source: str | os.PathLike[str] | Location,
        name: str,
        voxel_size: tuple[float, float, float] | None,
        *,
        offset: tuple[float, float, float] | None = None,
        dataset: str | None = None,
        box: Box | None = None,
        downsample: Vec | None = None,
        labels: bool | None = None,
        intensity: tuple[float, float] | None = None,
        block_shape: Vec | None = None,
    ) -> Import:
        """Plan an import; looks at every section's header.

        `voxel_size` and `offset` are the source's, whatever is taken of it; what is left out is taken from the source.
        `labels` None: as `Part.of` has it.

        Raises `InputError` for what cannot be imported.
        """
        opened = open_source(source, dataset, intensity=intensity)
        part = Part.of(opened, box, downsample, labels)
        found = voxel_size or opened.voxel_size
        if found is None:
            raise InputError(f"{opened.path} does not say how large its voxels are; give `--voxel-size Z Y X`, in nm")
        return cls(
            run_folder=run_folder,
            source=opened.path,
            dataset=dataset,
            box=box,
            factor=part.factor,
            labels=part.labels,
            name=name,
            voxel_size=part.voxel_size(found),
            offset=part.offset(found, offset or opened.offset or (0.0, 0.0, 0.0)),
            block_shape=block_shape or default_block_shape(part),
            intensity=intensity,
            volume_shape=part.shape,
            dtype=opened.dtype.name,
            identity=source_identity(opened.path, opened.reader.metadata),
        )

    @property
    def title(self) -> str:
        """The stage, and what is made of the voxels that become one."""
        if self.factor == (1, 1, 1):
            return self.kind
        return f"{self.kind}, {'most frequent label' if self.labels else 'mean'} of {' x '.join(map(str, self.factor))}"

    @property
    def grid(self) -> Grid:
        """The blocks of the new volume."""
        return Grid(Box.of_shape(self.volume_shape), self.block_shape)

    @cached_property
    def part(self) -> Part:
        """What is imported; sections are checked when they are read, as all of them were when the run was planned."""
        metadata = [self.source / name for name in self.identity.get("metadata", ())]
        if source_identity(self.source, metadata) != self.identity:
            raise BlockError(f"{self.source} has changed since the import was planned; import it again to a new target")
        opened = open_source(self.source, self.dataset, intensity=self.intensity, check=False)
        return Part.of(opened, self.box, self.factor, self.labels)

    @cached_property
    def volume(self) -> Volume:
        """The new volume."""
        return create_volume(
            self.target,
            shape=self.volume_shape,
            dtype=self.dtype,
            shard_shape=self.block_shape,
            voxel_size=self.voxel_size,
            offset=self.offset,
            whole=True,
        )

    def run(self, step: str, index: Vec) -> Done:
        """Read, convert and write one block."""
        box = self.grid.block_box(index)
        self.volume.write(box, self.part.read(box))
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as stored, converted and compressed, with the cache of decoded sections or chunks."""
        z, y, x = map(min, self.block_shape, self.volume_shape)
        # The compressed block is there once while it is made, and three times for a bucket.
        copies = 2 if self.run_folder.is_local else 4
        return self.part.read_bytes((z, y, x)) + copies * math.prod(self.block_shape) * np.dtype(self.dtype).itemsize


def default_block_shape(part: Part) -> Vec:
    """A block shape that decodes as little as possible twice: z y x, multiples of 16 (z) and 64 (y, x).

    Where voxels can be picked at will, blocks are cubes of about 256. Where a whole section or a wide strip has to be
    decoded at once, blocks are as wide as that, up to 4096, and thinner in z, so that each is decoded for one block; if
    it is wider still, so thin that what neighbours share stays in the cache, but not thinner than 16.
    """
    shape, unit = part.shape, part.unit
    rows, columns = (_even_side(n, max(4 * CHUNK_SIDE, side)) for n, side in zip(shape[1:], unit[1:], strict=True))
    section = rows * columns * part.source.dtype.itemsize
    decoded = max(rows, unit[1]) * max(columns, unit[2]) * math.prod(part.factor) * part.source.stored_dtype.itemsize
    depth = 4 * CHUNK_SIDE
    while depth > 16 and (depth * section > BLOCK_BYTES or depth * decoded > CACHE_BYTES or depth // 2 >= shape[0]):
        depth //= 2
    return depth, rows, columns


def _even_side(length: int, wanted: int) -> int:
    """A multiple of the chunk side that divides a length into even parts of about the wanted size."""
    parts = -(-length // min(wanted, WIDEST_SIDE))
    return -(-length // (parts * CHUNK_SIDE)) * CHUNK_SIDE


def source_identity(source: Location, metadata: Sequence[Location] = ()) -> dict[str, Any]:
    """Path, bytes and time of change (ns) of a file, or of the files of a folder with a digest of their listing.

    Of a volume in chunks, which may be millions of files, the `metadata` files alone: their SHA-256 and, on disk, their
    time of change. A program that writes the volume anew writes them too; a single chunk that is replaced goes unseen.
    """
    if metadata:
        prefix = str(source).rstrip("/") + "/"
        return {"path": str(source), "metadata": {str(f).removeprefix(prefix): _file_identity(f) for f in metadata}}
    path = source.local
    if path.is_file():
        status = path.stat()
        return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    listing = sorted(_listing(path))
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return {"path": str(path), "files": len(listing), "bytes": sum(size for _, size, _ in listing), "listing": digest}


def _file_identity(file: Location) -> list[Any] | None:
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return [digest, file.local.stat().st_mtime_ns if file.is_local else None]
    except (FileNotFoundError, NotADirectoryError):
        return None


def _listing(path: Path) -> Sequence[tuple[str, int, int]]:
    files = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
