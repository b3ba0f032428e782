"""Other engines from the workflow file: waterz on blocks with context, the mutex watershed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import neuroshed
from neuroshed.errors import WorkflowError
from neuroshed.kernels.mutex import mutex_watershed
from neuroshed.kernels.waterz import agglomerate, watershed
from neuroshed.stages.affinities import NEAREST
from neuroshed.storage.volumes import open_volume

from ..promises.chunks import random_affinities
from ..promises.reference import Settings, segment_whole

SHAPE = (10, 12, 14)
FAR = (0, 0, -3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Affinities of the nearest neighbours and one further away, 0 where they leave the volume."""
    rng = np.random.default_rng(3)
    found = np.concatenate([random_affinities(rng, SHAPE, 256), random_affinities(rng, SHAPE, 256)[:1]])
    for axis in range(3):
        found[axis].swapaxes(0, axis)[0] = 0
    found[3, :, :, :3] = 0
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    zarr.save_array(path, found)
    return path, found


def run(path: Path, output: Path, block: tuple[int, int, int], *extra: str) -> dict[str, np.ndarray]:
    settings = [f"affinities={path}", f"output={output}", f"block_shape={list(block)}", "cluster=in-process:2"]
    summary = neuroshed.run(
        "stitch",
        [
            *settings,
            "fragments.small=0",
            "fragments.dust=0",
            "keep=[segmentation,fragments,merges,affinities]",
            "thresholds=[0.5]",
            *extra,
        ],
    )
    assert summary["status"] == "done"
    paths: dict[str, Any] = {"fragments": summary["fragments"], **summary["segmentations"]}
    volumes = {name: open_volume(found) for name, found in paths.items()}
    return {name: volume.read(volume.box) for name, volume in volumes.items()}


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(np.unique(side).size == side.size for side in pairs)


def test_waterz_in_one_block_is_waterz(stored: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, affinities = stored
    found = run(path, tmp_path / "whole", SHAPE, "engine=waterz")
    fragments = watershed(affinities[:3], 26 / 255, 250 / 255)
    (segments,) = agglomerate(affinities[:3], fragments, [0.5])
    assert same_partition(found["fragments"], fragments)
    assert same_partition(found["0.5"], segments)
    blocks = run(path, tmp_path / "blocks", (5, 6, 7), "engine=waterz", "agglomerate.score=quantile_50")
    assert np.unique(blocks["0.5"]).size < np.unique(blocks["fragments"]).size


def test_mutex_fragments_in_one_block_are_those_of_the_mutex_watershed(
    stored: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, affinities = stored
    convention = f"convention={{offsets: {[*map(list, (*NEAREST, FAR))]}}}"
    extra = ["fragments.method=mutex", f"long_range=[{list(FAR)}]", convention]
    found = run(path, tmp_path / "whole", SHAPE, *extra)
    expected = mutex_watershed(affinities, (*NEAREST, FAR), (0, 0, 0, 1), 26 / 255)
    assert same_partition(found["fragments"], expected)
    blocks = run(path, tmp_path / "blocks", (5, 6, 7), *extra)
    assert np.unique(blocks["0.5"]).size < np.unique(blocks["fragments"]).size
    with pytest.raises(WorkflowError, match="biases has 2 values for 4 channels"):
        run(path, tmp_path / "run", SHAPE, *extra, "fragments.biases=[0, 1]")


def test_long_range_affinities_count_in_scores_whatever_the_blocks(
    stored: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, affinities = stored
    convention = f"convention={{offsets: {[*map(list, (*NEAREST, FAR))]}}}"
    far = ["agglomerate.long_range=true", f"long_range=[{list(FAR)}]", convention]
    found = [run(path, tmp_path / str(block), block, *far) for block in (SHAPE, (5, 6, 7))]
    for labels in found:
        expected = segment_whole(affinities, Settings(26, 250, 0, 0, thresholds=("0.5",), further=(FAR,)))
        np.testing.assert_array_equal(labels["fragments"], expected.fragments)
        np.testing.assert_array_equal(labels["0.5"], expected.segments["0.5"])
    without = run(path, tmp_path / "near", SHAPE, convention)
    assert (without["0.5"] != found[0]["0.5"]).any()
