"""Promise 2: nothing is believed before it is true. Killed at any instant, a run goes on and ends in the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroshed
from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.files import is_draft
from neuroshed.storage.journal import Journal, read_events
from neuroshed.storage.ledger import positions_of

from .chunks import random_affinities, write_affinities

SHAPE, BLOCK = (10, 12, 16), (4, 4, 4)
LEAVES, INNER = 3 * 3 * 4, 2 * 2 * 2 + 1
TREE = LEAVES + INNER

SEGMENT = TREE + LEAVES
BLOCKS = {"fragments": LEAVES, "agglomerate": TREE, "segment 0.3": SEGMENT, "segment 0.5": SEGMENT}


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    return write_affinities(path, random_affinities(np.random.default_rng(1), SHAPE, 256))


@pytest.fixture(scope="module")
def alone(affinities: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests work on copies."""
    output = tmp_path_factory.mktemp("alone") / "run"
    summary = run(affinities, output)
    assert summary["status"] == "done"
    assert {kind: row["blocks"] for kind, row in summary["stages"].items()} == BLOCKS
    assert computed(summary) == sum(BLOCKS.values())
    return output


@pytest.fixture
def output(alone: Path, tmp_path: Path) -> Path:
    """A finished run."""
    return Path(shutil.copytree(alone, tmp_path / "run"))


def settings(affinities: Path, output: Path, *extra: str, cluster: str = "in-process:2") -> list[str]:
    return [
        f"affinities={affinities}",
        f"output={output}",
        f"block_shape={list(BLOCK)}",
        f"cluster={cluster}",
        "fragments.small=10",
        "fragments.dust=0",
        *extra,
    ]


def run(affinities: Path, output: Path, *extra: str) -> dict[str, Any]:
    return neuroshed.run("segment", settings(affinities, output, *extra))


def contents(run_folder: Path) -> dict[str, bytes]:
    """All bytes that the stages wrote, by path; drafts of killed writers are nobody's."""
    files = (file for folder in run_folder.glob("*-*") for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(run_folder)): file.read_bytes()
        for file in files
        if file.name != "stage.json" and not is_draft(file.name)
    }


def done_events(run_folder: Path) -> int:
    """Blocks that the journal says were done, each as often as it was."""
    found = (event for event in read_events(run_folder) if event["e"] == "done")
    return sum(positions_of(event["at"]).size for event in found)


def computed(summary: dict[str, Any]) -> int:
    return sum(row["done"] for row in summary["stages"].values()) - summary["restored_blocks"]


def kill_after(arguments: list[str], run_folder: Path, events: int, environment: dict[str, str]) -> int:
    """Start a run and kill it and all its workers once the journal holds so many done blocks; returns how many then."""
    command = [Path(sys.executable).with_name("neuroshed"), "run", "segment"]
    with subprocess.Popen(
        [*command, *(word for text in arguments for word in ("--set", text))],
        start_new_session=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            end = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < end and done_events(run_folder) < events:
                time.sleep(0.002)
        finally:
            # Also if it ended by itself: no worker may be left.
            os.killpg(process.pid, signal.SIGKILL)
    return done_events(run_folder)


@pytest.mark.system
def test_runs_killed_at_any_instant_end_in_the_bytes_of_one_left_alone(
    affinities: Path, alone: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    rng = random.Random(os.urandom(8))
    environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path / "dask")}
    arguments = settings(affinities, killed, cluster="local:2")
    total = sum(BLOCKS.values())
    done = 0
    for number in range(2):
        target = rng.randrange(done + 1, done + (total - done) // (3 - number) + 2)
        done = kill_after(arguments, killed, target, environment)
        assert done >= target
        assert neuroshed.status(killed)["status"] in ("unfinished", "done")
    summary = run(affinities, killed)
    assert summary["status"] == "done"
    assert summary["restored_blocks"] == done
    assert computed(summary) == total - done
    # None was done twice.
    assert done_events(killed) == total
    assert contents(killed) == contents(alone)


def test_runs_interrupted_again_and_again_end_in_the_same_bytes(affinities: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    rng = random.Random(os.urandom(8))
    done = 0
    for _ in range(3):
        target = done + rng.randrange(1, sum(BLOCKS.values()) // 4)

        def interrupt(progress: Any, target: int = target) -> None:
            if sum(count.done for count in progress.stages.values()) >= target:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            neuroshed.run("segment", settings(affinities, output), watch=interrupt)
        done = done_events(output)
        assert done >= target
    assert run(affinities, output)["restored_blocks"] == done
    # None was done twice.
    assert done_events(output) == sum(BLOCKS.values())
    assert contents(output) == contents(alone)


def test_only_what_depends_on_a_parameter_is_done_again(affinities: Path, output: Path) -> None:
    assert computed(run(affinities, output)) == 0
    assert computed(neuroshed.resume(output)) == 0
    # A new threshold costs one relabelling, beside another one too.
    assert computed(run(affinities, output, "thresholds=[0.4]")) == SEGMENT
    assert computed(run(affinities, output, "thresholds=[0.6, 0.4, 0.3]")) == SEGMENT
    before = done_events(output)
    changed = run(affinities, output, "fragments.small=20")
    assert computed(changed) == sum(BLOCKS.values())
    assert computed(run(affinities, output, "agglomerate.lowest_threshold=0.1")) == TREE + 2 * SEGMENT
    assert computed(run(affinities, output, "agglomerate.score=max")) == TREE + 2 * SEGMENT
    # All results are still there, so going back costs nothing.
    assert computed(run(affinities, output)) == 0
    assert done_events(output) == before + sum(BLOCKS.values()) + 2 * (TREE + 2 * SEGMENT)


def test_outputs_that_were_removed_are_not_believed(affinities: Path, alone: Path, output: Path) -> None:
    segmentation = Path(neuroshed.status(output)["segmentations"]["0.5"])
    shutil.rmtree(segmentation)
    assert neuroshed.status(output)["status"] == "unfinished"
    assert not segmentation.exists()
    assert computed(run(affinities, output)) == SEGMENT
    # What still stands stays, what is computed again waits for what it reads.
    for folder in (segmentation.parent, next(output.glob("agglomerate-*"))):
        shutil.rmtree(folder)
    assert computed(neuroshed.resume(output)) == TREE + SEGMENT
    assert contents(output) == contents(alone)
    assert computed(run(affinities, output)) == 0


def test_a_moved_run_goes_on_where_it_is(output: Path, tmp_path: Path) -> None:
    moved = output.rename(tmp_path / "moved")
    for summary in (neuroshed.status(moved), neuroshed.resume(moved)):
        assert summary["status"] == "done"
        assert summary["restored_blocks"] == sum(BLOCKS.values())
        assert Path(summary["segmentations"]["0.5"]).is_relative_to(moved)
    assert not output.exists()


def test_a_changed_input_is_named(tmp_path: Path) -> None:
    path = tmp_path / "affinities.zarr"
    for seed in (1, 2):
        shutil.rmtree(path, ignore_errors=True)
        write_affinities(path, random_affinities(np.random.default_rng(seed), (4, 4, 4), 256))
        if seed == 1:
            run(path, tmp_path / "run")
    with pytest.raises(WorkflowError) as caught:
        neuroshed.resume(tmp_path / "run")
    message = str(caught.value)
    assert f"sample_sha256 of {path} changed" in message
    assert "put them back, or compute anew with `neuroshed run" in message
    assert "\n" not in message
    # It was a refusal, not a change of plan.
    assert neuroshed.status(tmp_path / "run")["status"] == "done"


def test_a_second_coordinator_is_refused_and_changes_nothing(affinities: Path, output: Path) -> None:
    before = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    with Journal(output), pytest.raises(WorkflowError, match=rf"worked on by neuroshed \(process {os.getpid()} on "):
        run(affinities, output, "thresholds=[0.4]")
    assert {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()} == before
    with Journal(output):
        assert neuroshed.status(output)["status"] == "done"


@pytest.mark.parametrize("verb", [neuroshed.status, neuroshed.resume])
def test_a_folder_without_a_run(verb: Any, tmp_path: Path) -> None:
    with pytest.raises((InputError, WorkflowError), match="holds no run"):
        verb(tmp_path)


def test_a_damaged_plan_is_told(output: Path) -> None:
    plan = output / "plan.json"
    text = plan.read_text()
    for damaged, words in ((text[:-40], "is damaged"), (text.replace('"small"', '"smaller"'), "by another version")):
        plan.write_text(damaged)
        with pytest.raises(InputError, match=words):
            neuroshed.status(output)
    # The copied file names the folder it was copied from.
    assert computed(neuroshed.run(output / "workflow.yaml", [f"output={output}"])) == 0
    assert neuroshed.status(output)["status"] == "done"
