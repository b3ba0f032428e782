"""Levels are what windows of the whole volume give, whatever the blocks; readers see them all at once."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import BlockError, InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.pyramid import TELL, Pyramid
from neuroshed.stages.verify import Verify
from neuroshed.storage.levels import level_count, open_levels
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume
from neuroshed.workflow.run import planned_stages

from ..promises.chunks import random_affinities, write_affinities

HERE = ClusterConfig.model_validate("in-process:2")
SIZE = (30.0, 8.0, 8.0)


def plain(data: np.ndarray, factor: Vec, labels: bool) -> np.ndarray:
    """One window after the other."""
    found = np.empty([-(-n // f) for n, f in zip(data.shape, factor, strict=True)], data.dtype)
    for index in np.ndindex(found.shape):
        window = data[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))]
        values, counts = np.unique(window, return_counts=True)
        # Python's round is to even; the sums are small enough to be exact.
        found[index] = values[counts.argmax()] if labels else round(int(window.sum()) / window.size)
    return found


def write(path: Path, data: np.ndarray, shards: Vec, offset: Vec = (0, 0, 0)) -> Path:
    shape = data.shape[-3:]
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)] if data.ndim == 4 else None
    volume = create_volume(
        path, shape=shape, dtype=data.dtype, shard_shape=shards, voxel_size=SIZE, offset=offset, voxel_offsets=offsets
    )
    volume.write(volume.box, data)
    return path


def levels(path: Path) -> list[np.ndarray]:
    return [level.read(level.box) for level in open_levels(Location.of(path))]


def run_all(stage: Stage) -> None:
    stage.prepare()
    for step in stage.steps:
        blocks = list(step.grid)
        random.Random(3).shuffle(blocks)
        for index in blocks:
            stage.run(step.name, index)
            stage.check_outputs(step.name, index)


def blobs(dtype: str, shape: Vec = (9, 21, 30)) -> np.ndarray:
    """Pieces of a few voxels, with zeros between them."""
    coarse = np.random.default_rng(5).integers(0, 5, [-(-n // 3) for n in shape]).astype(dtype) * 51
    return np.kron(coarse, np.ones((3, 3, 3), dtype))[: shape[0], : shape[1], : shape[2]]


@pytest.mark.parametrize("shards", [(9, 21, 30), (4, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize(("dtype", "labels"), [("uint64", None), ("uint8", None), ("uint16", True)])
def test_any_blocks_give_the_same_levels(tmp_path: Path, shards: Vec, dtype: str, labels: bool | None) -> None:
    data = blobs(dtype)
    path = write(tmp_path / "a.zarr", data, shards, (3, 4, 5))
    run_all(Pyramid.of_volume(Location.of(tmp_path / "run"), Location.of(path), labels, 3))
    # The voxels are four times as deep as wide: y and x first.
    factors = [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    expected = [data]
    for factor in factors:
        expected.append(plain(expected[-1], factor, bool(labels or dtype == "uint64")))
    for found, wanted in zip(levels(path), expected, strict=True):
        assert_array_equal(found, wanted)
    sizes = [level.voxel_size for level in open_levels(Location.of(path))]
    assert sizes == [(30, 8, 8), (30, 16, 16), (30, 32, 32), (60, 64, 64)]
    # Places are those of centres: the first window of four voxels is centred one voxel and a half further on.
    assert open_volume(path, level=2).offset == (3, 4 + 12, 5 + 12)


def test_import_makes_an_image_with_levels(tmp_path: Path) -> None:
    data = blobs("uint16", (9, 40, 150))
    np.save(tmp_path / "a.npy", data)
    path = neuroshed.import_volume(tmp_path / "a.npy", tmp_path / "a.zarr", SIZE, pyramid=True, cluster=HERE)
    assert_array_equal(levels(path)[1], plain(data, (1, 2, 2), labels=False))
    assert len(levels(path)) == 2
    neuroshed.import_volume(tmp_path / "a.npy", tmp_path / "b.zarr", SIZE, cluster=HERE)
    assert len(levels(tmp_path / "b.zarr")) == 1
    for name in ("a.zarr", "b.zarr"):
        (channel,) = json.loads((tmp_path / name / "zarr.json").read_bytes())["attributes"]["ome"]["omero"]["channels"]
        assert channel["window"] == {"min": 0, "max": 65535, "start": 51, "end": 204}


def test_affinities_channel_by_channel(tmp_path: Path) -> None:
    data = random_affinities(np.random.default_rng(1), (8, 9, 20), 256)
    neuroshed.pyramid(write(tmp_path / "a.zarr", data, (4, 4, 8)), levels=1, cluster=HERE)
    _, found = levels(tmp_path / "a.zarr")
    assert_array_equal(found, [plain(channel, (1, 2, 2), labels=False) for channel in data])
    assert "omero" not in json.loads((tmp_path / "a.zarr/zarr.json").read_bytes())["attributes"]["ome"]


def test_readers_see_no_level_before_all_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = blobs("uint64")
    path = write(tmp_path / "a.zarr", data, (4, 8, 8))
    run = Pyramid.run
    seen = []

    def broken(self: Pyramid, step: str, index: Vec) -> object:
        seen.append((step, index))
        assert level_count(Location.of(path)) == 1
        if step == "level2" and index == (1, 0, 0):
            raise ValueError("broken off")
        return run(self, step, index)

    options = {"levels": 2, "cluster": HERE}
    with monkeypatch.context() as patched:
        patched.setattr(Pyramid, "run", broken)
        with pytest.raises(RunFailedError, match="the same command goes on"):
            neuroshed.pyramid(path, **options)
    assert (path / "1").is_dir()
    assert level_count(Location.of(path)) == 1
    assert TELL not in {step for step, _ in seen}
    again = []
    with monkeypatch.context() as patched:
        patched.setattr(Pyramid, "run", lambda self, *block: again.append(block) or run(self, *block))
        told = neuroshed.pyramid(path, **options)
    assert told == {"volume": str(path), "shapes": [[9, 21, 30], [9, 11, 15], [9, 6, 8]]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]
    assert again == [("level2", (1, 0, 0)), (TELL, (0, 0, 0))]
    first = plain(data, (1, 2, 2), labels=True)
    for found, wanted in zip(levels(path), [data, first, plain(first, (1, 2, 2), labels=True)], strict=True):
        assert_array_equal(found, wanted)
    with pytest.raises(WorkflowError, match="has 3 levels already"):
        neuroshed.pyramid(path, **options)


def test_what_gets_no_levels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", blobs("uint64"), (4, 8, 8))
    with pytest.raises(WorkflowError, match="needs no levels"):
        neuroshed.pyramid(path, cluster=HERE)
    zarr.create_array(tmp_path / "b.zarr", shape=(4, 4, 300), dtype="uint8", zarr_format=2)
    with pytest.raises(InputError, match="is not laid out as neuroshed writes volumes"):
        neuroshed.pyramid(tmp_path / "b.zarr", cluster=HERE)
    write(tmp_path / "c.zarr", blobs("uint64").astype("float32"), (4, 8, 8))
    with pytest.raises(InputError, match="holds float32; levels are made of integers"):
        neuroshed.pyramid(tmp_path / "c.zarr", levels=1, cluster=HERE)


def segment(tmp_path: Path, block: Vec, *more: str) -> tuple[list[str], Path]:
    """A run with two levels: its settings, and its segmentation."""
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(2), (9, 13, 18), 256))
    settings = [f"affinities={path}", f"output={tmp_path / 'run'}", f"block_shape={list(block)}", "thresholds=[0.5]"]
    settings += ["cluster=in-process:2", "pyramid=2", *more]
    summary = neuroshed.run("stitch", settings)
    assert summary["stages"]["pyramid 0.5"]["done"] == summary["stages"]["pyramid 0.5"]["blocks"] > 2
    return settings, Path(summary["segmentations"]["0.5"])


def test_segmentations_of_a_trial_region(tmp_path: Path) -> None:
    """There, too, windows begin at the volume's first voxel, and what lies outside is 0."""
    _, labels = segment(tmp_path, (2, 6, 8), "box=[[1, 3, 5], [7, 11, 16]]")
    found = levels(labels)
    assert found[0].any()
    first = plain(found[0], (2, 2, 2), labels=True)
    assert_array_equal(found[1], first)
    assert_array_equal(found[2], plain(first, (2, 2, 2), labels=True))


def test_levels_are_part_of_a_run(tmp_path: Path) -> None:
    settings, labels = segment(tmp_path, (8, 8, 8))
    before = levels(labels)
    # More thresholds get theirs, and those that are there are left alone.
    more = neuroshed.cut(tmp_path / "run", [0.7])
    assert level_count(Location.of(more["segmentations"]["0.7"])) == 3
    stages = planned_stages(Location.of(tmp_path / "run"))
    assert [stage.title for stage in stages if isinstance(stage, Pyramid)] == ["pyramid 0.5", "pyramid 0.7"]
    # Computed again they are the same, and a level that is damaged is not.
    stage = next(stage for stage in stages if isinstance(stage, Pyramid))
    run_all(Verify(run_folder=Location.of(tmp_path / "check"), target=stage, step="level2"))
    assert_array_equal(levels(labels)[2], before[2])
    (level,) = stage.written("level1")
    level.write(level.box, np.full(level.shape, 9, np.uint64))
    with pytest.raises(BlockError, match=r"pyramid 0\.5 level1 .* are not what computing them again gives"):
        run_all(Verify(run_folder=Location.of(tmp_path / "check"), target=stage, step="level1"))
    # Without its folder, all of the volume is made again, levels too.
    shutil.rmtree(labels)
    neuroshed.run("stitch", settings)
    for again, wanted in zip(levels(labels), before, strict=True):
        assert_array_equal(again, wanted)
