"""Where patches lie: a lattice that belongs to the volume, never to the block, so results cannot depend on blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from neuroshed.geometry import Box, Grid, Vec, add, mul, sub


@dataclass(frozen=True, slots=True)
class Lattice:
    """Patches of one shape, of which all but `context` voxels on each side are kept; anchored at the volume's origin.

    >>> Lattice(patch=(96, 96, 96), context=(16, 16, 16)).stride
    (64, 64, 64)
    """

    patch: Vec
    context: Vec

    def __post_init__(self) -> None:
        if min(self.context) < 0 or min(self.stride) < 1:
            raise ValueError(f"patch {self.patch} must be larger than twice its context {self.context}")

    @property
    def stride(self) -> Vec:
        """Sides of what a patch contributes: the patch without its context."""
        return sub(self.patch, add(self.context, self.context))

    def cells(self, box: Box) -> Iterator[Box]:
        """What each patch that touches `box` contributes, whole and so possibly reaching out of it, in raster order.

        >>> [cell.start for cell in Lattice((4, 4, 4), (1, 1, 1)).cells(Box((3, 0, 0), (5, 2, 2)))]
        [(2, 0, 0), (4, 0, 0)]
        """
        for index in Grid(box, self.stride):
            start = mul(index, self.stride)
            yield Box(start, add(start, self.stride))


def read_box(box: Box, volume_shape: Vec, lattice: Lattice) -> Box:
    """The part of the image that the patches touching `box` see, clipped to the volume.

    >>> read_box(Box((64, 0, 0), (128, 64, 64)), (500, 500, 70), Lattice((96, 96, 96), (16, 16, 16)))
    Box(start=(48, 0, 0), stop=(144, 80, 70))
    """
    grid = Grid(box, lattice.stride)
    touched = Box(mul(grid.first, lattice.stride), mul(add(grid.first, grid.counts), lattice.stride))
    return touched.grow(lattice.context).intersect(Box.of_shape(volume_shape))


def redundancy(lattice: Lattice, block_shape: Vec) -> float:
    """Voxels that go through the net for each voxel written, on the average over inner blocks.

    Blocks of whole strides compute nothing twice but context; other blocks compute the patches they share twice.

    >>> redundancy(Lattice((96, 96, 96), (16, 16, 16)), (128, 128, 128))
    3.375
    >>> redundancy(Lattice((96, 96, 96), (16, 16, 16)), (96, 128, 128))
    4.5
    """
    ratio = 1.0
    for block, stride, patch in zip(block_shape, lattice.stride, lattice.patch, strict=True):
        period = stride // math.gcd(block, stride)
        cells = sum(-(-(i + 1) * block // stride) - i * block // stride for i in range(period))
        ratio *= cells * patch / (period * block)
    return ratio
