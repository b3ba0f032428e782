"""The order in which the blocks of a grid are taken: raster, but with the longest axis slowest.

A sweep in that order has a small frontier: only a few cross-sections of the grid, the smallest there are, lie between
the blocks that are finished with and those not begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec

Positions = npt.NDArray[np.int64]
"""Places of blocks in raster order (z, y, x), as `Grid.position`."""
Places = npt.NDArray[np.int64]
"""Places of blocks in sweep order."""
Coordinates = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Numbers of blocks along z, y, x, from 0 at the grid's first block."""

Item = TypeVar("Item", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Sweep order over a grid of `counts` blocks along z, y, x.

    >>> Sweep((2, 2, 3)).places(np.arange(12)).tolist()
    [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    """

    counts: Vec

    @property
    def axis(self) -> int:
        """The slowest axis: the longest one, the first of several."""
        return self.counts.index(max(self.counts))

    @property
    def order(self) -> Vec:
        """The axes, slowest first."""
        return ((0, 1, 2), (1, 0, 2), (2, 0, 1))[self.axis]

    @property
    def strides(self) -> Vec:
        """Places between neighbours along z, y, x."""
        nz, ny, nx = self.counts
        return ((ny * nx, nx, 1), (nx, nz * nx, 1), (ny, 1, nz * ny))[self.axis]

    def coordinates(self, positions: Positions) -> Coordinates:
        """Where blocks stand along z, y, x."""
        _, ny, nx = self.counts
        rows = positions // nx
        z = rows // ny
        return z, rows - z * ny, positions - rows * nx

    def places(self, positions: Positions) -> Places:
        """From raster order to sweep order; the same array where they are the same."""
        if self.axis == 0:
            return positions
        z, y, x = self.coordinates(positions)
        dz, dy, dx = self.strides
        found: Places = z * dz + y * dy + x * dx
        return found

    def positions(self, places: Places) -> Positions:
        """From sweep order to raster order; the same array where they are the same."""
        if self.axis == 0:
            return places
        _, ny, nx = self.counts
        raster = (ny * nx, nx, 1)
        slow, middle, fast = self.order
        rows = places // self.counts[fast]
        layers = rows // self.counts[middle]
        along_middle, along_fast = rows - layers * self.counts[middle], places - rows * self.counts[fast]
        found: Positions = layers * raster[slow] + along_middle * raster[middle] + along_fast * raster[fast]
        return found

    def volume(self, values: npt.NDArray[Item]) -> npt.NDArray[Item]:
        """A view of values in sweep order as an array with axes z, y, x."""
        order = self.order
        swept = values.reshape([self.counts[axis] for axis in order])
        return swept.transpose([order.index(axis) for axis in range(3)])
