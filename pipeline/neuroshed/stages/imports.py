"""Foreign formats to a volume: each block is read from the source, converted and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import CHUNK_SIDE
from neuroshed.storage.sections import CACHE_BYTES
from neuroshed.storage.sources import Source, open_source
from neuroshed.storage.volumes import Volume, create_volume

BLOCK_BYTES = 128 * 2**20
"""A default block has about this many bytes: large enough to be worth a task, small enough for a worker's memory."""
WIDEST_SIDE = 4096
"""Default blocks of sections are at most this wide, so that several workers share a large section."""


class Import(Stage):
    """A TIFF, PNG, HDF5, MRC or NumPy volume, written as an OME-Zarr image or label volume."""

    kind: Literal["import"] = "import"
    source: Path
    dataset: str | None = None
    """Array inside an HDF5 file; None: its only 3-D one."""
    name: str
    """Name of the new volume, as it stands in its metadata."""
    voxel_size: tuple[float, float, float]
    """nm, z y x."""
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Place of the first voxel in nm, z y x."""
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
        source: Path,
        name: str,
        voxel_size: tuple[float, float, float] | None,
        *,
        offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
        dataset: str | None = None,
        intensity: tuple[float, float] | None = None,
        block_shape: Vec | None = None,
    ) -> Import:
        """Plan an import; looks at every section's header. Without a `voxel_size` that of the source is taken.

        Raises `InputError` for what cannot be imported.
        """
        opened = open_source(source, dataset, intensity=intensity)
        found = voxel_size or opened.voxel_size
        if found is None:
            raise InputError(f"{opened.path} does not say how large its voxels are; give `--voxel-size Z Y X`, in nm")
        return cls(
            run_folder=run_folder,
            source=opened.path,
            dataset=dataset,
            name=name,
            voxel_size=found,
            offset=offset,
            block_shape=block_shape or default_block_shape(opened),
            intensity=intensity,
            volume_shape=opened.shape,
            dtype=opened.dtype.name,
            identity=source_identity(opened.path),
        )

    @property
    def grid(self) -> Grid:
        """The blocks of the new volume."""
        return Grid(Box.of_shape(self.volume_shape), self.block_shape)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass that needs nothing."""
        return (Step("", self.grid),)

    @cached_property
    def opened(self) -> Source:
        """The source; sections are checked when they are read, all of them were checked when the run was planned."""
        if source_identity(self.source) != self.identity:
            raise BlockError(f"{self.source} has changed since the import was planned; import it again to a new target")
        return open_source(self.source, self.dataset, intensity=self.intensity, check=False)

    @property
    def target(self) -> Location:
        """Where the new volume grows, in the stage's own folder: the caller moves it when it is whole."""
        return self.folder / self.name

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
        """Read, convert and write one block."""
        box = self.grid.block_box(index)
        self.volume.write(box, self.opened.read(box))
        return Done(box.size)

    def memory_bytes(self, step: str) -> int:
        """The block as stored, converted and compressed, with the cache of decoded sections or chunks."""
        voxels = int(np.prod(np.minimum(self.block_shape, self.volume_shape)))
        stored, written = self.opened.stored_dtype.itemsize, self.opened.dtype.itemsize
        # A shard is padded to its full size and encoded in memory; finiteness and sign are checked with masks.
        padded = int(np.prod(self.block_shape))
        return voxels * (stored + written + 2) + 2 * padded * written + self.opened.cache_bytes

    def report(self) -> dict[str, Any]:
        """Where the new volume is."""
        return {"volume": str(self.target)}


def default_block_shape(source: Source) -> Vec:
    """A block shape that decodes as little as possible twice: z y x, multiples of 16 (z) and 64 (y, x).

    Where voxels can be picked at will, blocks are cubes of about 256. Where a whole section or a wide strip has to be
    decoded at once, blocks are as wide as that, up to 4096, and thinner in z, so that each is decoded for one block; if
    it is wider still, so thin that what neighbours share stays in the cache, but not thinner than 16.
    """
    rows, columns = (
        _even_side(n, max(4 * CHUNK_SIDE, unit)) for n, unit in zip(source.shape[1:], source.unit[1:], strict=True)
    )
    section = rows * columns * source.dtype.itemsize
    decoded = max(rows, source.unit[1]) * max(columns, source.unit[2]) * source.stored_dtype.itemsize
    depth = 4 * CHUNK_SIDE
    while depth > 16 and (
        depth * section > BLOCK_BYTES or depth * decoded > CACHE_BYTES or depth // 2 >= source.shape[0]
    ):
        depth //= 2
    return depth, rows, columns


def _even_side(length: int, wanted: int) -> int:
    """A multiple of the chunk side that divides a length into even parts of about the wanted size."""
    parts = -(-length // min(wanted, WIDEST_SIDE))
    return -(-length // (parts * CHUNK_SIDE)) * CHUNK_SIDE


def source_identity(path: Path) -> dict[str, Any]:
    """Path, bytes and time of change (ns) of a file, or of the files of a folder with a digest of their listing."""
    if path.is_file():
        status = path.stat()
        return {"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    listing = sorted(_listing(path))
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return {"path": str(path), "files": len(listing), "bytes": sum(size for _, size, _ in listing), "listing": digest}


def _listing(path: Path) -> Sequence[tuple[str, int, int]]:
    files = [entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
