"""Edges of voxels that a mask leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec, add, sub


def reached(box: Box, offsets: Sequence[Vec], bounds: Box) -> Box:
    """The smallest box inside `bounds` that holds both ends of all edges at the voxels of a box.

    >>> reached(Box((4, 4, 4), (8, 8, 8)), [(-1, 0, 0), (0, 9, -9)], Box((0, 0, 0), (9, 9, 9)))
    Box(start=(3, 4, 0), stop=(8, 9, 8))
    """
    low, high = np.array([(0, 0, 0), *offsets]).min(axis=0), np.array([(0, 0, 0), *offsets]).max(axis=0)
    z, y, x = (np.array(box.start) + low).tolist()
    nz, ny, nx = (np.array(box.stop) + high).tolist()
    return Box((z, y, x), (nz, ny, nx)).intersect(bounds)


def clear_edges(
    affinities: npt.NDArray[np.uint8],
    offsets: Sequence[Vec],
    box: Box,
    allowed: npt.NDArray[np.bool_],
    around: Box,
) -> None:
    """Make 0, in place, all edges with an end that is not allowed; edges with an end beyond `around` stay.

    `affinities` uint8 `(c, z, y, x)` over `box`, channel c at voxel p being the edge between p and p + `offsets[c]`;
    `allowed` bool `(z, y, x)` over `around`, which holds the box.

    >>> one = np.full((1, 1, 1, 4), 9, np.uint8)
    >>> box = Box((0, 0, 0), (1, 1, 4))
    >>> clear_edges(one, [(0, 0, -1)], box, np.array([[[True, True, False, True]]]), box)
    >>> one.tolist()
    [[[[9, 9, 0, 0]]]]
    """
    factors = allowed.view(np.uint8)
    for values, offset in zip(affinities, offsets, strict=True):
        values *= factors[box.slices(around.start)]
        other = Box(add(box.start, offset), add(box.stop, offset)).intersect(around)
        if not other.empty:
            own = Box(sub(other.start, offset), sub(other.stop, offset))
            values[own.slices(box.start)] *= factors[other.slices(around.start)]
