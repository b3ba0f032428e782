"""A part of a volume is a volume of its own, with the same voxels at the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from ome_zarr_models.v05 import Image

import neuroshed
from neuroshed.cli import main
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import BlockError, InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.stages.copy import Copy
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume

BOX = Box((3, 10, 20), (40, 90, 101))
HERE = ClusterConfig(kind="in-process", workers=2)
OFFSETS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -9)]


def noise(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2 if dtype == "?" else 250, shape).astype(dtype)


def crop(tmp_path: Path, source: Path | str, **options: Any) -> Any:
    return open_volume(neuroshed.volume_crop(source, tmp_path / "part.zarr", BOX, cluster=HERE, **options))


def test_affinities_keep_their_channels_offsets_and_place(tmp_path: Path) -> None:
    data = noise((4, 50, 100, 110), "f4")
    volume = create_volume(
        tmp_path / "a.zarr", shape=data.shape[1:], dtype="f4", shard_shape=(64, 64, 64), voxel_size=(40, 4, 8),
        offset=(100, 0, -8), voxel_offsets=OFFSETS,
    )  # fmt: skip
    volume.write(volume.box, data)
    part = crop(tmp_path, volume.path.local, block_shape=(16, 64, 32))
    assert (part.voxel_size, part.offset) == ((40, 4, 8), (100 + 3 * 40, 10 * 4, -8 + 20 * 8))
    assert (part.voxel_offsets, part.channels, part.dtype) == (tuple(OFFSETS), 4, np.float32)
    assert (part.shard_shape, part.whole) == ((16, 64, 32), True)
    assert_array_equal(part.read(part.box), data[(slice(None), *BOX.slices())])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "part.zarr"]
    Image.from_zarr(zarr.open_group(tmp_path / "part.zarr", mode="r"))
    array = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{tmp_path}/part.zarr/0/"}).result()
    assert_array_equal(array.read().result(), data[(slice(None), *BOX.slices())])


@pytest.mark.parametrize("dtype", ["u1", "?", ">u2", "<i4", ">f8", "f2", "u8"])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_any_numbers_of_older_arrays(dtype: str, channels: tuple[int, ...], tmp_path: Path) -> None:
    data = noise((*channels, 41, 95, 105), dtype)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=data.shape, chunks=(*(1 for _ in channels), 20, 50, 50), dtype=dtype, zarr_format=2
    )
    array[...] = data
    part = crop(tmp_path, tmp_path / "a.zarr")
    assert part.dtype == np.dtype(dtype).newbyteorder("=")
    assert part.channels == (channels[0] if channels else None)
    assert_array_equal(part.read(part.box), data[(..., *BOX.slices())])


def test_from_a_bucket(bucket: Location, tmp_path: Path) -> None:
    volume = create_volume(
        bucket / "a.zarr", shape=(40, 90, 101), dtype="u1", shard_shape=(64, 64, 64), voxel_size=(1, 1, 1)
    )
    data = noise(volume.shape, "u1")
    volume.write(volume.box, data)
    part = crop(tmp_path, str(volume.path))
    assert_array_equal(part.read(part.box), data[BOX.slices()])


def test_broken_off_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=noise((41, 95, 105), "u2"), chunks=(20, 50, 50))
    run, done = Copy.run, []

    def failing(stage: Copy, step: str, index: Any) -> Any:
        if index == (0, 1, 1):
            raise BlockError("no more today")
        done.append(index)
        return run(stage, step, index)

    with monkeypatch.context() as patch:
        patch.setattr(Copy, "run", failing)
        with pytest.raises(RunFailedError, match="no more today; mend the cause, then the same crop goes on"):
            crop(tmp_path, tmp_path / "a.zarr", block_shape=(64, 64, 64))
    assert not (tmp_path / "part.zarr").exists()
    again: list[Any] = []
    monkeypatch.setattr(Copy, "run", lambda stage, step, index: again.append(index) or run(stage, step, index))
    part = crop(tmp_path, tmp_path / "a.zarr", block_shape=(64, 64, 64))
    assert sorted(done) == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert again == [(0, 1, 1)]
    assert_array_equal(part.read(part.box), zarr.open_array(tmp_path / "a.zarr")[BOX.slices()])


@pytest.mark.parametrize("harm", ["removed", "smaller"])
def test_a_source_that_goes_away_meanwhile_never_reads_as_zeros(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a.zarr"
    data = noise((41, 95, 105), "u2")
    zarr.create_array(source, data=data, chunks=(20, 50, 50))
    run, moved = Copy.run, tmp_path / "moved.zarr"

    def losing(stage: Copy, step: str, index: Any) -> Any:
        done = run(stage, step, index)
        if source.exists() and not moved.exists():
            source.rename(moved)
            if harm == "smaller":
                zarr.create_array(source, data=data[:20], chunks=(20, 50, 50))
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Copy, "run", losing)
        with pytest.raises(RunFailedError) as caught:
            crop(
                tmp_path,
                source,
                block_shape=(64, 64, 64),
            )
    assert str(source) in str(caught.value)
    assert "the same crop goes on" in str(caught.value)
    if harm == "smaller":
        assert "was removed or replaced since this was planned; put it back as it was" in str(caught.value)
        source.rename(tmp_path / "smaller.zarr")
    moved.rename(source)
    part = crop(tmp_path, source, block_shape=(64, 64, 64))
    assert_array_equal(part.read(part.box), data[BOX.slices()])


def test_what_cannot_be(tmp_path: Path) -> None:
    source = tmp_path / "a.zarr"
    zarr.create_array(source, data=noise((20, 30, 40), "u1"), chunks=(20, 30, 40))
    with pytest.raises(
        InputError, match=r"box \[3:40, 10:90, 20:101\] is not inside volume .*a.zarr of shape \[20, 30"
    ):
        crop(tmp_path, source)
    (tmp_path / "part.zarr").mkdir()
    with pytest.raises(WorkflowError, match="exists already; choose another or remove it"):
        crop(tmp_path, source)
    with pytest.raises(WorkflowError, match=r"is in .*, which is never changed"):
        neuroshed.volume_crop(source, source / "part.zarr")
    for number, dtype in enumerate(["c8", "S3", "M8[s]"]):
        zarr.create_array(tmp_path / f"{number}.zarr", shape=(4, 4, 4), dtype=dtype, chunks=(4, 4, 4), zarr_format=2)
        with pytest.raises(InputError, match=r"\d.zarr holds .*; needed are integers, floats or bool: convert it"):
            neuroshed.volume_crop(tmp_path / f"{number}.zarr", tmp_path / "b.zarr")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_the_command(tmp_path: Path) -> None:
    data = noise((20, 30, 40), "u1")
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(20, 30, 40))
    given = ["volume", "crop", str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"), "--cluster", "in-process:1"]
    result = CliRunner().invoke(main, [*given, "--box", *["1", "2", "3", "11", "22", "33"]])
    assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path / 'b.zarr'}\n"), result.output
    part = open_volume(tmp_path / "b.zarr")
    assert_array_equal(part.read(part.box), data[1:11, 2:22, 3:33])
