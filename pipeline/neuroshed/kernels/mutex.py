"""Mutex watershed by mwatershed (github.com/pattonw/mwatershed, 0.5), in a process of its own: it holds the GIL.

Wolf et al., "The Mutex Watershed", ECCV 2018; Beier et al. on its relation to multicuts, 2019/2020. All edges in
falling strength: an attractive one joins its two clusters unless they exclude each other, a repulsive one makes them
exclude each other unless they are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec
from neuroshed.kernels.child import call
from neuroshed.kernels.order import hash64

NEAREST: tuple[Vec, Vec, Vec] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))

TIE = 1e-9
"""Edges whose strengths differ by less than this count as equal."""


def mutex_watershed(
    affinities: npt.NDArray[np.uint8], offsets: Sequence[Vec], bias: float | Sequence[float], low: float = 0.0
) -> npt.NDArray[np.uint64]:
    """Segments of one block: uint64 `(z, y, x)`, 1..n in the order of their first voxels, 0 for background.

    `affinities` is uint8 `(channels, z, y, x)`, 255 is 1; channel c at voxel p is the edge between p and
    p + `offsets[c]`, the first three offsets being `NEAREST`. An affinity above the `bias` of its channel (0..1, one
    for all or one a channel) attracts, one that is not repels; its strength is its distance from the bias. With a bias
    of 0 for the three nearest channels and 1 for the others this is Wolf et al.'s: near edges attract, far ones repel;
    about 0.5 for all is the custom for trained affinities. No edge is left out at random.

    Background are voxels without a nearest-neighbour edge of at least `low`, which take no part, and voxels that
    no edge attracts.

    Ties, which uint8 is full of, are broken by a fixed hash of channel and voxel *in this array*, added to the strength
    below `TIE`: the result does not depend on the machine, nor on how mwatershed sorts. It is not independent of
    chunks, for ties and because of the method: exclusions spread along whole segments, so that an edge may be decided
    by any stronger one however far away. Blocks need context, and their segments stitching by overlap.
    Takes about 100 bytes and 1 to 2.5 µs an edge (voxels times channels), measured.

    Raises ValueError for affinities, offsets, biases or a `low` that do not fit.
    """
    biases = [float(b) for b in bias] if isinstance(bias, Sequence) else [float(bias)] * len(offsets)
    if affinities.ndim != 4 or affinities.dtype != np.uint8 or affinities.size == 0:
        raise ValueError(
            f"affinities are {affinities.dtype} {affinities.shape}; they must be uint8 (channels, z, y, x), none 0"
        )
    if not len(affinities) == len(offsets) == len(biases):
        raise ValueError(
            f"{len(affinities)} channels have {len(offsets)} offsets and {len(biases)} biases; there must be one each"
        )
    if tuple(offsets[:3]) != NEAREST or not all(any(offset) for offset in offsets):
        raise ValueError(f"offsets {list(offsets)} must start with {NEAREST}, and none may be zero")
    if not all(0 <= value <= 1 for value in (*biases, low)):
        raise ValueError(f"bias {bias} and low {low} must be in 0..1")
    settings = {"offsets": [list(offset) for offset in offsets], "biases": biases, "low": low}
    return call("mwatershed.agglom", [affinities], **settings)[0]


# What follows runs in the other process.


def _agglom(
    affinities: npt.NDArray[np.uint8], *, offsets: list[list[int]], biases: list[float], low: float
) -> list[npt.NDArray[np.uint64]]:
    import mwatershed

    shape = affinities.shape[1:]
    # mwatershed does not take edges that are longer than the array.
    fitting = [c for c, offset in enumerate(offsets) if all(abs(o) < n for o, n in zip(offset, shape, strict=True))]
    offsets = [offsets[c] for c in fitting]
    weights = np.stack([_weights(affinities[c], c, biases[c]) for c in fitting]) if fitting else np.zeros((0, *shape))
    near = [c for c in fitting if c < 3]
    inside = _touched([affinities[c] / 255 >= low for c in near], offsets[: len(near)], shape)
    for weight, offset in zip(weights, offsets, strict=True):
        here, there = _ends(offset, shape)
        weight[here][~(inside[here] & inside[there])] = -1.0
    attracted = _touched([weight > 0 for weight in weights], offsets, shape)
    if not attracted.any():
        return [np.zeros(shape, np.uint64)]
    labels = mwatershed.agglom(weights, offsets)
    # It names a segment by one of its voxels, so 0 is background, or the segment of voxel 0.
    return [_in_order(np.where(attracted, labels + np.uint64(1), np.uint64(0)))]


def _weights(affinities: npt.NDArray[np.uint8], channel: int, bias: float) -> npt.NDArray[np.float64]:
    """Signed strengths of one channel, above 0 where it attracts, no two of them equal."""
    ties = _ties(np.uint64(channel * affinities.size), affinities.size).reshape(affinities.shape)
    weights: npt.NDArray[np.float64] = affinities / 255 - bias
    weights += np.where(weights > 0, ties, -ties)
    return weights


@numba.njit(cache=True, nogil=True)
def _ties(first: Any, count: Any) -> Any:
    ties = np.empty(count)
    for i in range(count):
        ties[i] = hash64(first + np.uint64(i)) * (TIE / 2.0**64)
    return ties


def _ends(offset: list[int], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The voxels that have a partner at `offset` inside the array, and their partners.

    >>> _ends([-1, 0], (4, 4))
    ((slice(1, 4, None), slice(0, 4, None)), (slice(0, 3, None), slice(0, 4, None)))
    """
    here = tuple(slice(max(0, -o), min(n, n - o)) for o, n in zip(offset, shape, strict=True))
    there = tuple(slice(max(0, o), min(n, n + o)) for o, n in zip(offset, shape, strict=True))
    return here, there


def _touched(
    edges: Sequence[npt.NDArray[np.bool_]], offsets: list[list[int]], shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """The voxels at either end of any of `edges`, one mask an offset."""
    touched = np.zeros(shape, dtype=np.bool_)
    for edge, offset in zip(edges, offsets, strict=True):
        here, there = _ends(offset, shape)
        touched[here] |= edge[here]
        touched[there] |= edge[here]
    return touched


def _in_order(labels: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Labels 1..n in the order of their first voxels; 0 stays.

    >>> _in_order(np.array([9, 9, 0, 4], np.uint64)).tolist()
    [1, 1, 0, 2]
    """
    ids, first, places = np.unique(labels, return_index=True, return_inverse=True)
    first[ids == 0] = -1
    names: npt.NDArray[Any] = np.empty(ids.size, dtype=np.uint64)
    names[np.argsort(first)] = np.arange(ids.size) + (ids[0] != 0)
    return names[places].reshape(labels.shape)
