"""Boxes, grids and octrees against brute force over voxels."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.geometry import Box, Grid, Vec

SIDE = 9


def vecs(low: int, high: int) -> st.SearchStrategy[Vec]:
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def boxes(draw: st.DrawFn, low: int = 0) -> Box:
    """Boxes with at least one voxel."""
    start = draw(vecs(low, SIDE - 1))
    stop = tuple(draw(st.integers(a + 1, SIDE)) for a in start)
    return Box(start, stop)


grids = st.builds(Grid, boxes(), vecs(1, SIDE + 2))


def voxels(box: Box) -> set[Vec]:
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@given(grids)
def test_blocks_partition_the_box(grid: Grid) -> None:
    hits = np.zeros((SIDE,) * 3, np.int64)
    for index in grid:
        hits[grid.block_box(index).slices()] += 1
    expected = np.zeros_like(hits)
    expected[grid.box.slices()] = 1
    np.testing.assert_array_equal(hits, expected)
    assert len(list(grid)) == len(grid)


@given(grids)
def test_position_and_index_are_inverse_and_in_raster_order(grid: Grid) -> None:
    indices = list(grid)
    assert indices == sorted(indices)
    assert [grid.position(index) for index in indices] == list(range(len(grid)))
    assert [grid.index(position) for position in range(len(grid))] == indices


@given(grids, boxes(low=-4))
def test_touching_equals_a_look_at_every_block(grid: Grid, box: Box) -> None:
    expected = [index for index in grid if voxels(grid.block_box(index)) & voxels(box)]
    assert list(grid.touching(box)) == expected


@given(grids)
def test_no_block_touches_an_empty_box(grid: Grid) -> None:
    assert list(grid.touching(Box(grid.box.start, grid.box.start))) == []


@given(grids)
def test_a_parent_is_the_union_of_its_children(grid: Grid) -> None:
    levels = grid.octree()
    assert len(levels[-1]) == 1
    for children, parents in pairwise(levels):
        assert parents.box == grid.box
        seen: list[Vec] = []
        for index in parents:
            box = parents.block_box(index)
            mine = list(children.touching(box))
            assert 1 <= len(mine) <= 8
            assert all(tuple(i // 2 for i in child) == index for child in mine)
            assert sum(children.block_box(child).size for child in mine) == box.size
            assert all(box.contains(children.block_box(child)) for child in mine)
            seen += mine
        assert sorted(seen) == list(children)


@given(boxes(), boxes())
def test_intersection_and_containment_are_those_of_voxel_sets(a: Box, b: Box) -> None:
    assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
    assert a.contains(b) == (voxels(b) <= voxels(a))
    assert a.intersect(b).size == len(voxels(a) & voxels(b))


@given(boxes(), boxes())
def test_a_block_inside_a_region_is_the_block_of_the_whole(region: Box, box: Box) -> None:
    whole, part = Grid(Box.of_shape((SIDE,) * 3), (2, 3, 4)), Grid(region, (2, 3, 4))
    for index in part:
        assert part.block_box(index) == whole.block_box(index).intersect(region)


@pytest.mark.parametrize(
    ("box", "block_shape"),
    [
        (Box((0, 0, 0), (4, 4, 4)), (0, 1, 1)),
        (Box((0, 0, 0), (4, 0, 4)), (1, 1, 1)),
        (Box((-1, 0, 0), (4, 4, 4)), (1, 1, 1)),
        (Box((3, 0, 0), (2, 4, 4)), (1, 1, 1)),
    ],
)
def test_there_is_no_grid_of_nothing(box: Box, block_shape: Vec) -> None:
    with pytest.raises(ValueError, match="no grid"):
        Grid(box, block_shape)
