"""New TIFF sections: plain, uncompressed grey images that everything opens, filled part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from neuroshed.geometry import Vec

DTYPES = ("uint8", "uint16", "uint32", "float32")
"""Types of voxels that readers of TIFF take."""
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
