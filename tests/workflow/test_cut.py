"""More thresholds from the recorded merges, without touching any other stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE = (8, 10, 12)


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(3), SHAPE, 256))
    return [
        f"affinities={path}",
        "block_shape=[4,5,6]",
        "cluster=in-process:2",
        "fragments.small=4",
        "fragments.dust=0",
        "thresholds=[0.5]",
    ]


def run(settings: list[str], output: Path, *extra: str) -> dict[str, Any]:
    return neuroshed.run("stitch", [*settings, f"output={output}", *extra])


def labels(path: str) -> np.ndarray:
    volume = open_volume(path)
    return volume.read(volume.box)


def test_a_cut_equals_a_run_at_that_threshold(settings: list[str], tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*-*/**/*") if path.is_file()}
    # Neither the affinities nor the image have to be there any more.
    shutil.move(tmp_path / "affinities.zarr", tmp_path / "elsewhere.zarr")
    summary = neuroshed.cut(tmp_path / "run", ["0.30", 0.7], fragments=True)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert summary["status"] == "done"
    assert set(summary["segmentations"]) == {"0.5", "0.3", "0.7"}
    nodes = summary["stages"]["segment 0.5"]["blocks"]
    assert sum(row["done"] for row in summary["stages"].values()) - summary["restored_blocks"] == 3 * nodes

    shutil.move(tmp_path / "elsewhere.zarr", tmp_path / "affinities.zarr")
    whole = run(settings, tmp_path / "fresh", "thresholds=[0.3, 0.7]", "keep=[segmentation, fragments, merges]")
    assert np.unique(labels(whole["segmentations"]["0.3"])).size < np.unique(labels(whole["fragments"])).size
    for threshold in ("0.3", "0.7"):
        np.testing.assert_array_equal(
            labels(summary["segmentations"][threshold]), labels(whole["segmentations"][threshold])
        )
    np.testing.assert_array_equal(labels(summary["fragments"]), labels(whole["fragments"]))


def test_the_run_knows_its_cuts(settings: list[str], tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    cut = neuroshed.cut(tmp_path / "run", ["0.4"], fragments=True)
    again = neuroshed.cut(tmp_path / "run", ["0.4"])
    assert again["restored_blocks"] == sum(row["done"] for row in again["stages"].values())
    for summary in (neuroshed.status(tmp_path / "run"), neuroshed.resume(tmp_path / "run")):
        assert summary["status"] == "done"
        assert summary["segmentations"] == cut["segmentations"]
        assert summary["fragments"] == cut["fragments"]


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["cut", *arguments])
    assert result.exit_code == 2
    return result.stderr.splitlines()[-1]


def test_the_command(settings: list[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    run(settings, tmp_path / "run")
    done = CliRunner().invoke(main, ["cut", folder, "--threshold", "0.4", "--cluster", "in-process:1"])
    assert done.exit_code == 0
    assert "segmentation at 0.4: " in done.stdout
    assert "threshold 0.1 is below 0.2, down to which merges were recorded" in refusal(folder, "--threshold", "0.1")
    assert "needed is a number in 0..1" in refusal(folder, "--threshold", "high")
    assert "nothing to cut" in refusal(folder)
    assert "holds no run" in refusal(str(tmp_path), "--threshold", "0.4")


def test_merges_that_are_not_there_are_not_guessed(settings: list[str], tmp_path: Path) -> None:
    run(settings, tmp_path / "run")
    shutil.rmtree(next((tmp_path / "run").glob("agglomerate-*")))
    with pytest.raises(WorkflowError, match="has 0 of 9 blocks of stage agglomerate; `neuroshed resume"):
        neuroshed.cut(tmp_path / "run", ["0.4"])
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.cut(tmp_path / "nothing", ["0.4"])


def test_a_sweep_scores_what_cuts_would_be(settings: list[str], tmp_path: Path) -> None:
    summary = run(settings, tmp_path / "run", "fragments.dust=3", "agglomerate.lowest_threshold=0.1")
    truth = tmp_path / "truth.zarr"
    volume = open_volume(summary["segmentations"]["0.5"])
    drawn = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint64)
    create_volume(truth, shape=SHAPE, dtype=np.uint64, shard_shape=SHAPE, voxel_size=(1, 1, 1)).write(volume.box, drawn)
    found = neuroshed.sweep(tmp_path / "run", truth, plot=tmp_path / "sweep.png")
    assert list(found["scores"]) == [f"{step / 20:g}" for step in range(2, 20)]
    assert len({row["segments"] for row in found["scores"].values()}) > 3
    best = found["scores"][found["best_threshold"]]
    assert best["voi"] == min(row["voi"] for row in found["scores"].values())
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    thresholds = ["0.1", "0.35", "0.6", "0.95"]
    cuts = neuroshed.cut(tmp_path / "run", thresholds)["segmentations"]
    for threshold in thresholds:
        assert found["scores"][threshold] == neuroshed.evaluate(cuts[threshold], truth)
    box = Box((1, 0, 2), (7, 9, 12))
    part = neuroshed.sweep(tmp_path / "run", truth, thresholds=thresholds, box=box)
    assert part["scores"]["0.6"] == neuroshed.evaluate(cuts["0.6"], truth, box=box)


def test_a_sweep_by_the_command_line(settings: list[str], tmp_path: Path) -> None:
    summary = run(settings, tmp_path / "run")
    truth = summary["segmentations"]["0.5"]
    told = CliRunner().invoke(main, ["sweep", str(tmp_path / "run"), truth])
    assert told.exit_code == 0, told.output
    assert "lowest VOI 0.000 at threshold 0.5" in told.stdout
    low = CliRunner().invoke(main, ["sweep", str(tmp_path / "run"), truth, "--threshold", "0.1"])
    assert low.exit_code == 2
    assert "threshold 0.1 is below 0.2, down to which merges were recorded" in low.stderr
