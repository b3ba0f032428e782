"""Damage of any file of a volume is found and named, and nothing else is; blocks of runs come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.storage.journal import Journal
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE = (40, 50, 70)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 16
    file.write_bytes(data)


def cut(file: Path, share: float = 0.5) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no file": (lambda file: file.unlink(), "missing"),
    "no bytes": (lambda file: file.write_bytes(b""), "empty"),
    "cut in the middle": (cut, "damaged"),
    "a byte short": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "damaged"),
    "a bit of the data": (lambda file: flip(file, 40), "damaged"),
    "a bit of the middle": (lambda file: flip(file, file.stat().st_size // 2), "damaged"),
    "a bit of the index": (lambda file: flip(file, -20), "damaged"),
    "a bit of the index's checksum": (lambda file: flip(file, -1), "damaged"),
    "other bytes": (lambda file: file.write_bytes(b"<html>not found</html>"), "damaged"),
}


def whole(path: Path | Location, shape: tuple[int, ...] = SHAPE) -> Any:
    """A volume of ours with channels and all of its shards."""
    volume = create_volume(
        path, shape=shape, dtype="u2", shard_shape=(16, 32, 32), voxel_size=(1, 1, 1), channels=2, whole=True
    )
    volume.write(volume.box, np.random.default_rng(0).integers(0, 9, (2, *shape)).astype("u2"))
    return volume


@pytest.mark.parametrize("name", HARMS)
def test_each_harm_is_named_with_its_box(name: str, tmp_path: Path) -> None:
    harm, kind = HARMS[name]
    whole(tmp_path / "a.zarr")
    assert neuroshed.volume_check(tmp_path / "a.zarr")["damaged"] == []
    file = tmp_path / "a.zarr" / "0" / "c" / "0" / "2" / "1" / "0"
    harm(file)
    found = neuroshed.volume_check(tmp_path / "a.zarr")
    (row,) = found["damaged"]
    assert (row["file"], row["kind"]) == (str(file), kind)
    assert (row["box"], row["channels"]) == ([[32, 32, 0], [40, 50, 32]], [0, 2])
    assert bool(row["reason"]) == (kind == "damaged")
    assert "\n" not in row["reason"]
    assert (found["files"], found["missing"]) == (18, int(kind == "missing"))


def test_several_at_once_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    whole(path)
    result = CliRunner().invoke(main, ["volume", "check", str(path)])
    assert (result.exit_code, result.stdout) == (0, "18 files, none damaged\n")
    files = sorted(file for file in (path / "0" / "c").rglob("*") if file.is_file())
    for file, name in zip(files[3:], HARMS, strict=False):
        HARMS[name][0](file)
    result = CliRunner().invoke(main, ["volume", "check", str(path)])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"missing: {files[3]}, voxels [0:16, 32:50, 0:32] channels 0:2"
    assert f"18 files, 1 missing (5.56 %), {len(HARMS)} damaged" in lines
    assert "bring these back from where the volume came from" in lines
    found = json.loads(CliRunner().invoke(main, ["volume", "check", str(path), "--json"]).stdout)
    assert {row["file"] for row in found["damaged"]} == set(map(str, files[3 : 3 + len(HARMS)]))
    with pytest.raises(WorkflowError, match="is not of a run, so nothing can compute it again"):
        neuroshed.volume_check(path, redo=True)


@pytest.mark.parametrize("layout", ["v2", "v2 raw", "v3", "v3 sharded", "v2 nested"])
def test_volumes_of_others_may_lack_files(layout: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"chunks": (1, 16, 32, 32), "zarr_format": 2 if "v2" in layout else 3}
    if layout == "v3 sharded":
        options |= {"chunks": (1, 8, 16, 16), "shards": (1, 16, 32, 32)}
    if layout == "v2 raw":
        options |= {"compressors": None}
    if layout == "v2 nested":
        options |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2, *SHAPE), dtype="u2", fill_value=7, **options)
    array[0, :20] = np.random.default_rng(0).integers(0, 9, (20, 50, 70))
    array[1, 20:] = 7
    there = [
        file for file in (tmp_path / "a.zarr").rglob("*") if file.is_file() and not file.name.startswith((".", "z"))
    ]
    found = neuroshed.volume_check(tmp_path / "a.zarr")
    assert (found["files"], found["missing"], found["damaged"]) == (36, 36 - len(there), [])
    assert len(there) == 12
    there.sort()
    cut(there[5])
    there[7].write_bytes(b"")
    found = neuroshed.volume_check(tmp_path / "a.zarr")
    assert {(row["file"], row["kind"]) for row in found["damaged"]} == {
        (str(there[5]), "damaged"),
        (str(there[7]), "empty"),
    }
    assert all(row["channels"] == [0, 1] for row in found["damaged"])


def test_in_a_bucket(bucket: Location) -> None:
    volume = whole(bucket / "a.zarr")
    files = [file for file, _ in (volume.path / "0" / "c").files()]
    assert neuroshed.volume_check(str(volume.path))["damaged"] == []
    data = files[1].read_bytes()
    files[0].delete()
    files[1].put(data[: len(data) // 2])
    files[2].put(b"")
    found = neuroshed.volume_check(str(volume.path))
    assert [(row["file"], row["kind"]) for row in found["damaged"]] == [
        (str(files[0]), "missing"),
        (str(files[1]), "damaged"),
        (str(files[2]), "empty"),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight blocks that keeps all it makes; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    affinities = random_affinities(np.random.default_rng(3), (8, 10, 12), 256)
    path = write_affinities(folder / "affinities.zarr", affinities)
    given = ["block_shape=[4,5,6]", "cluster=in-process:1", "thresholds=[0.5]", "fragments.small=4"]
    keep = "keep=[segmentation,fragments,merges,affinities]"
    neuroshed.run("stitch", [f"affinities={path}", f"output={folder / 'run'}", *given, keep])
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.glob("*-*/*/**/*") if file.is_file()}


@pytest.mark.parametrize("stage", ["segment-*/0.5.zarr", "fragments-*/labels.zarr"])
def test_damaged_blocks_of_a_run_come_back(stage: str, run: Path) -> None:
    before = contents(run)
    (path,) = run.glob(stage)
    assert neuroshed.volume_check(path)["damaged"] == []
    flip(path / "0" / "c" / "0" / "1" / "0", 30)
    (path / "0" / "c" / "1" / "1" / "1").unlink()
    found = neuroshed.volume_check(path)
    assert [row["kind"] for row in found["damaged"]] == ["damaged", "missing"]
    title = "segment 0.5" if "segment" in stage else "fragments"
    assert found["run"] == {
        "folder": str(run), "stage": title, "step": "paint" if "segment" in stage else "",
        "blocks": [[0, 1, 0], [1, 1, 1]], "forgotten": False,
        "commands": [f"neuroshed volume check {path} --redo", f"neuroshed resume {run}"],
    }  # fmt: skip
    assert neuroshed.status(run)["status"] == "done"
    with Journal(run), pytest.raises(WorkflowError, match="is being worked on by"):
        neuroshed.volume_check(path, redo=True)
    result = CliRunner().invoke(main, ["volume", "check", str(path / "0"), "--redo"])
    assert result.exit_code == 1
    assert f"block of {title}" in result.stdout
    assert f"these blocks are forgotten; `neuroshed resume {run}` computes them again" in result.stdout
    row = neuroshed.status(run)["stages"][title]
    assert (row["blocks"] - row["done"], row["failed"]) == (2, 0)
    # What is not there because it is to be done is no damage.
    assert neuroshed.volume_check(path)["damaged"] == []
    summary = neuroshed.resume(run)
    assert summary["status"] == "done"
    assert sum(row["done"] for row in summary["stages"].values()) - summary["restored_blocks"] == 2
    assert {name: contents(run)[name] for name in before} == before
    assert neuroshed.volume_check(path)["missing"] == 0


def test_of_a_run_in_a_box_only_its_blocks_must_be_there(run: Path) -> None:
    given = [f"output={run}", "box=[[0,0,0],[4,10,6]]"]
    summary = neuroshed.run(run / "workflow.yaml", given)
    path = Path(summary["segmentations"]["0.5"])
    found = neuroshed.volume_check(path)
    assert (found["files"], found["missing"], found["damaged"]) == (8, 6, [])
    (path / "0" / "c" / "0" / "1" / "0").write_bytes(b"")
    assert [row["kind"] for row in neuroshed.volume_check(path)["damaged"]] == ["empty"]


def test_a_large_shard_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuroshed.stages import passes

    monkeypatch.setattr(passes, "BLOCK_BYTES", 64**3)
    monkeypatch.setattr(passes, "SIDE", 64)
    volume = create_volume(
        tmp_path / "a.zarr", shape=(128, 128, 128), dtype="u1", shard_shape=(128, 128, 128), voxel_size=(1, 1, 1)
    )
    volume.write(volume.box, np.random.default_rng(0).integers(0, 255, volume.shape, np.uint8))
    shapes = []
    read = type(volume).read
    monkeypatch.setattr(
        type(volume), "read", lambda self, box, *more: shapes.append(box.shape) or read(self, box, *more)
    )
    assert neuroshed.volume_check(tmp_path / "a.zarr")["damaged"] == []
    assert shapes == [(32, 32, 32)] * 8 + [(64, 64, 64)] * 8
    flip(tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0", 1_000_000)
    (row,) = neuroshed.volume_check(tmp_path / "a.zarr")["damaged"]
    assert row["box"] == [[0, 0, 0], [128, 128, 128]]


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = whole(tmp_path / "a.zarr")
    read = type(volume).read

    def broken_disk(self: Any, box: Box, *more: Any) -> Any:
        if not box.intersect(Box((0, 0, 0), (1, 1, 1))).empty:
            raise OSError(5, "Input/output error", "a.zarr/0/c/0/0/0/0")
        return read(self, box, *more)

    monkeypatch.setattr(type(volume), "read", broken_disk)
    (row,) = neuroshed.volume_check(tmp_path / "a.zarr")["damaged"]
    assert (row["kind"], row["box"][1]) == ("unreadable", [16, 32, 32])
    assert "Input/output error" in row["reason"]


def test_a_store_that_does_not_answer_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = whole(tmp_path / "a.zarr")

    def silent(self: Any, box: Box, *more: Any) -> Any:
        raise WorkflowError("the store does not answer")

    monkeypatch.setattr(type(volume), "read", silent)
    with pytest.raises(RunFailedError, match="the store does not answer; mend the cause, then check again") as caught:
        neuroshed.volume_check(tmp_path / "a.zarr")
    assert caught.value.exit_code == 2
    assert open_volume(tmp_path / "a.zarr").whole
