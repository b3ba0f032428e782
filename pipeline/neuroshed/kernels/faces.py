"""Contacts across the face between two blocks: a thin pass over two planes of labels and one of affinities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.order import edge_keys
from neuroshed.kernels.watershed import Place


class Plane(NamedTuple):
    """The voxels of a block at one of its faces, flat in raster order: `labels` int64 of the block's own numbering,
    `picked` bool: the voxel picked the edge across the face.
    """

    labels: npt.NDArray[np.int64]
    picked: npt.NDArray[np.bool_]


class Crossings(NamedTuple):
    """Edges across a face, one row a pair: labels `upper, lower` int64, each of its own block; statistics as in
    `regions.Contacts`; `keys` uint64, the best edge of at least `low` or 0; `joined` bool: the watershed joins them;
    `histograms` as in `regions.Contacts`.
    """

    upper: npt.NDArray[np.int64]
    lower: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    lowest: npt.NDArray[np.uint8]
    highest: npt.NDArray[np.uint8]
    keys: npt.NDArray[np.uint64]
    joined: npt.NDArray[np.bool_]
    histograms: npt.NDArray[np.int64]


def crossings(
    upper: Plane,
    lower: Plane,
    affinities: npt.NDArray[np.uint8],
    place: Place,
    axis: int,
    low: int,
    high: int,
    histograms: bool = False,
) -> Crossings:
    """Contacts between the block at `place` and its lower neighbour along `axis`.

    `upper` is the block's own low plane, `lower` the neighbour's high plane, `affinities` uint8 the edges between them,
    flat in the same order.
    """
    voxels = np.flatnonzero((upper.labels != 0) & (lower.labels != 0))
    pairs = (upper.labels[voxels] << 32) | lower.labels[voxels]
    order = np.argsort(pairs, kind="stable")
    voxels, pairs = voxels[order], pairs[order]
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    found = affinities[voxels]
    keys = edge_keys(found, _global_index(voxels, place, axis), axis)
    joined = upper.picked[voxels] | lower.picked[voxels] | (found >= high)
    values = found.astype(np.int64)
    bins = np.zeros((0, 256), np.int64)
    if starts.size == 0:
        return Crossings(pairs, pairs, values, values, found, found, keys, joined, bins)
    if histograms:
        pair = np.repeat(np.arange(starts.size), np.diff(starts, append=voxels.size))
        bins = np.bincount(pair * 256 + values, minlength=256 * starts.size).reshape(-1, 256)
    return Crossings(
        pairs[starts] >> 32,
        pairs[starts] & 0xFFFFFFFF,
        np.add.reduceat(values, starts),
        np.diff(starts, append=voxels.size),
        np.minimum.reduceat(found, starts),
        np.maximum.reduceat(found, starts),
        np.maximum.reduceat(np.where(found >= low, keys, np.uint64(0)), starts),
        np.logical_or.reduceat(joined, starts),
        bins,
    )


def _global_index(voxels: npt.NDArray[np.int64], place: Place, axis: int) -> npt.NDArray[np.uint64]:
    """Global linear indices of voxels of the low plane along `axis`."""
    shape = [1 if a == axis else side for a, side in enumerate(place.box.shape)]
    index = np.full(voxels.shape, place.first)
    for step, at in zip(place.steps, np.unravel_index(voxels, shape), strict=True):
        index += step * at.astype(np.uint64)
    return index
