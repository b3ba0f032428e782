"""Boxes of sources and larger voxels: what blocks give is what the whole gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Grid, Vec, divided
from neuroshed.kernels.downsample import mean, mode
from neuroshed.storage import parts
from neuroshed.storage.parts import Part
from neuroshed.storage.sources import open_source
from tests.storage.test_chunked import n5

SHAPE = (11, 40, 53)
BOX = Box((2, 5, 9), (11, 38, 50))


def volume(dtype: str) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 7, SHAPE).astype(dtype)


@pytest.mark.parametrize("factor", [(1, 1, 1), (1, 2, 2), (2, 3, 4), (16, 1, 64)])
@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_blocks_of_a_part_are_those_of_the_whole(
    tmp_path: Path, factor: Vec, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = volume(dtype)
    source = open_source(n5(tmp_path / "a.n5", data))
    part = Part.of(source, BOX, factor, None)
    expected = (mean if dtype == "uint8" else mode)(data[BOX.slices()], factor)
    assert part.shape == expected.shape
    for size in (1, 800, 1 << 25):
        monkeypatch.setattr(parts, "PIECE_BYTES", size)
        assert_array_equal(part.read(Box.of_shape(part.shape)), expected, strict=True)
        grid = Grid(Box.of_shape(part.shape), (3, 8, 7))
        for index in grid:
            box = grid.block_box(index)
            assert_array_equal(part.read(box), expected[box.slices()])
    other = Part.of(source, BOX, factor, dtype == "uint8")
    expected = (mode if dtype == "uint8" else mean)(data[BOX.slices()], factor)
    assert_array_equal(other.read(Box.of_shape(part.shape)), expected)


def test_the_middles_of_voxels_stay_where_they_are(tmp_path: Path) -> None:
    source = open_source(n5(tmp_path / "a.n5", volume("uint8")))
    size, place = (40.0, 8.0, 4.0), (1000.0, -3.0, 0.5)
    part = Part.of(source, BOX, (1, 2, 5), None)
    assert part.voxel_size(size) == (40.0, 16.0, 20.0)
    # The middle of the windows' voxels: 2, 5 to 6, 9 to 13.
    expected = [p + s * middle for p, s, middle in zip(place, size, (2, 5.5, 11), strict=True)]
    assert part.offset(size, place) == tuple(expected)


@pytest.mark.parametrize(
    ("box", "factor", "message"),
    [
        (Box((0, 0, 0), (12, 1, 1)), None, r"box \[0:12, 0:1, 0:1\] is empty or not inside .*a\.n5, which has voxels"),
        (Box((3, 0, 0), (3, 1, 1)), None, "is empty"),
        (Box((-1, 0, 0), (3, 1, 1)), None, "not inside"),
        (None, (1, 0, 1), r"downsampling by \[1, 0, 1\] is not possible"),
    ],
)
def test_parts_that_there_are_not(tmp_path: Path, box: Box | None, factor: Vec | None, message: str) -> None:
    source = open_source(n5(tmp_path / "a.n5", volume("uint8")))
    with pytest.raises(InputError, match=message):
        Part.of(source, box, factor, None)


@given(*[st.tuples(*[st.integers(1, 20)] * 3)] * 3, st.integers(1, 5000))
def test_pieces_are_whole_units_and_no_larger_than_allowed(start: Vec, shape: Vec, unit: Vec, most: int) -> None:
    box = Box(start, (start[0] + shape[0], start[1] + shape[1], start[2] + shape[2]))
    grid = divided(box, unit, most)
    assert all(side % one == 0 for side, one in zip(grid.block_shape, unit, strict=True))
    assert grid.block_shape == unit or np.prod(grid.block_shape) <= most
    assert sum(grid.block_box(index).size for index in grid) == box.size
