"""Masks: volumes that say which voxels are segmented, and the blocks of a grid that they leave empty.

A voxel is segmented if every mask allows it. The others have label 0, and every edge with one of them at an end has
affinity 0, before smoothing and after: so the result depends on voxels alone, whatever the blocks. Blocks without any
allowed voxel are left out of a run (`Skipped`): nobody computes, writes or reads them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid, Vec, sub
from neuroshed.storage.coarse import Coarse, Size, beside
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume

Bits = npt.NDArray[np.bool_]

PIECE_VOXELS = 1 << 24
"""Voxels of masks that are looked at at once while blocks are searched for."""


class MaskOptions(BaseModel):
    """An entry of `masks:`, of which either `keep` or `drop` is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Location
    """Volume of integers or booleans, at the resolution of the image or coarser by whole numbers."""
    keep: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Only voxels of these values are segmented."""
    drop: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Voxels of these values are not."""

    @model_validator(mode="after")
    def _check(self) -> MaskOptions:
        if (self.keep is None) == (self.drop is None):
            raise ValueError("exactly one of `keep` and `drop` must be given")
        return self


class Mask(Coarse):
    """One mask, of which values are allowed (`keep`) or all others (`drop`)."""

    keep: tuple[int, ...] | None
    drop: tuple[int, ...] | None

    @classmethod
    def of(cls, given: MaskOptions, shape: Vec, voxel_size: Size, offset: Size) -> Self:
        """Describe a mask beside a volume of the given shape, voxel size and offset (nm).

        Raises `InputError` if it cannot hold a value, or is none that can lie beside it (`storage.coarse.beside`).
        """
        volume, fields = beside("mask", given.path, shape, voxel_size, offset, kinds="uib")
        low, high = (0, 1) if volume.dtype.kind == "b" else (np.iinfo(volume.dtype).min, np.iinfo(volume.dtype).max)
        wrong = [value for value in (*(given.keep or ()), *(given.drop or ())) if not low <= value <= high]
        if wrong:
            raise InputError(
                f"mask {given.path} is {volume.dtype}, which cannot hold the value {wrong[0]}; name values that it has"
            )
        return cls(**fields, keep=given.keep, drop=given.drop)

    def allowed(self, box: Box) -> Bits:
        """Which voxels of a box it allows, `(z, y, x)`."""
        return self.spread(self.allowed_cells(self.cells(box)), box)

    def allowed_cells(self, cells: Box) -> Bits:
        """Which of some of its own voxels it allows, `(z, y, x)`."""
        found = self.stored(cells)
        values = np.array(self.keep if self.keep is not None else self.drop, found.dtype)
        return np.isin(found, values, invert=self.keep is None)


def allowed(masks: Sequence[Mask], box: Box) -> Bits:
    """Which voxels of a box all masks allow, `(z, y, x)`."""
    found = np.ones(box.shape, np.bool_)
    for mask in masks:
        found &= mask.allowed(box)
    return found


class Skipped(BaseModel):
    """Blocks of a grid that are left out, one bit each, packed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: Vec
    counts: Vec
    """As those of the grid."""
    data: str
    """Bits in raster order, deflated, as Base64."""

    @classmethod
    def of(cls, grid: Grid, blocks: Bits) -> Self | None:
        """From an array `(z, y, x)` over a grid's blocks; None if no block is left out."""
        if not blocks.any():
            return None
        data = base64.b64encode(zlib.compress(np.packbits(blocks).tobytes())).decode()
        return cls(first=grid.first, counts=grid.counts, data=data)

    @property
    def blocks(self) -> Bits:
        """Which blocks are left out, `(z, y, x)`; not to be changed."""
        return _levels(self)[0]

    @property
    def levels(self) -> list[Bits]:
        """The same for the levels of the octree over the grid: a node without any block that is not left out is left
        out too.
        """
        return _levels(self)

    def holds(self, index: Vec) -> bool:
        """Whether a block of the grid, given by its index, is left out."""
        return bool(self.blocks[sub(index, self.first)])

    def read(self, volume: Volume, grid: Grid, box: Box) -> npt.NDArray[np.uint8]:
        """A box of a volume with channels, uint8 `(c, z, y, x)`, that blocks of the grid write: 0 in those left out."""
        there = [index for index in grid.touching(box) if not self.holds(index)]
        if len(there) == sum(1 for _ in grid.touching(box)):
            return volume.read(box)
        found = np.zeros((volume.channels or 1, *box.shape), np.uint8)
        for index in there:
            part = grid.block_box(index).intersect(box)
            found[(slice(None), *part.slices(box.start))] = volume.read(part)
        return found


def left_out(skipped: Skipped | None, level: int = 0) -> Bits | None:
    """The nodes of a level of the octree over a grid that are left out, as `Step.skipped`; at 0 its blocks."""
    return None if skipped is None else skipped.levels[level]


@functools.lru_cache(maxsize=4)
def _levels(skipped: Skipped) -> list[Bits]:
    bits = np.unpackbits(
        np.frombuffer(zlib.decompress(base64.b64decode(skipped.data)), np.uint8), count=math.prod(skipped.counts)
    )
    levels, first = [bits.view(np.bool_).reshape(skipped.counts)], skipped.first
    while levels[-1].size > 1:
        blocks = levels[-1]
        for axis, (start, count) in enumerate(zip(first, blocks.shape, strict=True)):
            # Children 2n and 2n + 1 have the parent n.
            starts = np.flatnonzero(np.diff(np.arange(start, start + count) // 2, prepend=-1))
            blocks = np.logical_and.reduceat(blocks, starts, axis=axis)
        levels.append(blocks)
        first = (first[0] // 2, first[1] // 2, first[2] // 2)
    for blocks in levels:
        blocks.flags.writeable = False
    return levels


def empty_blocks(masks: Sequence[Mask], grid: Grid) -> tuple[Bits, list[str]]:
    """Which blocks of a grid, `(z, y, x)`, have no voxel that all masks allow; and for each mask a SHA-256 of what it
    allows there.

    Masks are read once, at their own resolution, in pieces of a bounded size. Raises `BlockError` for a mask that
    cannot be decoded.
    """
    empty = np.ones(grid.counts, np.bool_)
    digests = [hashlib.sha256() for _ in masks]
    for piece in _pieces(masks, grid, grid.box):
        cuts = [_cuts(masks, grid, piece, axis) for axis in range(3)]
        found = np.ones([len(cut) for cut in cuts], np.bool_)
        for mask, digest in zip(masks, digests, strict=True):
            cells = mask.cells(piece)
            bits = mask.allowed_cells(cells)
            digest.update(np.packbits(bits).tobytes())
            for axis, cut in enumerate(cuts):
                bits = bits.take(cut // mask.factor[axis] - cells.start[axis], axis)
            found &= bits
        touched = []
        for axis, (cut, side) in enumerate(zip(cuts, grid.block_shape, strict=True)):
            numbers, starts = np.unique(cut // side, return_index=True)
            found = np.logical_or.reduceat(found, starts, axis=axis)
            touched.append(slice(numbers[0] - grid.first[axis], numbers[-1] + 1 - grid.first[axis]))
        empty[tuple(touched)] &= ~found
    return empty, [digest.hexdigest() for digest in digests]


def _cuts(masks: Sequence[Mask], grid: Grid, box: Box, axis: int) -> npt.NDArray[np.int64]:
    """Where along an axis of a box a voxel of a mask or a block begins; between two, all voxels are alike."""
    start, stop = box.start[axis], box.stop[axis]
    sides = {grid.block_shape[axis], *(mask.factor[axis] for mask in masks)}
    begins = [np.arange(-(-start // side) * side, stop, side) for side in sides]
    return np.unique(np.concatenate([np.array([start]), *begins]))


def _pieces(masks: Sequence[Mask], grid: Grid, box: Box) -> Iterator[Box]:
    """A box in parts with no more than `PIECE_VOXELS` between the cuts."""
    counts = [len(_cuts(masks, grid, box, axis)) for axis in range(3)]
    if math.prod(counts) <= PIECE_VOXELS:
        yield box
        return
    axis = counts.index(max(counts))
    middle = int(_cuts(masks, grid, box, axis)[counts[axis] // 2])
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = middle
    yield from _pieces(masks, grid, Box(box.start, (stop[0], stop[1], stop[2])))
    yield from _pieces(masks, grid, Box((start[0], start[1], start[2]), box.stop))
