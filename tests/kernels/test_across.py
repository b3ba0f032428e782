from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from neuroshed.geometry import Box, Grid, Vec, sub
from neuroshed.kernels.across import NEAREST, WAYS, check_offsets, lower_ends, reach, upper_ends, way_number, ways_of
from neuroshed.kernels.watershed import Place

REGION = Box((1, 0, 2), (8, 7, 9))
GRID = Grid(REGION, (3, 4, 3))
OFFSETS: tuple[Vec, ...] = (*NEAREST, (0, 0, -3), (-1, -2, 0), (-3, -4, -3))


def block_of(voxel: Vec) -> Vec:
    (index,) = GRID.touching(Box(voxel, (voxel[0] + 1, voxel[1] + 1, voxel[2] + 1)))
    return index


def voxels(box: Box) -> set[Vec]:
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@pytest.mark.parametrize("offset", OFFSETS)
def test_ends_are_the_voxels_with_edges_to_that_block(offset: Vec) -> None:
    assert [way_number(way) for way in WAYS] == list(range(8))
    for index in GRID:
        box = GRID.block_box(index)
        found: dict[Vec, set[Vec]] = {way: set() for way in WAYS}
        for p in voxels(box):
            q = (p[0] + offset[0], p[1] + offset[1], p[2] + offset[2])
            if q in voxels(REGION):
                found[sub(index, block_of(q))].add(p)
        for way in WAYS[1:]:
            ends = voxels(upper_ends(box, offset, way)) & {sub(q, offset) for q in voxels(REGION)}
            assert ends == found[way]
            assert (way in ways_of(offset)) >= bool(found[way])
            if found[way]:
                lower = GRID.block_box(sub(index, way))
                assert {sub(q, offset) for q in voxels(lower_ends(lower, offset, way))} >= found[way]


def test_reach_names_every_block_with_an_edge_of_a_label() -> None:
    rng = np.random.default_rng(0)
    for index in GRID:
        box = GRID.block_box(index)
        labels = rng.integers(0, 6, box.shape, np.int32)
        above, below = reach(labels, 5, Place(box, REGION, (9, 9, 9)), OFFSETS)
        for offset, p in product(OFFSETS, voxels(box)):
            label = int(labels[sub(p, box.start)])
            for other, up in ((sub(p, offset), True), ((p[0] + offset[0], p[1] + offset[1], p[2] + offset[2]), False)):
                if label and other in voxels(REGION) - voxels(box):
                    way = sub(block_of(other), index)
                    assert above[label - 1] >> (way_number(way) - 1) & 1 if up else below[label - 1]


def test_reach_is_nothing_where_the_region_ends() -> None:
    above, below = reach(np.ones(REGION.shape, np.int32), 1, Place(REGION, REGION, (9, 9, 9)), OFFSETS)
    assert not above.any()
    assert not below.any()


@pytest.mark.parametrize("offset", [(0, 0, 1), (-1, 1, 0), (0, 0, -5)])
def test_offsets_that_do_not_fit_are_refused(offset: Vec) -> None:
    with pytest.raises(ValueError, match="long_range offset"):
        check_offsets([offset], (4, 4, 4))
