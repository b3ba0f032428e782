"""What the scaling benchmark's figures rest on: areas of faces, and nodes that are made large."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage.nodes import read_node

from ..promises.chunks import random_affinities, run_inline, segment_stages, write_affinities
from ..promises.reference import Settings


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of scripts, which import each other by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


def outer_area(grid: Grid, index: Vec) -> int:
    box, region = grid.block_box(index), grid.box
    return sum(
        box.size // box.shape[axis]
        for axis in range(3)
        for inner in (box.start[axis] > region.start[axis], box.stop[axis] < region.stop[axis])
        if inner
    )


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 12, 40), (20, 20, 20), (4, 4, 36)])
def test_face_voxels(shape: Vec) -> None:
    from projection import face_voxels

    levels = Grid(Box.of_shape(shape), (4, 4, 4)).octree()
    for grid in levels:
        assert face_voxels(grid) == sum(outer_area(grid, index) for index in grid)
    for children, grid in pairwise(levels):
        most = max(
            sum(outer_area(children, child) for child in children.touching(grid.block_box(index))) for index in grid
        )
        assert most <= face_voxels(children, grid) <= 2 * most
        if len(grid) == 1:
            assert most == face_voxels(children, grid)


@pytest.mark.parametrize("level", [1, 2])
def test_a_node_made_large_does_everything_that_often(level: int, tmp_path: Path) -> None:
    from large import _moved

    affinities = random_affinities(np.random.default_rng(0), (16, 16, 16), 9)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    settings = Settings(low=26, high=250, small=5, dust=2, lowest="0.2", thresholds=("0.5",))
    segment = segment_stages(tmp_path / "run", path, (4, 4, 4), settings)[-1]
    tree = segment.agglomerate
    run_inline([segment], random.Random(0))
    inside = list(tree.grids[level - 1].touching(tree.grids[level].block_box((0, 0, 0))))
    large, _ = _moved(tree, segment, tmp_path / "large", level, inside, copies=7)
    done = large.run(f"up{level}", (0, 0, 0))
    once = tree.run(f"up{level}", (0, 0, 0))
    assert once.figures["merges"] + once.figures["nodes_up"] > 0
    # Ties go by ranks, of which each copy has others.
    assert done.figures == pytest.approx({name: 7 * count for name, count in once.figures.items()}, rel=0.01)
    sizes = [
        read_node(stage.node_path(f"up{level}", (0, 0, 0)), "fragments")[0]["total"].sum() for stage in (large, tree)
    ]
    assert sizes[0] == 7 * sizes[1]
