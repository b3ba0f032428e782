"""Differences of arrays, against plain Python."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from neuroshed.kernels.differences import Difference, add_pairs, difference, label_pairs, misfits
from neuroshed.kernels.metrics import SLICE_VOXELS

INTEGERS = ["u1", "i1", "u2", "i4", "u8", "i8", ">u2", ">i8", "?"]
SHAPES = st.sampled_from([(3, 2, 4), (2, 3, 2, 4)])


def both(data: st.DataObject, left: str, right: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    shape = data.draw(SHAPES)
    return data.draw(arrays.arrays(left, shape)), data.draw(arrays.arrays(right, shape))


def plain(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Difference | None:
    there = [
        place
        for place in np.ndindex(*left.shape)
        if left[place] != right[place] and not (left[place] != left[place] and right[place] != right[place])
    ]
    if not there:
        return None
    with np.errstate(over="ignore"):
        gaps = [abs(left[place].item() - right[place].item()) for place in there]
    known = [
        gap for place, gap in zip(there, gaps, strict=True) if np.isfinite(left[place]) and np.isfinite(right[place])
    ]
    return Difference(len(there), min(there, key=lambda place: (place[-3:], place)), max(known, default=None))


@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(INTEGERS))
def test_integers_differ_as_in_plain_python(data: st.DataObject, left: str, right: str) -> None:
    one, other = both(data, left, right)
    assert difference(one, other) == plain(one, other)
    assert difference(one, one.copy()) is None


@given(data=st.data(), right=st.sampled_from(["f4", "f8", ">f4"]))
def test_floats_differ_as_in_plain_python(data: st.DataObject, right: str) -> None:
    one, other = both(data, "f4", right)
    other[..., 0] = one[..., 0].astype(right)
    assert difference(one, other) == plain(one, other)
    assert difference(one, one.copy()) is None


@given(
    arrays.arrays("u1", (4, 3, 5), elements=st.integers(0, 4)),
    arrays.arrays("i8", (4, 3, 5), elements=st.integers(-2, 2)),
)
def test_pairs_are_counted_as_in_plain_python(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> None:
    whole = label_pairs(left, right)
    pairs = [*zip(left.ravel().tolist(), right.ravel().astype(np.uint64).tolist(), strict=True)]
    counts = Counter(pairs)
    assert {(a, b): (n, f) for a, b, n, f in zip(*(column.tolist() for column in whole), strict=True)} == {
        pair: (count, pairs.index(pair)) for pair, count in counts.items()
    }
    halves = [label_pairs(left[:2], right[:2]), label_pairs(left[2:], right[2:])]
    halves[1] = halves[1]._replace(first=halves[1].first + 2 * 3 * 5)
    for ours, theirs in zip(add_pairs(halves), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_pairs_of_more_than_one_slice() -> None:
    left = np.repeat(np.arange(4, dtype=np.uint32), SLICE_VOXELS // 2 + 3)
    found = label_pairs(left, left * 2)
    assert found.right.tolist() == [0, 2, 4, 6]
    assert found.counts.tolist() == [SLICE_VOXELS // 2 + 3] * 4
    assert found.first.tolist() == [number * (SLICE_VOXELS // 2 + 3) for number in range(4)]


@given(arrays.arrays("u1", (4, 5, 6), elements=st.integers(0, 5)), st.permutations(range(1, 6)))
def test_a_renaming_has_no_misfits_and_another_labelling_has(labels: npt.NDArray[Any], names: list[int]) -> None:
    renamed = np.array([0, *names], np.uint64)[labels] + (labels != 0)
    assert not misfits(label_pairs(labels, renamed)).any()
    other = renamed.copy()
    other[1, 2, 3] = 99
    alone = np.count_nonzero(labels == labels[1, 2, 3]) == 1 and labels[1, 2, 3] != 0
    assert misfits(label_pairs(labels, other)).any() == (not alone)


@pytest.mark.parametrize(
    ("left", "right", "wrong"),
    [
        ([1, 1, 1, 2, 2], [5, 5, 5, 5, 5], [3, 4]),  # merged: the smaller part is wrong
        ([5, 5, 5, 5, 5], [1, 1, 1, 2, 2], [3, 4]),  # split
        ([0, 0, 1, 1, 1], [3, 3, 4, 4, 4], [0, 1]),  # 0 is no name
        ([3, 3, 4, 4, 4], [0, 0, 4, 4, 4], [0, 1]),
        ([1, 1, 2, 2, 3], [1, 2, 2, 1, 3], [1, 2, 3]),  # of equals, the smallest, which only one can have
        ([7, 0, 7, 0, 9], [8, 8, 8, 0, 1], [1]),
    ],
)
def test_which_voxels_do_not_fit(left: list[int], right: list[int], wrong: list[int]) -> None:
    pairs = label_pairs(np.array(left), np.array(right))
    bad = {
        (a, b)
        for a, b, is_wrong in zip(pairs.left.tolist(), pairs.right.tolist(), misfits(pairs), strict=True)
        if is_wrong
    }
    assert [place for place, pair in enumerate(zip(left, right, strict=True)) if pair in bad] == wrong
