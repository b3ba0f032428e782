"""Contacts between labelled neighbours: listed voxel face by voxel face, then summed by pair.

Each voxel face belongs to the block of its upper voxel, so blocks that read one voxel beyond their low faces count
every contact exactly once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box
from neuroshed.kernels.order import edge_key, strides
from neuroshed.kernels.watershed import Place


class Contacts(NamedTuple):
    """Voxel faces between two different labels, one row a face.

    `upper`, `lower` uint64: the labels; `keys` uint64: the edge keys, which hold the affinities; `axis` uint8: the axis
    along which the face leaves the block, or 3 for a face inside it.
    """

    upper: npt.NDArray[np.uint64]
    lower: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    axis: npt.NDArray[np.uint8]


INSIDE = 3


def read_box(box: Box, region: Box) -> Box:
    """The labels that a block's contacts depend on: one voxel beyond its low faces, inside the region."""
    return box.grow(1, 0).intersect(region)


def contacts(labels: npt.NDArray[np.uint64], affinities: npt.NDArray[np.uint8], place: Place, low: int = 0) -> Contacts:
    """All voxel faces of a block between two different non-zero labels whose affinity is at least `low`.

    `labels` is uint64 `(z, y, x)` over `read_box`; `affinities` uint8 `(3, z, y, x)` over the block's box.
    """
    low_inner = place.inner_faces()[:, 0].astype(np.int64)
    step = np.array(strides(place.volume_shape), dtype=np.uint64)
    first = np.uint64(sum(a * int(s) for a, s in zip(place.box.start, step, strict=True)))
    count = _list_contacts(labels, affinities, low_inner, first, step, low, _no_rows(0), False)
    rows = _no_rows(count)
    _list_contacts(labels, affinities, low_inner, first, step, low, rows, True)
    return Contacts(*rows)


def _no_rows(
    count: int,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    return (
        np.empty(count, np.uint64),
        np.empty(count, np.uint64),
        np.empty(count, np.uint64),
        np.empty(count, np.uint8),
    )


@numba.njit(cache=True, nogil=True)
def _list_contacts(
    labels: Any, affinities: Any, halo: Any, first: Any, step: Any, low: Any, rows: Any, fill: Any
) -> Any:
    """Count the contacts, and write them to `rows` if `fill`. `halo`: voxels of `labels` before the block, by axis."""
    count = 0
    _, nz, ny, nx = affinities.shape
    for z in range(nz):
        for y in range(ny):
            for x in range(nx):
                upper = labels[z + halo[0], y + halo[1], x + halo[2]]
                if upper == 0:
                    continue
                p = (z, y, x)
                for axis in range(3):
                    if p[axis] == 0 and halo[axis] == 0:
                        continue
                    zq = z + halo[0] - (axis == 0)
                    yq = y + halo[1] - (axis == 1)
                    xq = x + halo[2] - (axis == 2)
                    lower = labels[zq, yq, xq]
                    affinity = affinities[axis, z, y, x]
                    if lower == 0 or lower == upper or affinity < low:
                        continue
                    if fill:
                        voxel = first + np.uint64(z) * step[0] + np.uint64(y) * step[1] + np.uint64(x) * step[2]
                        rows[0][count] = upper
                        rows[1][count] = lower
                        rows[2][count] = edge_key(affinity, voxel, np.uint64(axis))
                        rows[3][count] = axis if p[axis] == 0 else 3
                    count += 1
    return count


def group_pairs(
    left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64], axis: npt.NDArray[np.uint8] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Order rows by pair (and axis): `order` int64 sorts them, `starts` int64 are the first rows of each group.

    >>> order, starts = group_pairs(np.array([7, 2, 7], np.uint64), np.array([1, 1, 1], np.uint64))
    >>> order.tolist(), starts.tolist()
    ([1, 0, 2], [0, 1])
    """
    columns = (right, left) if axis is None else (right, left, axis)
    order = np.lexsort(columns)
    if order.size == 0:
        return order, np.zeros(0, dtype=np.int64)
    new = np.zeros(order.size, dtype=np.bool_)
    new[0] = True
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    return order, np.flatnonzero(new)


def faces_touched(labels: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Labels on the six faces of a block and which faces each touches.

    Returns sorted non-zero ids, uint64, and masks, uint8: bit `2 * axis` for the low face, `2 * axis + 1` for the high.

    >>> ids, masks = faces_touched(np.array([[[5, 5, 6]]], np.uint64))
    >>> ids.tolist(), [f"{mask:06b}" for mask in masks]
    ([5, 6], ['011111', '101111'])
    """
    ids, bits = [], []
    for axis in range(3):
        for side in range(2):
            face = np.unique(labels.take(-side, axis))
            face = face[face != 0]
            ids.append(face)
            bits.append(np.full(face.size, 1 << (2 * axis + side), dtype=np.uint8))
    return merge_masks(np.concatenate(ids), np.concatenate(bits))


def merge_masks(
    ids: npt.NDArray[np.uint64], masks: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """One row an id, sorted: its masks joined by or."""
    unique, inverse = np.unique(ids, return_inverse=True)
    joined = np.zeros(unique.size, dtype=np.uint8)
    np.bitwise_or.at(joined, inverse, masks)
    return unique, joined
