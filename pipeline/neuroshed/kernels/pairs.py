"""Where two rows of labels meet, and a table of the pairs that meet: open addressing, grown by its caller.

Rows are compared without branches, which compiles to vector instructions; what follows runs only where labels meet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFT, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
FULL = 0.4
"""Share of used slots beyond which a table must grow."""


class Row(NamedTuple):
    """Room for a row of voxels: `marks` uint8, each 0 or 1, the same bytes as `words` uint64, and `at` int32, for the
    places of the marks.
    """

    marks: npt.NDArray[np.uint8]
    words: npt.NDArray[np.uint64]
    at: npt.NDArray[np.int32]


def row_buffers(length: int) -> Row:
    """Room for a row of `length` voxels, without marks."""
    words = np.zeros(-(-length // 8), np.uint64)
    return Row(words.view(np.uint8), words, np.zeros(8 * words.size, np.int32))


@numba.njit(cache=True, nogil=True)
def marked(row: Any) -> Any:
    """Enter the places of the marks of a `Row`; returns how many there are, uint32."""
    marks, words, at = row
    count = np.uint32(0)
    for word in range(words.size):
        if words[word]:
            for x in range(8 * word, 8 * word + 8):
                at[count] = x
                count += np.uint32(marks[x])
    return count


@numba.njit(cache=True, nogil=True)
def meetings(
    labels: Any, upper: Any, lower: Any, affinities: Any, edge: Any, length: Any, least: Any, most: Any, row: Any
) -> Any:
    """Mark where different labels, neither of them background, meet with an affinity from `least` to `most` (uint8).

    `labels` and `affinities` are flat: two rows of labels begin at `upper` and at `lower`, their edges at `edge` (all
    uint64: slices of arrays would take longer to make than to compare). Returns how many `row` holds.
    """
    marks = row.marks
    for i in range(length):
        x = np.uint64(i)
        a, b, affinity = labels[upper + x], labels[lower + x], affinities[edge + x]
        marks[x] = (
            np.uint8(a != b)
            & np.uint8(a != 0)
            & np.uint8(b != 0)
            & np.uint8(affinity >= least)
            & np.uint8(affinity <= most)
        )
    for i in range(length, marks.size):
        marks[i] = 0
    return marked(row)


@numba.njit(cache=True, nogil=True)
def pack(first: Any, second: Any) -> Any:
    """One uint64 for a pair of labels of up to 32 bits."""
    return (np.uint64(first) << _SHIFT) | np.uint64(second)


def unpack(pairs: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and second labels of packed pairs.

    >>> [int(label[0]) for label in unpack(np.array([(7 << 32) + 9], np.uint64))]
    [7, 9]
    """
    return (pairs >> _SHIFT).astype(np.int64), (pairs & _LOW).astype(np.int64)


@numba.njit(cache=True, nogil=True)
def slot_of(slots: Any, pairs: Any, pair: Any) -> Any:
    """The slot of a pair: where its row number (from 1) is, or where it belongs.

    `slots` int32, its length a power of two, 0 where free; `pairs` uint64 by row.
    """
    mask = np.uint64(slots.size - 1)
    slot = ((pair * _GOLDEN) >> _SHIFT) & mask
    while slots[slot] != 0 and pairs[np.uint64(slots[slot] - 1)] != pair:
        slot = (slot + np.uint64(1)) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def grown(slots: Any, pairs: Any, count: Any) -> Any:
    """The same table with twice the slots."""
    larger = np.zeros(slots.size * 2, np.int32)
    for row in range(count):
        larger[slot_of(larger, pairs, pairs[row])] = row + 1
    return larger


@numba.njit(cache=True, nogil=True)
def longer(values: Any) -> Any:
    """The same rows with room for twice as many."""
    more = np.zeros((values.shape[0] * 2, *values.shape[1:]), values.dtype)
    more[: values.shape[0]] = values
    return more
