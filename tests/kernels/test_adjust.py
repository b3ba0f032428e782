import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.ndimage import gaussian_filter

from neuroshed.geometry import Box, Grid
from neuroshed.kernels.adjust import MAX_SMOOTH, adjust, reach, read_box, taps

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -4), (0, 3, -2))


def affinities(shape, seed=0, channels=5):
    return np.random.default_rng(seed).integers(0, 256, (channels, *shape)).astype(np.uint8)


def of_box(whole, box, bounds, smooth, bias, offsets=OFFSETS):
    around = read_box(box, bounds, smooth)
    return adjust(whole[(..., *around.slices())], offsets, box, bounds, smooth=smooth, bias=bias)


def plain(whole, bounds, smooth, bias):
    """The definition, voxel by voxel."""
    weights = taps(smooth) if smooth else (1,)
    steps = range(1 - len(weights), len(weights))
    out = np.zeros((len(OFFSETS), *bounds.shape), np.uint8)
    for c, offset in enumerate(OFFSETS):

        def there(voxel, offset=offset):
            ends = (voxel, [v + o for v, o in zip(voxel, offset, strict=True)])
            return all(a <= v < b for end in ends for v, a, b in zip(end, bounds.start, bounds.stop, strict=True))

        for local in np.ndindex(bounds.shape):
            p = [a + b for a, b in zip(local, bounds.start, strict=True)]
            if not there(p):
                continue
            total = divisor = 0
            for i in steps:
                for j in steps:
                    for k in steps:
                        q = (p[0] + i, p[1] + j, p[2] + k)
                        if there(q):
                            weight = weights[abs(i)] * weights[abs(j)] * weights[abs(k)]
                            total += weight * int(whole[(c, *q)])
                            divisor += weight
            out[(c, *local)] = min(max(math.floor(total / divisor + 0.5) + bias, 0), 255)
    return out


@pytest.mark.parametrize(("smooth", "bias"), [(0.4, 0), (0.6, -20), (0, 30)])
def test_it_is_what_the_definition_says(smooth, bias):
    whole = affinities((6, 7, 8))
    bounds = Box((1, 0, 1), (6, 6, 8))
    assert_array_equal(of_box(whole, bounds, bounds, smooth, bias), plain(whole, bounds, smooth, bias))


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(0, 3)] * 3),
    st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7]),
    st.integers(-255, 255),
)
def test_any_tiling_gives_the_whole(shape, block_shape, start, smooth, bias):
    bounds = Box(start, tuple(a + b for a, b in zip(start, shape, strict=True)))
    whole = affinities(bounds.stop, seed=sum(shape))
    expected = of_box(whole, bounds, bounds, smooth, bias)
    grid = Grid(bounds, block_shape)
    for index in grid:
        box = grid.block_box(index)
        got = of_box(whole, box, bounds, smooth, bias)
        assert_array_equal(got, expected[(..., *box.slices(start))])


@given(st.integers(0, 255), st.sampled_from([0.0, 0.5, 1.0, 2.5, MAX_SMOOTH]), st.integers(-255, 255))
def test_a_constant_stays_constant_where_there_are_edges(value, smooth, bias):
    bounds = Box.of_shape((5, 6, 7))
    whole = np.full((len(OFFSETS), *bounds.shape), value, np.uint8)
    # What stands where edges leave the volume does not matter.
    whole[0, 0], whole[1, :, 0], whole[2, :, :, 0] = 0, 255, 7
    got = of_box(whole, bounds, bounds, smooth, bias)
    if smooth or bias:
        expected = min(max(value + bias, 0), 255)
        assert (got[0, 1:] == expected).all()
        assert (got[2, :, :, 1:] == expected).all()
        assert (got[4, :, :3, 2:] == expected).all()
        assert not got[0, 0].any()
        assert not got[4, :, 3:].any()


def test_without_smoothing_and_bias_the_array_itself_comes_back():
    whole = affinities((4, 5, 6))
    bounds = Box.of_shape((4, 5, 6))
    assert adjust(whole, OFFSETS, bounds, bounds) is whole


def test_it_is_a_gaussian():
    side, smooth = 40, 1.5
    whole = affinities((side,) * 3, channels=1)
    bounds = Box.of_shape((side,) * 3)
    inner = bounds.grow(-10)
    got = of_box(whole, inner, bounds, smooth, 0, offsets=((-1, 0, 0),))
    expected = gaussian_filter(whole[0].astype(float), smooth, truncate=reach(smooth) / smooth)[inner.slices()]
    assert np.abs(got[0] - expected).max() < 0.7


def test_the_largest_smoothing_does_not_overflow():
    assert 2 * 255 * (2 * sum(taps(MAX_SMOOTH))) ** 3 < 2**63
    bounds = Box.of_shape((60, 60, 60))
    whole = np.full((1, *bounds.shape), 255, np.uint8)
    box = Box((29, 29, 29), (31, 31, 31))
    assert (of_box(whole, box, bounds, MAX_SMOOTH, 0, offsets=((0, 0, -1),)) == 255).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth": -1.0}, "smooth is -1.0 voxels; needed is 0"),
        ({"smooth": 8.5}, "needed is 0 .none. to 8"),
        ({"smooth": math.nan}, "smooth is nan"),
        ({"bias": 256}, "bias is 256; needed is -255 to 255"),
        ({"smooth": 1.0}, "needed are those of 5 offsets over"),
    ],
)
def test_wrong_parameters_are_refused(options, message):
    bounds = Box.of_shape((8, 8, 8))
    box = Box((2, 2, 2), (4, 4, 4))
    with pytest.raises(ValueError, match=message):
        adjust(affinities(box.shape), OFFSETS, box, bounds, **options)
