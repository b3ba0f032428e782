"""What is told of a volume is what it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.storage.inspection import describe, sample_boxes
from neuroshed.storage.volumes import create_volume, open_volume


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """64 x 64 x 128 voxels in two shards, of which one is there: half of it 7, half 0."""
    path = tmp_path / "half.zarr"
    volume = create_volume(
        path, shape=(64, 64, 128), dtype=np.uint16, shard_shape=(64, 64, 64), voxel_size=(30, 8, 8), offset=(0, 8, 0)
    )
    data = np.zeros((64, 64, 64), np.uint16)
    data[32:] = 7
    volume.write(Box((0, 0, 0), (64, 64, 64)), data)
    return path


def test_layout_size_and_values(half: Path) -> None:
    found = neuroshed.volume_info(half)
    assert (found["shape"], found["channels"], found["dtype"]) == ([64, 64, 128], None, "<u2")
    assert (found["voxel_size"], found["offset"]) == ([30.0, 8.0, 8.0], [0.0, 8.0, 0.0])
    assert (found["chunk_shape"], found["shard_shape"]) == ((64, 64, 64), (64, 64, 64))
    assert found["codecs"] == ["zstd(level=1, checksum=True)"]
    assert found["files"] == {"there": 1, "expected": 2, "missing": 1}
    (file,) = (path for path in (half / "0" / "c").rglob("*") if path.is_file())
    assert found["stored_bytes"] == file.stat().st_size
    assert found["raw_bytes"] == 2 * 64 * 64 * 128
    assert found["ratio"] == round(found["raw_bytes"] / found["stored_bytes"], 2)
    values = found["values"]
    assert (values["sampled_share"], values["zero_share"], values["not_finite"]) == (1.0, 0.75, 0)
    assert (values["least"], values["most"], values["mean"]) == (0, 7, 1.75)
    assert values["percentiles"]["50"] == 0
    assert values["percentiles"]["95"] == 7
    assert values["histogram"]["counts"][0] == 3 * values["histogram"]["counts"][-1] == 3 * 2**17


def test_samples_are_on_chunks_apart_and_in_the_middle_too(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(100, 100, 1000), chunks=(10, 20, 50), dtype="u1")
    volume = open_volume(tmp_path / "a.zarr")
    boxes = list(sample_boxes(volume, 10))
    assert len(set(boxes)) == 10
    assert all(all(start % side == 0 for start, side in zip(box.start, (10, 20, 50), strict=True)) for box in boxes)
    assert {box.start[0] for box in boxes} == set(range(0, 100, 10))
    every = list(sample_boxes(volume, 10**6))
    assert sum(box.size for box in every) == math.prod(array.shape)


def test_older_arrays_and_channels(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "old.zarr", shape=(4, 5, 6), chunks=(4, 5, 6), dtype="f4", zarr_format=2)[:] = np.nan
    found = describe(open_volume(tmp_path / "old.zarr"))
    assert (found["zarr_format"], found["shard_shape"], found["files"]["missing"]) == (2, None, 0)
    assert found["codecs"] == ["zstd(level=0, checksum=False)"]
    assert found["values"]["not_finite"] == 120
    assert "least" not in found["values"]
    create_volume(
        tmp_path / "c.zarr", shape=(8, 8, 8), dtype=np.uint8, shard_shape=(8, 8, 8), voxel_size=(1, 1, 1),
        voxel_offsets=[(-1, 0, 0), (0, -1, 0), (0, 0, -1)],
    )  # fmt: skip
    empty = neuroshed.volume_info(tmp_path / "c.zarr")
    assert (empty["channels"], empty["ratio"], empty["files"]["missing"]) == (3, None, 1)


def test_the_command(half: Path) -> None:
    told = CliRunner().invoke(main, ["volume", "info", str(half)])
    assert told.exit_code == 0, told.output
    for words in ("64 x 64 x 128 voxels, <u2", "30 x 8 x 8 nm", "1 of 2, 1 missing", "0 to 7, mean 1.75", "75 % are 0"):
        assert words in told.stdout
    result = CliRunner().invoke(main, ["volume", "info", str(half), "--json", "--samples", "1"])
    assert json.loads(result.stdout)["values"]["sampled_share"] == 0.5
    with pytest.raises(InputError, match="no volume at"):
        neuroshed.volume_info(half / "nothing")
