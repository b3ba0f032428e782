"""Means and modes of windows against plain Python, and blocks against the whole."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from neuroshed.geometry import Vec
from neuroshed.kernels.downsample import mean, mode

FACTORS: list[Vec] = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 3), (3, 1, 2), (5, 4, 7)]
TYPES = ["uint8", "uint16", "uint32", "uint64", "int16", "int64"]


def plainly(data: np.ndarray, factor: Vec, choose) -> np.ndarray:
    """`choose` of the voxels of each window, as Python's integers."""
    out = np.empty([-(-n // f) for n, f in zip(data.shape, factor, strict=True)], data.dtype)
    for place in np.ndindex(out.shape):
        window = tuple(slice(p * f, (p + 1) * f) for p, f in zip(place, factor, strict=True))
        out[place] = choose(data[window].ravel().tolist())
    return out


def plain_mean(values: list[int]) -> int:
    return round(Fraction(sum(values), len(values)))  # Python rounds halves to even


def plain_mode(values: list[int]) -> int:
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def values(seed: int, shape: Vec, dtype: str, kinds: int) -> np.ndarray:
    """Random ones, of both ends of the type's range, of a few kinds."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    pool = [info.max, info.min, info.max - 1, info.min + 1, *rng.integers(info.min, info.max, kinds, dtype)]
    return np.array(pool, dtype)[rng.integers(0, len(pool), shape)]


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from(FACTORS), st.integers(0, 50))
def test_windows_as_plain_python_counts_them(dtype: str, seed: int, shape: Vec, factor: Vec, kinds: int) -> None:
    data = values(seed, shape, dtype, kinds)
    assert_array_equal(mean(data, factor), plainly(data, factor, plain_mean), strict=True)
    assert_array_equal(mode(data, factor), plainly(data, factor, plain_mode), strict=True)


@pytest.mark.parametrize("factor", FACTORS)
def test_parts_give_what_the_whole_gives(factor: Vec) -> None:
    data = values(1, (23, 25, 29), "uint64", 3)
    for small in (mean, mode):
        whole = small(data, factor)
        for cut in itertools.product(range(2), repeat=3):
            # Each axis cut in two at the same window.
            edges = [(0, 2 * f, n)[half : half + 2] for f, n, half in zip(factor, data.shape, cut, strict=True)]
            part = small(data[tuple(slice(a, b) for a, b in edges)], factor)
            inside = tuple(slice(a // f, -(-b // f)) for (a, b), f in zip(edges, factor, strict=True))
            assert_array_equal(part, whole[inside])


def test_any_layout_in_memory() -> None:
    data = values(2, (6, 7, 8), "uint16", 9)
    for small in (mean, mode):
        expected = small(data, (2, 2, 2))
        frozen = data.copy()
        frozen.flags.writeable = False
        for same in (np.asfortranarray(data), data[::-1][::-1], data.astype(">u2"), frozen):
            assert_array_equal(small(same, (2, 2, 2)), expected)
            assert small(same, (2, 2, 2)).dtype == np.uint16


def test_what_has_no_exact_answer_is_refused() -> None:
    with pytest.raises(TypeError, match="means of float32 are not exact"):
        mean(np.zeros((2, 2, 2), np.float32), (1, 1, 1))
    with pytest.raises(ValueError, match=r"no windows of \(1, 0, 1\)"):
        mode(np.zeros((2, 2, 2), np.uint8), (1, 0, 1))
