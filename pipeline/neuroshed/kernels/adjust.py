"""Smoothing and bias of affinities, in integers: every voxel's result is the same whatever block computes it.

Smoothing is a Gaussian with integer weights, divided once, with rounding, by the sum of the weights that met an edge.
Where edges end at the bounds, the weights beyond do not count, so a constant stays constant up to the faces.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.conventions import edges_box

MAX_SMOOTH = 8.0
"""Largest standard deviation in voxels: sums stay below 2**53, and the halo within 24 voxels."""
UNIT = 1 << 10
"""Weight of the middle voxel along each axis."""
MAX_BIAS = 255


def reach(smooth: float) -> int:
    """Voxels of halo for a standard deviation of `smooth` voxels: three of them, rounded up.

    >>> reach(0), reach(0.5), reach(2)
    (0, 2, 6)
    """
    return math.ceil(3 * smooth)


def read_box(box: Box, bounds: Box, smooth: float) -> Box:
    """The affinities that those of `box` depend on; `bounds` is where affinities end: the volume, or a region."""
    return box.grow(reach(smooth)).intersect(bounds)


def check_adjustment(smooth: float, bias: int) -> None:
    """Raise ValueError unless `smooth` is in 0..8 voxels and `bias` in -255..255."""
    if not 0 <= smooth <= MAX_SMOOTH:
        raise ValueError(f"smooth is {smooth} voxels; needed is 0 (none) to {MAX_SMOOTH:g}")
    if not -MAX_BIAS <= bias <= MAX_BIAS:
        raise ValueError(f"bias is {bias}; needed is {-MAX_BIAS} to {MAX_BIAS}")


def adjust(
    affinities: npt.NDArray[np.uint8],
    offsets: Sequence[Vec],
    box: Box,
    bounds: Box,
    *,
    smooth: float = 0.0,
    bias: int = 0,
) -> npt.NDArray[np.uint8]:
    """Smoothed affinities plus `bias`, clipped to 0..255: uint8 `(c, z, y, x)` over `box`, which lies in `bounds`.

    `affinities` is uint8 `(c, z, y, x)` over `read_box`; channel c at voxel p is the edge between p and p +
    `offsets[c]`. `smooth` is the standard deviation in voxels along all three axes. Edges that leave the bounds weigh
    nothing and come out as 0. With neither smoothing nor bias the array itself is returned.

    Raises ValueError for parameters out of range and an array of another shape.
    """
    check_adjustment(smooth, bias)
    around = read_box(box, bounds, smooth)
    if affinities.shape != (len(offsets), *around.shape) or not bounds.contains(box):
        raise ValueError(
            f"affinities of shape {list(affinities.shape)} for box {box}; needed are those of {len(offsets)} offsets "
            f"over {around}"
        )
    if smooth == 0 and bias == 0:
        return affinities
    added = np.clip(np.arange(256) + bias, 0, 255).astype(np.uint8)
    out = np.zeros((len(offsets), *box.shape), np.uint8)
    for channel, offset in enumerate(offsets):
        there = edges_box(bounds, offset)
        own, given = box.intersect(there), around.intersect(there)
        if not own.empty:
            values = affinities[channel][given.slices(around.start)]
            out[channel][own.slices(box.start)] = added[_blur(values, given, own, smooth) if smooth else values]
    return out


@functools.lru_cache(maxsize=16)
def taps(smooth: float) -> tuple[int, ...]:
    """Integer weights of the voxels 0, 1, ... `reach` away.

    In decimal arithmetic, which rounds alike on every machine; `exp` of floats need not.

    >>> taps(1.0)
    (1024, 621, 139, 11)
    """
    with localcontext() as context:
        context.prec = 40
        spread = 2 * Decimal(smooth) ** 2
        return tuple(int((UNIT * (-(k * k) / spread).exp()).to_integral_value()) for k in range(reach(smooth) + 1))


def _blur(values: npt.NDArray[np.uint8], given: Box, own: Box, smooth: float) -> npt.NDArray[np.uint8]:
    """Weighted means over `own`, uint8, of `values` over `given`."""
    out = np.empty(own.shape, np.uint8)
    weights = np.array(taps(smooth), np.int64)
    low = np.array(own.start) - given.start
    totals = [_totals(n, start, side, weights) for n, start, side in zip(given.shape, low, own.shape, strict=True)]
    _blur_planes(values, low, weights, *totals, out)
    return out


def _totals(n: int, start: int, length: int, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Along one axis of `n` layers, the weights that meet a layer, for each of `length` layers from `start` on."""
    steps = np.arange(1 - weights.size, weights.size)
    met = start + np.arange(length)[:, None] + steps
    total: npt.NDArray[np.int64] = np.where((met >= 0) & (met < n), weights[abs(steps)], 0).sum(axis=1)
    return total


@numba.njit(cache=True, nogil=True)
def _blur_planes(values: Any, low: Any, weights: Any, total_z: Any, total_y: Any, total_x: Any, out: Any) -> Any:
    # Plane by plane, first along z, then y, then x: the sums stay in the processor's cache.
    nz, ny, nx = values.shape
    reached = weights.size - 1
    along_z, along_y = np.empty((ny, nx), np.int32), np.empty(nx, np.int64)
    row = np.empty(out.shape[2], np.int64)
    for z in range(out.shape[0]):
        middle = z + low[0]
        along_z[:] = 0
        for source in range(max(middle - reached, 0), min(middle + reached + 1, nz)):
            weight = np.int32(weights[abs(source - middle)])
            for y in range(ny):
                for x in range(nx):
                    along_z[y, x] += weight * np.int32(values[source, y, x])
        for y in range(out.shape[1]):
            centre = y + low[1]
            along_y[:] = 0
            for source in range(max(centre - reached, 0), min(centre + reached + 1, ny)):
                weight = weights[abs(source - centre)]
                for x in range(nx):
                    along_y[x] += weight * along_z[source, x]
            row[:] = 0
            for step in range(-reached, reached + 1):
                weight, shift = weights[abs(step)], step + low[2]
                for x in range(max(-shift, 0), min(nx - shift, row.size)):
                    row[x] += weight * along_y[x + shift]
            for x in range(row.size):
                divisor = total_z[z] * total_y[y] * total_x[x]
                out[z, y, x] = (2 * row[x] + divisor) // (2 * divisor)
