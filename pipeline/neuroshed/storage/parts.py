"""A box of a source, and larger voxels made of its voxels: what an import may ask for instead of all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid, Vec, add, divided, mul
from neuroshed.kernels import downsample
from neuroshed.storage.sources import Source
from neuroshed.storage.spacing import VoxelSize

PIECE_BYTES = 32 << 20
"""So much of the source is downsampled at once, or windows of what is decoded at once if that is larger."""


@dataclass(frozen=True)
class Part:
    """The voxels of `box` of a source; with a `factor` each window of so many voxels is one, from the box's start on.

    It is the mean of integers, as they are after rescaling, or of `labels` the most frequent: see `kernels.downsample`.
    """

    source: Source
    box: Box
    factor: Vec
    labels: bool

    @classmethod
    def of(cls, source: Source, box: Box | None, factor: Vec | None, labels: bool | None) -> Part:
        """Without a box all of it. If it is not said whether voxels are `labels`, the source says it (precomputed, and
        OME-Zarr of labels), or else integers of more than 16 bits are.

        Raises `InputError` for a box that is not in the source and factors below 1.
        """
        whole = Box.of_shape(source.shape)
        used, sides = box or whole, factor or (1, 1, 1)
        if used.empty or not whole.contains(used):
            raise InputError(f"box {used} is empty or not inside {source.path}, which has voxels {whole}")
        if min(sides) < 1:
            raise InputError(f"downsampling by {list(sides)} is not possible; factors are whole numbers from 1 (z y x)")
        told = source.reader.labels if labels is None else labels
        return cls(source, used, sides, source.dtype.itemsize > 2 if told is None else told)

    @property
    def shape(self) -> Vec:
        """Voxels, z y x."""
        return _ceil(self.box.shape, self.factor)

    @property
    def unit(self) -> Vec:
        """Sides of what has to be decoded at once, in voxels of the part."""
        return _ceil(self.source.unit, self.factor)

    def voxel_size(self, size: VoxelSize) -> VoxelSize:
        """Of the part, if that of the source is `size`."""
        z, y, x = (side * count for side, count in zip(size, self.factor, strict=True))
        return z, y, x

    def offset(self, size: VoxelSize, offset: tuple[float, float, float]) -> tuple[float, float, float]:
        """The centre of the part's first voxel, if the centre of the source's is at `offset`, in nm, as in OME-Zarr: a
        window's is the middle of its voxels' centres, half of what the voxel size grows by further on.
        """
        z, y, x = (
            place + side * start + side * (count - 1) / 2
            for place, side, start, count in zip(offset, size, self.box.start, self.factor, strict=True)
        )
        return z, y, x

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box of the part. Raises as the source does."""
        if self.factor == (1, 1, 1):
            return self.source.read(Box(add(box.start, self.box.start), add(box.stop, self.box.start)))
        out = np.empty(box.shape, self.source.dtype)
        shrink = downsample.mode if self.labels else downsample.mean
        pieces = self._pieces(box)
        for index in pieces:
            piece = pieces.block_box(index)
            start, stop = (add(mul(end, self.factor), self.box.start) for end in (piece.start, piece.stop))
            window = Box(start, stop).intersect(self.box)
            out[piece.slices(box.start)] = shrink(self.source.read(window), self.factor)
        return out

    def _pieces(self, box: Box) -> Grid:
        return divided(box, self.unit, PIECE_BYTES // self.source.stored_dtype.itemsize // math.prod(self.factor))

    def read_bytes(self, shape: Vec) -> int:
        """Upper bound in bytes of what `read` takes at its peak, its result included, for a box of `shape`."""
        stored, written = self.source.stored_dtype.itemsize, self.source.dtype.itemsize
        result = math.prod(shape) * written
        if self.factor == (1, 1, 1):
            read = shape
        else:
            piece = self._pieces(Box.of_shape(self.shape)).block_shape
            z, y, x = (min(piece_side, side) for piece_side, side in zip(piece, shape, strict=True))
            read = mul((z, y, x), self.factor)
        # Finiteness and sign are checked with masks.
        return result + math.prod(read) * (stored + written + 2) + self.source.cache_bytes


def _ceil(shape: Vec, factor: Vec) -> Vec:
    z, y, x = (-(-side // count) for side, count in zip(shape, factor, strict=True))
    return z, y, x
