"""Whether two arrays hold the same: value by value, or as labels up to their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.metrics import SLICE_VOXELS, add_up

SLICE_VALUES = 2**16
"""Numbers that are subtracted at a time: bounds the memory of that, whatever their types."""
SUBTRACTED_BYTES = 192
"""Memory of one of them: those of 64 bits, signed and unsigned, are subtracted as Python's own."""


class Difference(NamedTuple):
    """How two arrays differ."""

    values: int
    """That differ."""
    first: tuple[int, ...]
    """Where the first of them is: of the smallest z, y, x, and there of the first channel."""
    largest: int | float | None
    """The largest difference of two numbers; None if NaN or infinity takes part in all of them."""


def difference(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Difference | None:
    """How two arrays of one shape, both of integers or both of floats, differ; None if they do not. NaN equals NaN.

    >>> difference(np.array([1, 2, 3], np.uint8), np.array([1, 255, 0], np.uint8))
    Difference(values=2, first=(1,), largest=253)
    """
    differs = left != right
    if left.dtype.kind == "f":
        differs &= ~(np.isnan(left) & np.isnan(right))
    count = np.count_nonzero(differs)
    if not count:
        return None
    channels = differs.ndim - 3 if differs.ndim > 3 else 0
    voxels = differs.any(axis=0) if channels else differs
    place = np.unravel_index(int(voxels.argmax()), voxels.shape)
    first = (int(differs[(slice(None), *place)].argmax()), *map(int, place)) if channels else tuple(map(int, place))
    flat = [array.reshape(-1) for array in (left, right, differs)]
    slices = (slice(start, start + SLICE_VALUES) for start in range(0, differs.size, SLICE_VALUES))
    parts = ([array[part] for array in flat] for part in slices)
    found = [_largest(one[where], other[where]) for one, other, where in parts if where.any()]
    return Difference(int(count), first, max((gap for gap in found if gap is not None), default=None))


def _largest(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> int | float | None:
    """The largest absolute difference of at least one pair of numbers, exact for integers."""
    kind = np.result_type(left, right)
    if left.dtype.kind == "f":
        finite = np.isfinite(left) & np.isfinite(right)
        wide = np.abs(left[finite].astype(np.float64) - right[finite].astype(np.float64))
        return float(wide.max()) if wide.size else None
    if kind.kind == "f":
        # Signed and unsigned 64 bits have no integer type in common.
        return int(np.abs(left.astype(object) - right.astype(object)).max())
    if kind.kind == "b":
        return 1
    high, low = np.maximum(left, right).astype(kind), np.minimum(left, right).astype(kind)
    # Around the end of the type and back: right in the unsigned one, even where the signed one is too small.
    unsigned = np.dtype(f"u{kind.itemsize}")
    return int((high.view(unsigned) - low.view(unsigned)).max())


class Pairs(NamedTuple):
    """Which labels meet: four arrays of one length, sorted by (left, right), pairs unique."""

    left: npt.NDArray[np.uint64]
    right: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]
    """Voxels that they share."""
    first: npt.NDArray[np.int64]
    """The smallest place of these."""


def label_pairs(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Pairs:
    """The pairs of labels of two integer arrays of one shape, with places in raster order.

    >>> label_pairs(np.array([1, 1, 2]), np.array([7, 7, 8]))[2:]
    (array([2, 1]), array([0, 2]))
    """
    flat, other = left.reshape(-1), right.reshape(-1)
    starts = range(0, flat.size, SLICE_VOXELS)
    return add_pairs(_runs(flat[s : s + SLICE_VOXELS], other[s : s + SLICE_VOXELS], s) for s in starts)


def add_pairs(parts: Iterable[Pairs]) -> Pairs:
    """The pairs of all parts, which are taken one by one."""
    return add_up(parts, _merged)


def _runs(left: npt.NDArray[Any], right: npt.NDArray[Any], start: int) -> Pairs:
    begins = np.flatnonzero((left[1:] != left[:-1]) | (right[1:] != right[:-1])) + 1
    begins = np.concatenate((np.zeros(1, np.int64), begins))
    counts = np.diff(begins, append=left.size).astype(np.int64)
    return _merged([Pairs(left[begins].astype(np.uint64), right[begins].astype(np.uint64), counts, begins + start)])


def _merged(parts: list[Pairs]) -> Pairs:
    if not parts:
        return Pairs(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    left, right, counts, first = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((right, left))
    left, right = left[order], right[order]
    new = np.ones(left.size, np.bool_)
    new[1:] = (left[1:] != left[:-1]) | (right[1:] != right[:-1])
    starts = np.flatnonzero(new)
    return Pairs(
        left[starts],
        right[starts],
        np.add.reduceat(counts[order], starts),
        np.minimum.reduceat(first[order], starts),
    )


def misfits(pairs: Pairs) -> npt.NDArray[np.bool_]:
    """Which pairs do not fit a renaming of labels that keeps 0: none, if there is one that takes all of left to right.

    Else each label is taken to become the one with which it shares most voxels (the smallest of several), if it is that
    for the other one, too; all other pairs are misfits.
    """
    nothing = (pairs.left == 0) | (pairs.right == 0)
    best = _best(pairs.left, pairs.right, pairs.counts) & _best(pairs.right, pairs.left, pairs.counts)
    return np.where(nothing, pairs.left != pairs.right, ~best)


def _best(
    labels: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which pair is for each label the one of most voxels."""
    # Those with 0 cannot be chosen, so they come last.
    weight = np.where((labels == 0) == (others == 0), counts, 0)
    order = np.lexsort((others, -weight, labels))
    leads = np.ones(order.size, np.bool_)
    leads[1:] = labels[order][1:] != labels[order][:-1]
    found = np.zeros(order.size, np.bool_)
    found[order[leads]] = True
    return found
