"""Smaller arrays: each window of voxels becomes one, the mean of an image or the most frequent of labels.

Windows begin at index 0 of the array and do not overlap; the last along an axis takes what is there. All is integer
arithmetic, so an array cut at multiples of the factor gives the same voxels as the whole.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Vec

_HALF_BITS, _HALF_MASK = np.uint64(32), np.uint64(0xFFFFFFFF)


def mean(data: npt.NDArray[Any], factor: Vec) -> npt.NDArray[Any]:
    """The means of windows of `factor` (z, y, x) of an integer array `(z, y, x)`: `ceil(n / f)` voxels of its own type.

    They are exact, halves are rounded to the even number. Raises TypeError for other than integers.

    >>> mean(np.array([[[1, 2, 4, 5, 9]]], np.uint8), (1, 1, 2)).tolist()
    [[[2, 4, 9]]]
    """
    if data.dtype.kind not in "ui":
        raise TypeError(f"means of {data.dtype} are not exact; needed are integers")
    plain, out = _prepared(data, factor)
    if data.dtype.itemsize == 8:
        # Negative numbers are moved up by 2^63, which is even, and their means back.
        sign = np.uint64(data.dtype.kind == "i") << np.uint64(63)
        _wide_means(plain.view(np.uint64) ^ sign, factor, out.view(np.uint64))
        out.view(np.uint64)[...] ^= sign
    else:
        _means(plain, factor, out)
    return out


def mode(labels: npt.NDArray[Any], factor: Vec) -> npt.NDArray[Any]:
    """The most frequent values in windows of `factor` (z, y, x) of an array `(z, y, x)`: `ceil(n / f)` of its own type.

    Of several that are as frequent it is the smallest; 0 counts as any label.

    >>> mode(np.array([[[7, 7, 2, 1, 0]]], np.uint64), (1, 1, 2)).tolist()
    [[[7, 1, 0]]]
    """
    plain, out = _prepared(labels, factor)
    _modes(plain, factor, out)
    return out


def _prepared(data: npt.NDArray[Any], factor: Vec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The array in C order and this machine's byte order, and one for the result."""
    if data.ndim != 3 or min(factor) < 1:
        raise ValueError(
            f"no windows of {factor} in an array of shape {data.shape}; needed are z, y, x and factors > 0"
        )
    plain = np.ascontiguousarray(data, data.dtype.newbyteorder("="))
    return plain, np.empty([-(-n // f) for n, f in zip(data.shape, factor, strict=True)], plain.dtype)


@numba.njit(cache=True, nogil=True)
def _means(data: Any, factor: Any, out: Any) -> Any:
    deep, high, wide = factor
    sums = np.empty(out.shape[2], np.int64)
    for z in range(out.shape[0]):
        planes = min(deep, data.shape[0] - z * deep)
        for y in range(out.shape[1]):
            rows = min(high, data.shape[1] - y * high)
            sums[:] = 0
            for dz in range(planes):
                for dy in range(rows):
                    _add_row(data[z * deep + dz, y * high + dy], wide, sums)
            _divide(sums, planes * rows, wide, data.shape[2], out[z, y])


@numba.njit(cache=True, nogil=True)
def _add_row(row: Any, wide: Any, sums: Any) -> Any:
    """Add the voxels of a row to the sums of their windows."""
    whole = row.size // wide
    if wide == 2:  # by far the most frequent; compilers make the best of a constant
        for x in range(whole):
            sums[x] += np.int64(row[2 * x]) + np.int64(row[2 * x + 1])
    else:
        for x in range(whole):
            for dx in range(wide):
                sums[x] += np.int64(row[x * wide + dx])
    for x in range(whole * wide, row.size):
        sums[whole] += np.int64(row[x])


@numba.njit(cache=True, nogil=True)
def _divide(sums: Any, lines: Any, wide: Any, columns: Any, out: Any) -> Any:
    """Means of the windows of a row: `lines` times `wide` voxels each, the last maybe fewer."""
    whole = columns // wide
    count = lines * wide
    shift = 0
    while 1 << shift < count:
        shift += 1
    if 1 << shift == count:
        # Half of the count less one, and one more where the mean is odd: carries what must be rounded up.
        bias = (count >> 1) - 1 if shift else 0
        odd = 1 if shift else 0
        for x in range(whole):
            out[x] = (sums[x] + bias + ((sums[x] >> shift) & odd)) >> shift
    else:
        for x in range(whole):
            out[x] = _rounded(sums[x], count)
    if whole < out.size:
        out[whole] = _rounded(sums[whole], lines * (columns - whole * wide))


@numba.njit(cache=True, nogil=True)
def _rounded(total: Any, count: Any) -> Any:
    """The quotient of two int64, halves to even."""
    quotient = total // count
    twice = 2 * (total - quotient * count)
    if twice > count or (twice == count and quotient & 1):
        quotient += 1
    return quotient


@numba.njit(cache=True, nogil=True)
def _wide_means(data: Any, factor: Any, out: Any) -> Any:
    """The same for uint64, whose sums need more bits: halves of 32 bits are summed apart."""
    deep, high, wide = factor
    for z, y, x in np.ndindex(out.shape):
        window = data[z * deep : (z + 1) * deep, y * high : (y + 1) * high, x * wide : (x + 1) * wide]
        upper, lower = np.uint64(0), np.uint64(0)
        for value in window.flat:
            upper += value >> _HALF_BITS
            lower += value & _HALF_MASK
        count = np.uint64(window.size)
        lower += (upper % count) << _HALF_BITS
        quotient = lower // count
        twice = np.uint64(2) * (lower % count)
        if twice > count or (twice == count and quotient & np.uint64(1)):
            quotient += np.uint64(1)
        out[z, y, x] = ((upper // count) << _HALF_BITS) + quotient


@numba.njit(cache=True, nogil=True)
def _modes(data: Any, factor: Any, out: Any) -> Any:
    deep, high, wide = factor
    room = min(deep, data.shape[0]) * min(high, data.shape[1]) * min(wide, data.shape[2])
    kinds, votes = np.empty(room, data.dtype), np.empty(room, np.int64)
    mixed = np.empty(out.shape[2], np.bool_)
    for z in range(out.shape[0]):
        z0, z1 = z * deep, min((z + 1) * deep, data.shape[0])
        for y in range(out.shape[1]):
            y0, y1 = y * high, min((y + 1) * high, data.shape[1])
            first = out[z, y]
            first[:] = data[z0, y0, ::wide]
            mixed[:] = False
            for i in range(z0, z1):
                for j in range(y0, y1):
                    _compare_row(data[i, j], wide, first, mixed)
            for x in range(out.shape[2]):
                if mixed[x]:
                    start, stop = (z0, y0, x * wide), (z1, y1, min((x + 1) * wide, data.shape[2]))
                    first[x] = _winner(kinds, votes, _count_votes(data, start, stop, kinds, votes))


@numba.njit(cache=True, nogil=True)
def _compare_row(row: Any, wide: Any, first: Any, mixed: Any) -> Any:
    """Mark the windows in which a row has other values than the first."""
    whole = row.size // wide
    if wide == 2:
        for x in range(whole):
            mixed[x] |= (row[2 * x] != first[x]) | (row[2 * x + 1] != first[x])
    else:
        for x in range(whole):
            for dx in range(wide):
                mixed[x] |= row[x * wide + dx] != first[x]
    for x in range(whole * wide, row.size):
        mixed[whole] |= row[x] != first[whole]


@numba.njit(cache=True, nogil=True)
def _count_votes(data: Any, start: Any, stop: Any, kinds: Any, votes: Any) -> Any:
    """Fill `kinds` and `votes` with the values in a box and how often they are there; returns how many, mostly few."""
    found, at = 0, 0
    for i in range(start[0], stop[0]):
        for j in range(start[1], stop[1]):
            for k in range(start[2], stop[2]):
                value = data[i, j, k]
                if found == 0 or kinds[at] != value:
                    at = 0
                    while at < found and kinds[at] != value:
                        at += 1
                    if at == found:
                        kinds[at], votes[at] = value, 0
                        found += 1
                votes[at] += 1
    return found


@numba.njit(cache=True, nogil=True)
def _winner(kinds: Any, votes: Any, found: Any) -> Any:
    """The kind with the most votes, the smallest of several."""
    best = 0
    for i in range(1, found):
        if votes[i] > votes[best] or (votes[i] == votes[best] and kinds[i] < kinds[best]):
            best = i
    return kinds[best]
