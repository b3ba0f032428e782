"""Boxes, grids of blocks and octree levels: pure arithmetic, the lowest floor.

All boxes are half-open and all triples are z, y, x in voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

Vec = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open voxel box `[start, stop)`, z y x.

    >>> Box((0, 0, 0), (4, 4, 4)).grow(1).stop
    (5, 5, 5)
    """

    start: Vec
    stop: Vec

    @classmethod
    def of_shape(cls, shape: Vec) -> Box:
        """The box of a whole array.

        >>> Box.of_shape((2, 3, 4))
        Box(start=(0, 0, 0), stop=(2, 3, 4))
        """
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Vec:
        """Side lengths in voxels; never negative."""
        z, y, x = (max(b - a, 0) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def size(self) -> int:
        """Number of voxels."""
        z, y, x = self.shape
        return z * y * x

    @property
    def empty(self) -> bool:
        """Whether the box holds no voxel."""
        return self.size == 0

    def grow(self, low: int | Vec, high: int | Vec | None = None) -> Box:
        """The box with `low` more voxels before its start and `high` (default: the same) after its stop.

        >>> Box((4, 4, 4), (8, 8, 8)).grow(1, 0)
        Box(start=(3, 3, 3), stop=(8, 8, 8))
        """
        before = as_vec(low)
        after = before if high is None else as_vec(high)
        return Box(sub(self.start, before), add(self.stop, after))

    def intersect(self, other: Box) -> Box:
        """The voxels in both boxes (possibly none).

        >>> Box((0, 0, 0), (4, 4, 4)).intersect(Box((2, 2, 2), (9, 9, 9))).shape
        (2, 2, 2)
        """
        z0, y0, x0 = (max(a, b) for a, b in zip(self.start, other.start, strict=True))
        z1, y1, x1 = (min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box((z0, y0, x0), (z1, y1, x1))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` is in this box."""
        return other.empty or self.intersect(other) == other

    def slices(self, origin: Vec = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Slices of an array whose first voxel is `origin`.

        >>> Box((4, 4, 4), (8, 8, 8)).slices((3, 3, 3))[0]
        slice(1, 5, None)
        """
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True))
        return z, y, x

    def __str__(self) -> str:
        spans = (f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
        return "[" + ", ".join(spans) + "]"


@dataclass(frozen=True, slots=True)
class Grid:
    """The regular division of `box` into blocks, anchored at the volume's origin.

    Block `index` covers `[index * block_shape, (index + 1) * block_shape)` cut to `box`, so a box inside a volume
    has the same inner blocks as the whole volume. The parent level of an octree is the grid of doubled blocks.

    >>> grid = Grid(Box((0, 0, 0), (5, 4, 4)), (2, 4, 4))
    >>> list(grid)
    [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    >>> grid.block_box((2, 0, 0))
    Box(start=(4, 0, 0), stop=(5, 4, 4))
    >>> list(grid.parent())
    [(0, 0, 0), (1, 0, 0)]
    """

    box: Box
    block_shape: Vec

    def __post_init__(self) -> None:
        if min(self.block_shape) < 1 or self.box.empty or min(self.box.start) < 0:
            raise ValueError(f"no grid of blocks {self.block_shape} over box {self.box}")

    @property
    def first(self) -> Vec:
        """Index of the first block."""
        z, y, x = (a // s for a, s in zip(self.box.start, self.block_shape, strict=True))
        return z, y, x

    @property
    def counts(self) -> Vec:
        """Number of blocks along each axis."""
        z, y, x = (-(-b // s) - a // s for a, b, s in zip(self.box.start, self.box.stop, self.block_shape, strict=True))
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __iter__(self) -> Iterator[Vec]:
        """Block indices in raster order."""
        ranges = [range(f, f + n) for f, n in zip(self.first, self.counts, strict=True)]
        for z, y, x in itertools.product(*ranges):
            yield z, y, x

    def block_box(self, index: Vec) -> Box:
        """The box that block `index` writes."""
        whole = Box(mul(index, self.block_shape), mul(add(index, (1, 1, 1)), self.block_shape))
        return whole.intersect(self.box)

    def position(self, index: Vec) -> int:
        """Place of a block in raster order, from 0.

        >>> grid = Grid(Box((4, 0, 0), (8, 4, 4)), (2, 2, 2))
        >>> [grid.position(index) for index in grid] == list(range(len(grid)))
        True
        """
        z, y, x = sub(index, self.first)
        _, ny, nx = self.counts
        return (z * ny + y) * nx + x

    def index(self, position: int) -> Vec:
        """The block at a place in raster order; the inverse of `position`."""
        _, ny, nx = self.counts
        z, rest = divmod(position, ny * nx)
        y, x = divmod(rest, nx)
        return add(self.first, (z, y, x))

    def holds(self, index: Vec) -> bool:
        """Whether a block is one of the grid.

        >>> Grid(Box((0, 0, 0), (4, 4, 4)), (2, 2, 2)).holds((0, 2, 0))
        False
        """
        return all(0 <= i < n for i, n in zip(sub(index, self.first), self.counts, strict=True))

    def touching(self, box: Box) -> Iterator[Vec]:
        """Indices of the blocks that share a voxel with `box`, in raster order."""
        inside = box.intersect(self.box)
        if not inside.empty:
            yield from Grid(inside, self.block_shape)

    def parent(self) -> Grid:
        """The next octree level: blocks of twice the side, each the box of up to eight children."""
        return Grid(self.box, mul(self.block_shape, (2, 2, 2)))

    def octree(self) -> list[Grid]:
        """All levels, from this grid to the root, a grid of one block."""
        levels = [self]
        while len(levels[-1]) > 1:
            levels.append(levels[-1].parent())
        return levels


def divided(box: Box, unit: Vec, most: int) -> Grid:
    """Pieces of a box that are whole multiples of `unit` from the origin, of at most `most` voxels or of one unit.

    >>> divided(Box((1, 0, 0), (9, 9, 9)), (2, 4, 4), 256).block_shape
    (8, 8, 4)
    """
    shape = [*unit]
    while 2 * math.prod(shape) <= most:
        short = [axis for axis in range(3) if shape[axis] < box.stop[axis]]
        if not short:
            break
        shape[min(short, key=lambda axis: shape[axis])] *= 2
    return Grid(box, (shape[0], shape[1], shape[2]))


def meeting_level(a: Vec, b: Vec) -> int:
    """The lowest octree level at which two blocks, given by their indices, are in one node.

    >>> meeting_level((0, 0, 0), (0, 0, 1)), meeting_level((0, 0, 1), (0, 0, 2)), meeting_level((5, 1, 1), (5, 1, 1))
    (1, 2, 0)
    """
    return max((i ^ j).bit_length() for i, j in zip(a, b, strict=True))


def as_vec(value: int | Vec) -> Vec:
    """A triple; a single number stands for all three axes."""
    return (value, value, value) if isinstance(value, int) else value


def add(a: Vec, b: Vec) -> Vec:
    """Sum by axis."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def sub(a: Vec, b: Vec) -> Vec:
    """Difference by axis."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def mul(a: Vec, b: Vec) -> Vec:
    """Product by axis."""
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]
