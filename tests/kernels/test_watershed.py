from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuroshed.geometry import Box
from neuroshed.kernels.watershed import LIT, Place, connect, read_box, watershed
from tests.kernels.block_cases import place_of, random_block, random_limits
from tests.kernels.plain_blocks import EITHER, PlainBlock, plain_watershed


def assert_equal(block: PlainBlock, low: int, high: int) -> None:
    found, plain = watershed(block.affinities, place_of(block), low, high), plain_watershed(block, low, high)
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert found.first.tolist() == plain.first
    assert found.sizes.tolist() == plain.sizes
    inner = place_of(block).inner_faces()
    for axis, side in np.argwhere(inner):
        plane, expected = found.picked[axis][side], plain.picked[axis][side]
        np.testing.assert_array_equal(plane[expected != EITHER], expected[expected != EITHER])
    assert (found.labels.dtype, found.first.dtype, found.sizes.dtype) == (np.int32, np.int64, np.int64)


@pytest.mark.parametrize("seed", range(150))
def test_basins_equal_the_plain_ones(seed: int) -> None:
    assert_equal(random_block(seed), *random_limits(seed))


@pytest.mark.parametrize("high", [0, 1, 256])
@pytest.mark.parametrize("seed", range(15))
def test_edges_of_no_strength_are_told_from_those_that_are_not_there(seed: int, high: int) -> None:
    block = random_block(seed)
    assert_equal(replace(block, affinities=block.affinities // 200), 0, high)


@pytest.mark.parametrize(("low", "count"), [(0, 0), (1, 8 * 8 * 300), (255, 8 * 8 * 300)])
def test_without_edges_there_is_nothing(low: int, count: int) -> None:
    shape = (8, 8, 300)
    place = Place(Box.of_shape(shape), Box.of_shape(shape), shape)
    found = watershed(np.zeros((3, *shape), np.uint8), place, low, 256)
    assert np.count_nonzero(found.labels == 0) == count


def test_rows_longer_than_a_vector_and_further_channels() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 4, 150)
    affinities = np.concatenate([rng.choice([20, 90, 200, 255], (3, *shape)), np.zeros((2, *shape))]).astype(np.uint8)
    block = PlainBlock(affinities, (0, 0, 0), shape, ((0, 0, 0), shape), shape)
    assert_equal(block, 50, 250)


def test_connect_numbers_in_raster_order() -> None:
    joined = np.full((1, 2, 3), LIT)
    joined[0, 1, 0] |= 2
    joined[0, 1, 1] |= 4
    labels, first, sizes = connect(joined, 5)
    assert labels.tolist() == [[[1, 2, 3], [1, 1, 4]]]
    assert (first.tolist(), sizes.tolist()) == ([0, 1, 2, 5], [3, 1, 1, 1])


@pytest.mark.parametrize("seed", range(20))
def test_place_knows_its_voxels_and_faces(seed: int) -> None:
    block = random_block(seed)
    place = place_of(block)
    voxels = np.arange(place.box.size)
    assert place.global_index(voxels).tolist() == [block.index(voxel) for voxel in block.voxels]
    assert place.inner_faces().tolist() == [
        [block.start[axis] > block.region[0][axis], block.stop[axis] < block.region[1][axis]] for axis in range(3)
    ]
    assert read_box(place.box, place.region).shape == block.affinities.shape[1:]
