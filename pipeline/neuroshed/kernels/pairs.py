"""Where two rows of labels meet, and a table of the pairs that meet, with chained rows and grown by its caller.

Rows are compared without branches, which compiles to vector instructions; what follows runs only where labels meet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

_SHIFT, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_SPREAD = np.uint64(5)
_DIGIT = np.uint64(22)
"""Bits of labels that are counted at once: their counts take 16 MB."""
# Fields in this order lie where the processor wants them; a row is half a line of its cache.
PAIR = np.dtype(
    (
        # So that rows have attributes in plain Python too.
        np.record,
        [
            ("pair", np.uint64),
            ("total", np.int64),
            ("count", np.int64),
            ("next", np.uint32),
            ("lowest", np.uint8),
            ("highest", np.uint8),
            ("", np.uint16),
        ],
    )
)
"""A row of the table: two labels (`pack`), statistics of the affinities between them, and the next row of a chain."""


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
def _head_of(heads: Any, pair: Any) -> Any:
    # No thorough mixing: pairs that lie near each other in a volume have labels near each other, and so have their
    # heads, which then are in the processor's cache.
    return ((pair >> _SHIFT) * _SPREAD + (pair & _LOW)) & np.uint64(heads.size - 1)


@numba.njit(cache=True, nogil=True)
def row_of(heads: Any, rows: Any, pair: Any) -> Any:
    """The row of a pair, 0 if it has none: row 0 is no pair's.

    `heads` uint32, its length a power of two: the rows that chains of `next` begin with, 0 where there is none; `rows`
    of `PAIR`.
    """
    row = np.uint64(heads[_head_of(heads, pair)])
    while row != 0 and rows[row].pair != pair:
        row = np.uint64(rows[row].next)
    return row


@numba.njit(cache=True, nogil=True)
def enter(heads: Any, rows: Any, row: Any, pair: Any) -> Any:
    """Begin a row with a pair that has none yet."""
    head = _head_of(heads, pair)
    rows[row].pair, rows[row].next = pair, heads[head]
    rows[row].total, rows[row].count = 0, 0
    rows[row].lowest, rows[row].highest = 255, 0
    heads[head] = row


@numba.njit(cache=True, nogil=True)
def more_heads(heads: Any, rows: Any, count: Any) -> Any:
    """Twice the heads, with the same chains of rows 1 to `count` - 1."""
    more = np.zeros(heads.size * 2, np.uint32)
    for row in range(1, count):
        head = _head_of(more, rows[row].pair)
        rows[row].next, more[head] = more[head], row
    return more


@numba.njit(cache=True, nogil=True)
def longer(values: Any) -> Any:
    """The same rows with room for twice as many, whose values are undefined."""
    more = np.empty((values.shape[0] * 2, *values.shape[1:]), values.dtype)
    more[: values.shape[0]] = values
    return more


@numba.njit(cache=True, nogil=True)
def rising_order(rows: Any) -> Any:
    """Indices of rows (of `PAIR`) by rising pairs, uint32. Digit by digit, each counted, from the last."""
    largest = np.uint64(0)
    for k in range(rows.size):
        largest = max(largest, rows[k].pair >> _SHIFT, rows[k].pair & _LOW)
    bits = np.uint64(1)
    while largest >> bits:
        bits += np.uint64(1)
    order, other = np.arange(rows.size).astype(np.uint32), np.empty(rows.size, np.uint32)
    for half in (np.uint64(0), _SHIFT):
        shift = np.uint64(0)
        while shift < bits:
            width = min(bits - shift, _DIGIT)
            _by_digit(rows, half + shift, width, order, other)
            order, other = other, order
            shift += width
    return order


@numba.njit(cache=True, nogil=True)
def _by_digit(rows: Any, shift: Any, width: Any, before: Any, after: Any) -> Any:
    """Order rows by `width` bits of their pairs, those alike as they were before."""
    mask = (np.uint64(1) << width) - np.uint64(1)
    ends = np.zeros(mask + np.uint64(2), np.uint32)
    for k in range(rows.size):
        ends[(rows[k].pair >> shift & mask) + np.uint64(1)] += np.uint32(1)
    for i in range(1, ends.size):
        ends[i] += ends[i - 1]
    for k in before:
        digit = rows[np.uint64(k)].pair >> shift & mask
        after[ends[digit]] = k
        ends[digit] += np.uint32(1)


@numba.njit(cache=True, nogil=True)
def write_rows(rows: Any, order: Any, left: Any, right: Any, sums: Any, counts: Any, lowest: Any, highest: Any) -> Any:
    """Write rows (of `PAIR`) in an order to columns."""
    for i in range(order.size):
        row = rows[np.uint64(order[i])]
        left[i], right[i] = row.pair >> _SHIFT, row.pair & _LOW
        sums[i], counts[i], lowest[i], highest[i] = row.total, row.count, row.lowest, row.highest
