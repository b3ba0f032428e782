"""From an image, with masks: what they leave out is neither read nor predicted, and what is there is used again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import RunFailedError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.model.lattice import read_box
from neuroshed.stages.predict import Predict
from neuroshed.storage.volumes import Volume, create_volume, open_volume
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import make_plan
from neuroshed.workflow.run import start

SHAPE, BLOCK = (8, 32, 64), (8, 16, 16)
GRID = Grid(Box.of_shape(SHAPE), BLOCK)
CHUNK = (4, 4, 4)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """An image of noise in small chunks, a file each."""
    data = np.random.default_rng(3).integers(0, 256, SHAPE, np.uint8)
    zarr.create_array(tmp_path / "image.zarr", data=data, chunks=CHUNK)
    return tmp_path / "image.zarr"


def write_mask(path: Path, allowed: np.ndarray) -> Path:
    """A mask of 4 x 4 x 4 voxels of the image to one of its own; a plain array has voxels of 1 nm."""
    z, y, x = allowed.shape
    volume = create_volume(
        path, shape=(z, y, x), dtype=np.uint8, shard_shape=(z, y, x), voxel_size=(4, 4, 4), offset=(0, 0, 0)
    )
    volume.write(volume.box, allowed.astype(np.uint8))
    return path


def left(last: int) -> np.ndarray:
    """Tissue up to a column of the mask, in which blocks are 4 wide, with a corner of one block missing."""
    allowed = np.zeros((2, 8, 16), bool)
    allowed[..., : last + 1] = True
    allowed[:, 4:, :4] = False
    return allowed


def fine(allowed: np.ndarray) -> np.ndarray:
    return np.kron(allowed, np.ones((4, 4, 4), bool))


def settings(image: Path, model: Path, output: Path, mask: Path | None, *extra: str) -> list[str]:
    return [
        f"image={image}",
        f"model={model}",
        f"output={output}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:2",
        "predict.device=cpu",
        "predict.intensity=[0,255]",
        "thresholds=[0.3]",
        "fragments.small=6",
        "fragments.dust=0",
        "agglomerate.alarm_share=1",
        *([f"masks=[{{path: {mask}, keep: [1]}}]"] if mask else []),
        *extra,
    ]


def empty_of(allowed: np.ndarray) -> list[Vec]:
    return [index for index in GRID if not fine(allowed)[GRID.block_box(index).slices()].any()]


def labels_of(summary: dict[str, Any]) -> np.ndarray:
    labels: np.ndarray = open_volume(summary["segmentations"]["0.3"]).read(Box.of_shape(SHAPE))
    return labels


def test_chunks_beyond_what_is_predicted_are_not_read(
    noise: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are broken once the run is planned, so that to decode one would be an error; and reads are counted."""
    allowed = left(5)
    mask = write_mask(tmp_path / "mask.zarr", allowed)
    plan = make_plan(load("segment", settings(noise, model, tmp_path / "run", mask)))
    predict = plan.fragments.source
    assert isinstance(predict, Predict)
    wanted = np.zeros(SHAPE, bool)
    predicted = [index for index in GRID if index not in empty_of(allowed)]
    for index in predicted:
        wanted[read_box(GRID.block_box(index), SHAPE, predict.lattice).slices()] = True
    broken = 0
    for index in (chunks := Grid(Box.of_shape(SHAPE), CHUNK)):
        if not wanted[chunks.block_box(index).slices()].any():
            (noise / "c" / "/".join(map(str, index))).write_bytes(b"broken")
            broken += 1
    assert broken > 50
    read: list[Box] = []
    original = Volume.read

    def counted(volume: Volume, box: Box, channels: int | slice | None = None) -> Any:
        if str(volume.path) == str(noise):
            read.append(box)
        return original(volume, box, channels)

    monkeypatch.setattr(Volume, "read", counted)
    summary = start(plan)
    expected = {read_box(GRID.block_box(index), SHAPE, predict.lattice) for index in predicted}
    assert (len(read), {*read}) == (len(predicted), expected)
    rows = summary["stages"]
    for name in ("predict", "fragments"):
        assert (rows[name]["done"], rows[name]["skipped"]) == (len(predicted), len(GRID) - len(predicted))
    files = [file for file in (tmp_path / "run").glob("predict-*/affinities.zarr/0/c/**/*") if file.is_file()]
    assert len(files) == len(predicted)
    labels = labels_of(summary)
    assert not labels[~fine(allowed)].any()
    assert (labels[fine(allowed)] != 0).mean() > 0.5


def test_other_masks_use_what_was_predicted(noise: Path, model: Path, tmp_path: Path) -> None:
    """Only blocks that are not there yet are predicted, and each result is that of a run of its own."""
    small, large = (write_mask(tmp_path / f"{last}.zarr", left(last)) for last in (2, 9))
    alone = {
        mask: labels_of(neuroshed.run("segment", settings(noise, model, tmp_path / f"alone{n}", mask)))
        for n, mask in enumerate((small, large, None))
    }
    known = 0
    for mask in (small, large, None):
        summary = neuroshed.run("segment", settings(noise, model, tmp_path / "run", mask))
        row = summary["stages"]["predict"]
        there = [file for file in (tmp_path / "run").glob("predict-*/affinities.zarr/0/c/**/*") if file.is_file()]
        assert row["done"] == len(there) >= known
        assert row["done"] + row["skipped"] == row["blocks"]
        known = len(there)
        np.testing.assert_array_equal(labels_of(summary), alone[mask])
    assert known == len(GRID)


def test_affinities_that_are_not_kept(noise: Path, model: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.zarr", left(5))
    kept = labels_of(neuroshed.run("segment", settings(noise, model, tmp_path / "kept", mask)))
    summary = neuroshed.run("segment", settings(noise, model, tmp_path / "run", mask, "keep=[segmentation]"))
    np.testing.assert_array_equal(labels_of(summary), kept)
    assert not [file for file in (tmp_path / "run").glob("predict-*/affinities.zarr/0/c/**/*") if file.is_file()]
    status = neuroshed.status(tmp_path / "run")
    assert status["status"] == "done"
    assert status["stages"]["predict"]["skipped"] == len(empty_of(left(5)))


def test_a_lost_block_is_an_error_though_others_were_left_out(noise: Path, model: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.zarr", left(5))
    neuroshed.run("segment", settings(noise, model, tmp_path / "run", mask))
    lost = next((tmp_path / "run").glob("predict-*/affinities.zarr/0/c/0/0/0/1"))
    lost.unlink()
    with pytest.raises(RunFailedError) as caught:
        neuroshed.run(
            "segment", settings(noise, model, tmp_path / "run", mask, "fragments.small=9", "failures.attempts=1")
        )
    assert all(f"{lost} is missing or empty" in row["error"] for row in caught.value.summary["failures"])


def test_the_commands_tell_what_is_skipped(noise: Path, model: Path, tmp_path: Path) -> None:
    mask = write_mask(tmp_path / "mask.zarr", left(5))
    given = [word for setting in settings(noise, model, tmp_path / "run", mask) for word in ("--set", setting)]
    plan = CliRunner().invoke(main, ["plan", "segment", *given])
    assert plan.exit_code == 0, plan.output
    assert "skipped" in plan.stdout
    run = CliRunner().invoke(main, ["run", "segment", *given])
    assert run.exit_code == 0, run.output
    skipped = sum(row["skipped"] for row in neuroshed.status(tmp_path / "run")["stages"].values())
    assert f"{skipped} skipped" in run.stdout
    status = CliRunner().invoke(main, ["status", str(tmp_path / "run")])
    assert "skipped" in status.stdout
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "run"), "--all"])
    left_over = len(GRID) - len(empty_of(left(5)))
    assert f"verify predict: {left_over} blocks equal" in checked.stdout
