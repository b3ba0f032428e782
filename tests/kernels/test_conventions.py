import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from neuroshed.geometry import Box, add, sub
from neuroshed.kernels.conventions import (
    Convention,
    Provider,
    default_range,
    edges_box,
    opposite,
    providers,
    to_uint8,
)

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
offsets = st.tuples(*[st.integers(-9, 9)] * 3).filter(any)


def convention(stored=NEAREST, stored_at="source", inverted=False, value_range=(0.0, 255.0)):
    return Convention(tuple(stored), stored_at, inverted, value_range)


@given(offsets, st.booleans(), st.sampled_from(["source", "destination"]))
def test_the_value_read_is_that_of_the_same_edge(offset, turned, stored_at):
    stored = opposite(offset) if turned else offset
    (found,) = providers(convention([(99, 0, 0), stored], stored_at), [offset])
    voxel = (50, 50, 50)
    there = add(voxel, found.shift)
    meant = {there, add(there, stored)} if stored_at == "source" else {sub(there, stored), there}
    assert found.channel == 1
    assert meant == {voxel, add(voxel, offset)}


@pytest.mark.parametrize(
    ("stored_at", "sign", "shift"),
    [("source", -1, 0), ("source", 1, -1), ("destination", 1, 0), ("destination", -1, -1)],
)
def test_the_four_cases_of_nearest_neighbours(stored_at, sign, shift):
    stored = [(sign, 0, 0), (0, sign, 0), (0, 0, sign)]
    assert [found.shift for found in providers(convention(stored, stored_at), NEAREST)] == [
        (shift, 0, 0),
        (0, shift, 0),
        (0, 0, shift),
    ]


def test_the_same_offset_is_preferred_to_its_opposite():
    both = convention([(0, 0, 9), (0, 0, -9)])
    assert providers(both, [(0, 0, -9)]) == (Provider((0, 0, -9), 1, (0, 0, 0)),)


def test_a_missing_offset_is_refused_and_those_there_are_listed():
    with pytest.raises(ValueError, match=r"\[0, 0, -9\] or \[0, 0, 9\].*there are \[-1, 0, 0\], \[0, -1, 0\]"):
        providers(convention(), [*NEAREST, (0, 0, -9)])


@given(offsets)
def test_edges_end_where_their_other_voxel_is_outside(offset):
    bounds = Box((3, 4, 5), (9, 12, 10))
    inside = {
        voxel
        for voxel in np.ndindex(12, 15, 13)
        if all(a <= v < b for v, a, b in zip(voxel, bounds.start, bounds.stop, strict=True))
        and all(a <= v + o < b for v, o, a, b in zip(voxel, offset, bounds.start, bounds.stop, strict=True))
    }
    found = edges_box(bounds, offset)
    assert found.size == len(inside)
    assert found.empty or found.start == min(inside)


def plain_byte(value, low, high, inverted):
    exact = 255 * (Fraction(value) - Fraction(low)) / (Fraction(high) - Fraction(low))
    byte = min(max(math.floor(exact + Fraction(1, 2)), 0), 255)
    return 255 - byte if inverted else byte


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "value_range"),
    [
        ("float16", (0, 1)),
        ("float32", (0, 1)),
        ("float64", (0, 510)),
        (">f4", (0, 1)),
        ("float32", (-2, 6)),
        ("float32", (0, 255)),
        ("uint8", (0, 255)),
        ("uint8", (0, 1)),
        ("uint8", (10, 200)),
        ("uint16", (0, 65535)),
        ("int16", (-300, 300)),
        ("uint32", (0, 2**32 - 1)),
    ],
)
def test_bytes_are_rounded_half_up(dtype, value_range, inverted):
    low, high = value_range
    # Every byte exactly, every tie between two, and both ends.
    values = np.array([low + (high - low) * i / 510 for i in range(511)])
    values = np.clip(values.astype(dtype), low, high).astype(dtype).reshape(7, 73, 1)
    got = to_uint8(values, convention(inverted=inverted, value_range=value_range))
    expected = [plain_byte(value.item(), low, high, inverted) for value in values.ravel()]
    assert got.dtype == np.uint8
    assert_array_equal(got.ravel(), expected)


@pytest.mark.parametrize("inverted", [False, True])
def test_bytes_of_the_usual_range_pass_as_they_would_as_floats(inverted):
    values = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    fast = to_uint8(values, convention(inverted=inverted))
    assert_array_equal(fast, to_uint8(values.astype(np.float32), convention(inverted=inverted)))
    assert (fast is values) is not inverted


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(("dtype", "value_range"), [("uint8", (0, 255)), ("uint8", (0, 85)), ("float32", (0, 85))])
def test_the_result_goes_where_it_is_wanted(dtype, value_range, inverted):
    values = np.arange(84, dtype=dtype).reshape(3, 4, 7)
    wanted = convention(inverted=inverted, value_range=value_range)
    out = np.full((4, 5, 9), 99, np.uint8)
    found = to_uint8(values, wanted, out=out[1:, 1:, 1:8])
    assert found.base is out
    assert_array_equal(out[1:, 1:, 1:8], to_uint8(values, wanted))
    assert (out[0] == 99).all()
    assert (out[..., 8] == 99).all()


def test_bytes_survive_being_stored_as_floats():
    values = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    for dtype in (np.float16, np.float32, np.float64):
        stored = (values / 255).astype(dtype)
        assert_array_equal(to_uint8(stored, convention(value_range=(0, 1))), values)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1.5, -0.01, 1.0011, 1e308])
def test_what_is_no_affinity_is_refused_by_the_first_voxel(wrong):
    values = np.full((3, 4, 5), 0.5)
    values[1, 2, 3] = wrong
    values[2, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"voxel \[11, 22, 33\] \(z y x\) holds .* values in 0 to 1"):
        to_uint8(values, convention(value_range=(0, 1)), start=(10, 20, 30))


def test_a_rounding_error_beyond_the_range_is_clipped():
    values = np.array([[[-1e-4, 1 + 1e-4]]], np.float32)
    assert to_uint8(values, convention(value_range=(0, 1))).tolist() == [[[0, 255]]]


def test_the_usual_ranges():
    assert default_range(np.uint8) == (0, 255)
    assert default_range(np.float16) == default_range(">f8") == (0, 1)
    with pytest.raises(ValueError, match="declare value_range"):
        default_range(np.uint16)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "complex64", "longdouble", "U1"])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match="needed are integers of 8 to 32 bits or floats"):
        default_range(dtype)
    with pytest.raises(ValueError, match="needed are integers of 8 to 32 bits or floats"):
        to_uint8(np.zeros((1, 1, 1), dtype), convention())


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0, math.inf), (math.nan, 1), (-1e308, 1e308)])
def test_an_empty_range_is_refused(value_range):
    with pytest.raises(ValueError, match="low < high"):
        convention(value_range=value_range)
