"""Volumes that hold the same are told from those that do not, in any order and layout of blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, RunFailedError
from neuroshed.storage.volumes import create_volume, open_volume

SHAPE = (40, 150, 200)


def volume(path: Path, data: np.ndarray, **options: Any) -> Path:
    """One of ours, in shards that are smaller than blocks."""
    given = {"voxel_size": (40, 4, 4), "shard_shape": (32, 64, 64), "shape": data.shape[-3:], "dtype": data.dtype}
    made = create_volume(path, **given | options)
    made.write(made.box, data)
    return path


def other(path: Path, data: np.ndarray, **options: Any) -> Path:
    """The same in Zarr v2, other chunks and another order of bytes."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    lead = [1.0] * (data.ndim - 3)
    axes = [{"name": "c", "type": "channel"}] * len(lead) + [
        {"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"
    ]
    scale = {"type": "scale", "scale": [*lead, 40.0, 4.0, 4.0]}
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": [scale]}]}
    ]
    chunks = (*(1 for _ in lead), 17, 200, 31)
    array = group.create_array("s0", shape=data.shape, chunks=chunks, dtype=data.dtype.newbyteorder(">"))
    array[...] = data
    return path


def labels() -> np.ndarray:
    z, y, x = np.ogrid[:40, :150, :200]
    found = (z // 20 * 64 + y // 50 * 8 + x // 60 + 1).astype(np.uint32)
    found[:, ::25] = 0
    return found


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["volume", "compare", *map(str, arguments)])


@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f4", "?"])
def test_the_same_in_another_layout(dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, SHAPE).astype(dtype)
    if dtype == "f4":
        data[3, 4, 5] = np.nan
    found = neuroshed.volume_compare(volume(tmp_path / "a", data), other(tmp_path / "b", data))
    assert found == {
        "left": str(tmp_path / "a"), "right": str(tmp_path / "b"), "labels": False, "layout": {}, "compared": True,
        "values_differing": 0, "first": None, "largest_difference": 0, "same": True,
    }  # fmt: skip
    data[35, 140, 190] = not data[35, 140, 190]
    assert neuroshed.volume_compare(tmp_path / "a", other(tmp_path / "b", data))["first"] == [35, 140, 190]


def test_affinities_differ_by_channel(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    changed = data.copy()
    changed[0, 39, 149, 199] += 0.5
    changed[2, 20, 3, 4] -= 0.25
    changed[1, 20, 3, 4] += 0.125
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    one = volume(tmp_path / "a", data, voxel_offsets=offsets)
    two = volume(tmp_path / "b", changed, voxel_offsets=[*offsets[:2], (0, 0, -2)], offset=(0, 0, 4))
    found = neuroshed.volume_compare(one, two)
    assert (found["values_differing"], found["first"]) == (3, [1, 20, 3, 4])
    assert found["largest_difference"] == pytest.approx(0.5)
    assert found["layout"] == {
        "offset": [(0.0, 0.0, 0.0), (0.0, 0.0, 4.0)],
        "voxel_offsets": [tuple(offsets), (*offsets[:2], (0, 0, -2))],
    }
    result = call(one, two)
    assert result.exit_code == 1
    assert "3 values differ, the first at [1, 20, 3, 4], by up to 0.5" in result.stdout
    assert json.loads(call(one, two, "--json").stdout)["same"] is False


def test_equal_voxels_of_another_type_or_place_are_not_the_same(tmp_path: Path) -> None:
    data = labels()
    one = volume(tmp_path / "a", data)
    found = neuroshed.volume_compare(one, volume(tmp_path / "b", data.astype("u8"), voxel_size=(40, 4, 8)))
    assert (found["same"], found["values_differing"]) == (False, 0)
    assert found["layout"] == {"voxel_size": [(40, 4, 4), (40, 4, 8)], "dtype": ["uint32", "uint64"]}
    for more in (data[:39], data.astype("f4")):
        found = neuroshed.volume_compare(one, volume(tmp_path / f"{more.dtype}{len(more)}", more))
        assert (found["same"], found["compared"]) == (False, False)
    result = call(one, tmp_path / "uint3239")
    assert result.exit_code == 1
    assert "shape: (40, 150, 200) and (39, 150, 200)" in result.stdout
    assert "their voxels were not compared" in result.stdout


def test_labels_by_other_names(tmp_path: Path) -> None:
    data = labels()
    names = np.random.default_rng(1).permutation(np.arange(1, 2**16))[: data.max() + 1].astype(np.uint64)
    names[0] = 0
    one = volume(tmp_path / "a", data)
    two = other(tmp_path / "b", names[data] << np.uint64(40))
    result = call(one, two, "--labels")
    assert result.exit_code == 0, result.output
    count = len(np.unique(data)) - 1
    assert result.stdout == f"labels are the same: {count}, {count} of them under another name\n"
    assert call(one, two).exit_code == 1
    merged = names[data]
    merged[merged == names[data[39, 149, 199]]] = names[data[1, 1, 1]]
    merged[20, 3, 4] = 7
    found = neuroshed.volume_compare(one, volume(tmp_path / "c", merged), labels=True)
    wrong = np.count_nonzero(data == data[39, 149, 199])
    assert (found["same"], found["values_differing"], found["first"]) == (False, wrong + 1, [20, 3, 4])
    assert "differ by more than names, the first at [20, 3, 4]" in call(one, tmp_path / "c", "--labels").stdout


def test_what_cannot_be_compared_is_neither(tmp_path: Path) -> None:
    data = labels()
    one = volume(tmp_path / "a", data)
    with pytest.raises(InputError, match="is float32 with no channels; needed are integer labels"):
        neuroshed.volume_compare(one, volume(tmp_path / "f", data.astype("f4")), labels=True)
    zarr.create_array(tmp_path / "c", shape=SHAPE, dtype="c8", chunks=SHAPE)
    with pytest.raises(InputError, match="holds complex64; needed are integers, floats or bool"):
        neuroshed.volume_compare(one, tmp_path / "c")
    two = volume(tmp_path / "b", data)
    file = tmp_path / "b" / "0" / "c" / "1" / "2" / "3"
    file.write_bytes(file.read_bytes()[:-7])
    result = call(one, two)
    assert result.exit_code == 2
    assert f"BlockError: {two} is damaged in [0:40, 0:150, 0:200]" in result.stderr
    assert "then compare again" in result.stderr
    with pytest.raises(RunFailedError):
        neuroshed.volume_compare(two, one)
    assert open_volume(two).box == open_volume(one).box
