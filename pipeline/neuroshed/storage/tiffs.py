"""New TIFFs: sections, plain uncompressed grey images that everything opens, filled part by part; and stacks of them,
one BigTIFF with a page for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from neuroshed.errors import BlockError
from neuroshed.geometry import Vec
from neuroshed.storage.locations import Location

DTYPES = ("uint8", "uint16", "uint32", "float32")
"""Types of voxels that readers of TIFF take."""
Compression = Literal["none", "zlib"]
"""Of the pages of a stack: what all readers take."""
BIG = 2**32 - 2**16
"""From so many bytes on a file has to be a BigTIFF."""


class NewSection:
    """A section `(y, x)` in a file that is opened for writing; all of it has to be written."""

    def __init__(
        self, file: BinaryIO, shape: tuple[int, int], dtype: np.dtype[Any], voxel_size: Sequence[float]
    ) -> None:
        self._file = file
        self._columns = shape[1]
        self._dtype = dtype.newbyteorder("<")
        z, y, x = (size / 1e3 for size in voxel_size)
        offset, _ = tifffile.imwrite(
            file,
            shape=shape,
            dtype=self._dtype,
            byteorder="<",
            photometric="minisblack",
            bigtiff=shape[0] * shape[1] * dtype.itemsize >= BIG,
            # As ImageJ writes them: pixels per micrometre, and what lies between sections in words.
            description=f"ImageJ=1.53t\nimages=1\nunit=micron\nspacing={z:.7g}\n",
            resolution=(1 / x, 1 / y),
            resolutionunit="NONE",
            metadata=None,
            software="neuroshed",
            returnoffset=True,
        )
        self._offset = int(offset)

    def write(self, start: tuple[int, int], data: npt.NDArray[Any]) -> None:
        """Put pixels `(y, x)` at their place."""
        plain = np.ascontiguousarray(data, self._dtype)
        # Rows as wide as the section lie one after the other.
        rows = [plain] if plain.shape[1] == self._columns else list(plain)
        for number, row in enumerate(rows):
            place = (start[0] + number) * self._columns + start[1]
            self._file.seek(self._offset + place * self._dtype.itemsize)
            self._file.write(row.tobytes())


def write_stack(
    file: BinaryIO,
    pages: Iterable[npt.NDArray[Any]],
    shape: Vec,
    dtype: np.dtype[Any],
    voxel_size: Sequence[float],
    compression: Compression,
) -> None:
    """Write pages `(y, x)`, as many as `shape` says and one after the other, with the voxel size (nm) as OME-TIFF has
    it and, z aside, as every TIFF.
    """
    z, y, x = voxel_size
    tifffile.imwrite(
        file,
        iter(pages),
        shape=shape,
        dtype=dtype.newbyteorder("<"),
        byteorder="<",
        bigtiff=True,
        ome=True,
        photometric="minisblack",
        compression=None if compression == "none" else compression,
        resolution=(1e7 / x, 1e7 / y),
        resolutionunit="CENTIMETER",
        metadata={"axes": "ZYX"} | _physical_sizes(Z=z, Y=y, X=x),
        software="neuroshed",
    )


def _physical_sizes(**sizes: float) -> dict[str, Any]:
    there = {f"PhysicalSize{axis}": size for axis, size in sizes.items()}
    return there | {f"{name}Unit": "nm" for name in there}


def read_section(path: Location) -> npt.NDArray[Any]:
    """The pixels `(y, x)` of a section that was written here, as they lie in the file. Raises `BlockError`."""
    try:
        found: npt.NDArray[Any] = tifffile.memmap(path.local, mode="r")
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise BlockError(f"{path} cannot be read ({error}); remove its stage's folder and run again") from error
    return found


def section_name(z: int, count: int) -> str:
    """Name of a section's file; all are of one length, so that every order of them is right.

    >>> section_name(7, 200), section_name(7, 2_000_000)
    ('z00007.tif', 'z0000007.tif')
    """
    return f"z{z:0{max(5, len(str(count - 1)))}d}.tif"


def part_shape(shard: Vec, section: tuple[int, int], limit: int) -> Vec:
    """Sides of the boxes in which a slab is read: whole shards, as many beside each other as fit into `limit` voxels.

    >>> part_shape((64, 64, 64), (1000, 1000), 64 * 64 * 300), part_shape((64, 64, 64), (1000, 1000), 2**30)
    ((64, 64, 256), (64, 1000, 1000))
    """
    z, y, x = shard
    wide = max(min(limit // (z * y * x) * x, section[1]), x)
    if wide < section[1]:
        return z, y, wide - wide % x
    high = max(min(limit // (z * wide * y) * y, section[0]), y)
    return z, high if high == section[0] else high - high % y, wide
