"""Inputs that change under a run, stores that take nothing: told by name, and the run goes on when they are mended."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.stages.fragments import Fragments
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities

SHAPE, BLOCK = (8, 10, 12), (4, 5, 6)
OFFSETS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
GIVEN = [
    f"block_shape={list(BLOCK)}",
    "cluster=in-process:1",
    "thresholds=[0.5]",
    "fragments.small=4",
    "failures.backoff_seconds=0",
]


def settings(affinities: Path, output: Path, *more: str) -> list[str]:
    return [f"affinities={affinities}", f"output={output}", *GIVEN, *more]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return random_affinities(np.random.default_rng(3), SHAPE, 256)


@pytest.fixture(scope="module")
def expected(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The segmentation of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("alone")
    return segmentation(neuroshed.run("stitch", settings(written(folder / "a.zarr", values), folder / "run")))


def segmentation(summary: dict[str, Any]) -> np.ndarray:
    volume = open_volume(summary["segmentations"]["0.5"])
    return volume.read(volume.box)


def written(path: Path, values: np.ndarray) -> Path:
    """An input in shards, all of which are there."""
    volume = create_volume(
        path, shape=values.shape[1:], dtype=np.uint8, shard_shape=(4, 5, 6), voxel_size=(10, 10, 10),
        voxel_offsets=OFFSETS, whole=True,
    )  # fmt: skip
    volume.write(volume.box, values)
    return path


def last_shard(path: Path) -> Path:
    return path / "0" / "c" / "0" / "1" / "1" / "1"


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def smaller(path: Path) -> None:
    values = open_volume(path).read(open_volume(path).box)
    shutil.rmtree(path)
    written(path, values[:, :4])


def other_type(path: Path) -> None:
    values = open_volume(path).read(open_volume(path).box)
    shutil.rmtree(path)
    zarr.create_array(path, data=values.astype(np.float32) / 255, chunks=(3, 4, 5, 6))


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda path: cut(last_shard(path)), "is damaged in ["),
    "a bit of the data": (lambda path: flip(last_shard(path), 20), "is damaged in ["),
    "a bit of the index": (lambda path: flip(last_shard(path), -15), "is damaged in ["),
    "a shard removed": (lambda path: last_shard(path).unlink(), "0/c/0/1/1/1 is missing or empty; bring it back"),
    "all removed": (shutil.rmtree, "was removed or replaced since this was planned; put it back as it was"),
    "only data removed": (lambda path: shutil.rmtree(path / "0" / "c"), "is missing or empty; bring it back"),
    "smaller": (smaller, "was removed or replaced since this was planned; put it back as it was"),
    "of another type": (other_type, "was removed or replaced since this was planned; put it back as it was"),
}


@pytest.mark.parametrize("name", HARMS)
def test_an_input_that_changes_under_a_run_holds_it_up_and_never_becomes_neurons(
    name: str, values: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    harm, words = HARMS[name]
    path = written(tmp_path / "a.zarr", values)
    shutil.copytree(path, tmp_path / "copy.zarr")
    run, begun = Fragments.run, []

    def harming(stage: Fragments, step: str, index: Any) -> Any:
        done = run(stage, step, index)
        if not begun:
            harm(path)
        begun.append(index)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fragments, "run", harming)
        with pytest.raises(RunFailedError) as caught:
            neuroshed.run("stitch", settings(path, tmp_path / "run"))
    assert f"of run {tmp_path / 'run'} failed" in str(caught.value)
    assert f"then `neuroshed resume {tmp_path / 'run'}` goes on" in str(caught.value)
    errors = {failure["error"] for failure in caught.value.summary["failures"]}
    assert errors
    assert all(str(path) in error and ("damaged" in error or "missing" in error or words in error) for error in errors)
    assert any(words in error for error in errors)
    # What does not touch the damage is done.
    done = caught.value.summary["stages"]["fragments"]["done"]
    assert done == len(begun)
    if path.exists():
        shutil.rmtree(path)
    if name in ("truncated", "smaller"):
        # Resuming before it is mended is refused, or fails again; nothing is lost by it.
        shutil.copytree(tmp_path / "copy.zarr", path)
        harm(path)
        with pytest.raises((WorkflowError, InputError), match=r"a\.zarr cannot be read|volume_shape was \("):
            neuroshed.resume(tmp_path / "run")
        shutil.rmtree(path)
    (tmp_path / "copy.zarr").rename(path)
    mended = neuroshed.resume(tmp_path / "run")
    assert mended["restored_blocks"] >= done
    np.testing.assert_array_equal(segmentation(mended), expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("dtype", "most"), [("u2", 65535), ("i4", 255), ("f4", 1)])
def test_affinities_of_either_order_of_bytes(
    zarr_format: int, dtype: str, most: int, values: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    data = (values.astype("f8") * most / 255).astype(dtype)
    options: Any = {"serializer": zarr.codecs.BytesCodec(endian="big")} if zarr_format == 3 else {}
    stored = f">{dtype}" if zarr_format == 2 else dtype
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=data.shape, chunks=(3, 4, 4, 4), dtype=stored, zarr_format=zarr_format, **options
    )
    array[...] = data
    more = [f"convention.value_range=[0,{most}]"]
    summary = neuroshed.run("stitch", settings(tmp_path / "a.zarr", tmp_path / "run", *more))
    np.testing.assert_array_equal(segmentation(summary), expected)


def test_images_of_either_order_of_bytes(model: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (14, 16, 18))
    found = []
    for dtype in ("u1", "<u2", ">u2", ">i2"):
        path = tmp_path / f"{len(found)}.zarr"
        array = zarr.create_array(path, shape=data.shape, chunks=(8, 8, 8), dtype=dtype, zarr_format=2)
        array[...] = data
        given = [f"image={path}", f"model={model}", f"output={path}.run", "block_shape=[16,16,16]", *GIVEN[1:]]
        summary = neuroshed.run("segment", [*given, "keep=[segmentation,affinities]"])
        volume = open_volume(summary["affinities"])
        found.append(volume.read(volume.box))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("dtype", ["c8", "S3", "M8[s]", "?"])
def test_types_that_are_no_image_are_refused_by_name(dtype: str, model: Path, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(16, 16, 16), chunks=(8, 8, 8), dtype=dtype, zarr_format=2)
    with pytest.raises(InputError, match=r"a\.zarr.*(complex64|S3|datetime64|bool)"):
        neuroshed.plan("segment", [f"image={tmp_path / 'a.zarr'}", f"model={model}", f"output={tmp_path / 'run'}"])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Nothing of this process can be written beyond so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_that_may_not_grow_hold_up_their_blocks_and_leave_no_halves(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (32, 64, 128), np.uint8)
    data[:, :, 64:] = 7
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(32, 64, 64))
    given = tmp_path / "a.zarr", tmp_path / "b.zarr"
    here = ClusterConfig(kind="in-process", workers=1)
    with largest_file(60_000), pytest.raises(RunFailedError) as caught:
        neuroshed.volume_crop(*given, block_shape=(32, 64, 64), cluster=here)
    told = str(caught.value)
    assert "1 block of run" in told
    assert "File too large" in told
    assert "the same crop goes on" in told
    (part,) = tmp_path.glob(".b.zarr.crop/copy-*/b.zarr")
    found = neuroshed.volume_check(part)
    assert (found["files"], [row["kind"] for row in found["damaged"]]) == (2, ["missing"])
    neuroshed.volume_crop(*given, block_shape=(32, 64, 64), cluster=here)
    assert neuroshed.volume_compare(*given)["same"]
    assert neuroshed.volume_check(given[1])["missing"] == 0


def test_a_disk_that_becomes_read_only_is_told_and_the_run_goes_on_later(
    values: np.ndarray, expected: np.ndarray, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.zarr", values)
    write = type(open_volume(path)).write

    def refused(volume: Any, *more: Any) -> None:
        if volume.path.name == "0.5.zarr":
            raise OSError(30, "Read-only file system", str(volume.path))
        write(volume, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(open_volume(path)), "write", refused)
        with pytest.raises(RunFailedError) as caught:
            neuroshed.run("stitch", settings(path, tmp_path / "run"))
    (error,) = {failure["error"] for failure in caught.value.summary["failures"]}
    assert "Read-only file system" in error
    assert str(tmp_path / "run") in error
    np.testing.assert_array_equal(segmentation(neuroshed.resume(tmp_path / "run")), expected)


def test_an_output_that_is_something_else(values: np.ndarray, tmp_path: Path) -> None:
    path = written(tmp_path / "a.zarr", values)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkflowError, match=str(tmp_path / "file")):
        neuroshed.run("stitch", settings(path, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"
