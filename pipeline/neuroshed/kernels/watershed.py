"""Watershed by one best edge: each voxel picks its best edge, basins are what picked edges connect.

This is the first Boruvka round of the maximum spanning forest (Cousty et al., "Watershed cuts", 2009), with edges
of at least `high` picked as well. Because the order of edges is strict, there are no plateaus to divide, and a
voxel's pick depends on its six edges alone: one voxel of halo makes the picks of a block those of the whole volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.order import edge_key, strides
from neuroshed.kernels.unions import find, union


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block lies: its box, the region that is segmented, and the shape of the whole volume."""

    box: Box
    region: Box
    volume_shape: Vec

    def inner_faces(self) -> npt.NDArray[np.bool_]:
        """Which faces have voxels of the region beyond them: `(3, 2)`, by axis, low then high.

        >>> Place(Box((0, 0, 0), (2, 2, 2)), Box((0, 0, 0), (4, 2, 2)), (4, 2, 2)).inner_faces()[0].tolist()
        [False, True]
        """
        low = [a > b for a, b in zip(self.box.start, self.region.start, strict=True)]
        high = [a < b for a, b in zip(self.box.stop, self.region.stop, strict=True)]
        return np.array([low, high], dtype=np.bool_).T


def read_box(box: Box, region: Box) -> Box:
    """The affinities that a block's picks depend on: one voxel beyond its high faces, inside the region."""
    return box.grow(0, 1).intersect(region)


def watershed(
    affinities: npt.NDArray[np.uint8], place: Place, low: int, high: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Basins of one block.

    `affinities` is uint8 `(3, z, y, x)` over `read_box`; channel c at voxel p is the edge between p and p - e_c.
    Returns pieces, uint64 of the block's shape (1 + global linear index of a piece's first voxel; 0 where no edge
    reaches
    `low`), and the sorted keys of the edges across faces that the block's own voxels picked, uint64.
    """
    shape = place.box.shape
    roots = np.arange(place.box.size, dtype=np.int64)
    crossing = np.empty(sum(2 * place.box.size // side for side in shape), dtype=np.uint64)
    lit = np.zeros(place.box.size, dtype=np.bool_)
    count = pick_edges(
        affinities,
        np.array(shape, dtype=np.int64),
        place.inner_faces()[:, 0],
        _first_voxel(place),
        np.array(strides(place.volume_shape), dtype=np.uint64),
        low,
        high,
        roots,
        lit,
        crossing,
    )
    pieces = name_pieces(roots, lit, np.array(shape, dtype=np.int64), _first_voxel(place), _strides(place))
    return pieces.reshape(shape), np.sort(crossing[:count])


def _first_voxel(place: Place) -> np.uint64:
    return np.uint64(sum(a * int(s) for a, s in zip(place.box.start, strides(place.volume_shape), strict=True)))


def _strides(place: Place) -> npt.NDArray[np.uint64]:
    return np.array(strides(place.volume_shape), dtype=np.uint64)


@numba.njit(cache=True, nogil=True)
def pick_edges(
    affinities: Any,
    shape: Any,
    low_inner: Any,
    first: Any,
    step: Any,
    low: Any,
    high: Any,
    roots: Any,
    lit: Any,
    crossing: Any,
) -> Any:
    """Join voxels along picked edges in `roots`, mark those with an edge of at least `low`, list picks across faces."""
    nz, ny, nx = shape
    extent = affinities.shape[1:]
    local_step = (ny * nx, nx, 1)
    crossing_count = 0
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                p = (z, y, x)
                local = (z * ny + y) * nx + x
                voxel = first + np.uint64(z) * step[0] + np.uint64(y) * step[1] + np.uint64(x) * step[2]
                best_key, best_axis, best_side = np.uint64(0), -1, 0
                for axis in range(3):
                    if p[axis] > 0 or low_inner[axis]:
                        affinity = affinities[axis, z, y, x]
                        if affinity >= low:
                            key = edge_key(affinity, voxel, np.uint64(axis))
                            if best_axis < 0 or key > best_key:
                                best_key, best_axis, best_side = key, axis, 0
                            if affinity >= high and p[axis] > 0:
                                union(roots, local, local - local_step[axis])
                    if p[axis] + 1 < extent[axis]:
                        zq, yq, xq = z + (axis == 0), y + (axis == 1), x + (axis == 2)
                        affinity = affinities[axis, zq, yq, xq]
                        if affinity >= low:
                            key = edge_key(affinity, voxel + step[axis], np.uint64(axis))
                            if best_axis < 0 or key > best_key:
                                best_key, best_axis, best_side = key, axis, 1
                if best_axis < 0:
                    continue
                lit[local] = True
                if best_side == 0 and p[best_axis] > 0:
                    union(roots, local, local - local_step[best_axis])
                elif best_side == 1 and p[best_axis] + 1 < shape[best_axis]:
                    union(roots, local, local + local_step[best_axis])
                else:
                    crossing[crossing_count] = best_key
                    crossing_count += 1
    return crossing_count


@numba.njit(cache=True, nogil=True)
def name_pieces(roots: Any, lit: Any, shape: Any, first: Any, step: Any) -> Any:
    """Ids of pieces: 1 + the global linear index of the first voxel, 0 for voxels that are not lit."""
    _, ny, nx = shape
    pieces = np.zeros(roots.size, dtype=np.uint64)
    for local in range(roots.size):
        if lit[local]:
            root = find(roots, local)
            if root == local:
                z, rest = divmod(local, ny * nx)
                y, x = divmod(rest, nx)
                voxel = first + np.uint64(z) * step[0] + np.uint64(y) * step[1] + np.uint64(x) * step[2]
                pieces[local] = voxel + np.uint64(1)
            else:
                # A root is the smallest index of its set, so it was named before.
                pieces[local] = pieces[root]
    return pieces
