"""Contacts between two blocks: a thin pass over the labels and affinities of the edges that cross."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    """Edges from one block to another, one row a pair: labels `upper, lower` int64, each of its own block; statistics
    and `histograms` as in `regions.Contacts`; `keys` uint64, the best edge between neighbours of at least `low` or 0;
    `joined` bool: the watershed joins them.
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
    keys = edge_keys(affinities, _global_index(np.arange(affinities.size), place, axis), axis)
    joined = upper.picked | lower.picked | (affinities >= high)
    strong = np.where(affinities >= low, keys, np.uint64(0))
    return _by_pair(upper.labels, lower.labels, affinities, strong, joined, histograms)


def far_crossings(
    upper: npt.NDArray[np.integer[Any]],
    lower: npt.NDArray[np.integer[Any]],
    affinities: npt.NDArray[np.uint8],
    histograms: bool = False,
) -> Crossings:
    """Contacts by long-range edges: labels of their upper and lower voxels and their affinities, of one shape.

    They count in scores, and join nothing by themselves: no keys, nothing joined.
    """
    above, below = (labels.ravel().astype(np.int64) for labels in (upper, lower))
    none = np.zeros(affinities.size, np.uint64)
    return _by_pair(above, below, affinities.ravel(), none, none > 0, histograms)


def _by_pair(
    upper: npt.NDArray[np.int64],
    lower: npt.NDArray[np.int64],
    affinities: npt.NDArray[np.uint8],
    keys: npt.NDArray[np.uint64],
    joined: npt.NDArray[np.bool_],
    histograms: bool,
) -> Crossings:
    edges = np.flatnonzero((upper != 0) & (lower != 0))
    pairs = (upper[edges] << 32) | lower[edges]
    order = np.argsort(pairs, kind="stable")
    edges, pairs = edges[order], pairs[order]
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    found, keys, joined = affinities[edges], keys[edges], joined[edges]
    values = found.astype(np.int64)
    bins = np.zeros((0, 256), np.int64)
    if starts.size == 0:
        return Crossings(pairs, pairs, values, values, found, found, keys, joined, bins)
    if histograms:
        pair = np.repeat(np.arange(starts.size), np.diff(starts, append=edges.size))
        bins = np.bincount(pair * 256 + values, minlength=256 * starts.size).reshape(-1, 256)
    return Crossings(
        pairs[starts] >> 32,
        pairs[starts] & 0xFFFFFFFF,
        np.add.reduceat(values, starts),
        np.diff(starts, append=edges.size),
        np.minimum.reduceat(found, starts),
        np.maximum.reduceat(found, starts),
        np.maximum.reduceat(keys, starts),
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
