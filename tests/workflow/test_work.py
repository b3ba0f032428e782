"""Comparisons, checks and evaluations that are broken off go on, and answer what they would have at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import neuroshed
from neuroshed import api
from neuroshed.cli import main
from neuroshed.engine import attempts
from neuroshed.errors import BlockError, RunFailedError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages import passes
from neuroshed.stages.check import Check
from neuroshed.stages.compare import Compare
from neuroshed.stages.evaluate import Contingency
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume

from ..promises.chunks import random_affinities, write_affinities

SIDE = 64
SHAPE = (SIDE, 2 * SIDE, 2 * SIDE)
"""Of four blocks."""
Question = Callable[..., dict[str, Any]]


def labels() -> np.ndarray:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (z // 20 * 64 + y // 50 * 8 + x // 60 + 1).astype(np.uint32)


def write(path: Path, data: np.ndarray) -> Path:
    """A volume of which one file is one block."""
    volume = create_volume(
        path, shape=SHAPE, dtype=data.dtype, shard_shape=(SIDE,) * 3, voxel_size=(1, 1, 1), whole=True
    )
    volume.write(volume.box, data)
    return path


@pytest.fixture(autouse=True)
def small_blocks_and_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SIDE", SIDE)
    monkeypatch.setattr(attempts, "LONGEST_BACKOFF_SECONDS", 0.0)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two volumes that differ in the first and the last block, the second with a file that is damaged there."""
    other = labels()
    other[3, 4, 5] += 1
    other[-2:, -2:, -2:] = 9
    return write(tmp_path / "a.zarr", labels()), write(tmp_path / "b.zarr", other)


def harm(volume: Path) -> None:
    file = volume / "0" / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-3])


QUESTIONS: dict[str, tuple[type[Any], Question]] = {
    "compare": (Compare, lambda a, b, **how: neuroshed.volume_compare(a, b, **how)),
    "compare labels": (Compare, lambda a, b, **how: neuroshed.volume_compare(a, b, labels=True, **how)),
    "check": (Check, lambda a, b, **how: neuroshed.volume_check(b, **how)),
    "evaluate": (Contingency, lambda a, b, **how: neuroshed.evaluate(a, b, block_shape=(SIDE,) * 3, **how)),
}


class Counted:
    """Counts the blocks of a kind of stage that are run, and breaks off at some."""

    def __init__(self, kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[Vec] = []
        self.failing: tuple[Vec, ...] = ()
        run = kind.run

        def counted(stage: Any, step: str, index: Vec) -> Any:
            if index in self.failing:
                raise BlockError("no more today")
            self.done.append(index)
            return run(stage, step, index)

        monkeypatch.setattr(kind, "run", counted)

    def broken_off(self, ask: Callable[[], Any], *failing: Vec) -> None:
        self.failing, self.done = failing, []
        with pytest.raises(RunFailedError, match="no more today; mend the cause, then the same command goes on"):
            ask()
        self.failing, self.done = (), []


@pytest.mark.parametrize("name", QUESTIONS)
def test_broken_off_it_goes_on_to_the_same_answer(
    name: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, ask = QUESTIONS[name]
    if kind is Check:
        harm(pair[1])
    at_once = ask(*pair)
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine").write_text("mine")
    counted = Counted(kind, monkeypatch)
    counted.broken_off(lambda: ask(*pair, work=work), (0, 0, 1), (0, 1, 0))
    assert ask(*pair, work=work) == at_once
    assert sorted(counted.done) == [(0, 0, 1), (0, 1, 0)]
    assert [path.name for path in work.iterdir()] == ["mine"]
    # Once answered, a question is asked anew.
    counted.done = []
    assert ask(*pair, work=work) == at_once
    assert len(counted.done) == 4


@pytest.mark.parametrize("name", QUESTIONS)
def test_of_a_volume_that_is_another_nothing_is_believed(
    name: str, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, ask = QUESTIONS[name]
    counted = Counted(kind, monkeypatch)
    counted.broken_off(lambda: ask(*pair, work=tmp_path), (0, 1, 1))
    changed = labels()
    changed[:40, :40, :40] = 7
    pair[1].rename(tmp_path / "old.zarr")
    write(pair[1], changed)
    found = ask(*pair, work=tmp_path)
    assert len(counted.done) == 4
    assert found == ask(*pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "old.zarr"]


def test_killed_it_goes_on(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = neuroshed.volume_compare(*pair)
    code = f"""
import os, signal, sys, neuroshed
from neuroshed.stages import passes
from neuroshed.stages.compare import Compare
from neuroshed.engine.config import ClusterConfig
passes.SIDE, run, done = {SIDE}, Compare.run, []
def killed(stage, step, index):
    found = run(stage, step, index)
    done.append(index)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Compare.run = killed
neuroshed.volume_compare(*sys.argv[1:3], work=sys.argv[3], cluster=ClusterConfig(kind="in-process", workers=1))
"""
    words = [*map(str, pair), str(tmp_path / "work")]
    assert subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == -9
    counted = Counted(Compare, monkeypatch)
    assert neuroshed.volume_compare(*pair, work=tmp_path / "work") == at_once
    assert 1 <= len(counted.done) < 4


def test_in_a_bucket(bucket: Location, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(Check, monkeypatch)
    counted.broken_off(lambda: neuroshed.volume_check(pair[0], work=str(bucket)), (0, 1, 1))
    assert len(bucket.names()) == 1
    assert neuroshed.volume_check(pair[0], work=str(bucket))["damaged"] == []
    assert counted.done == [(0, 1, 1)]
    assert list(bucket.names()) == []


def test_what_came_back_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long, so that these files are in no sample.
    volume = create_volume(
        tmp_path / "a.zarr", shape=(16, 256, 16), dtype="u1", shard_shape=(16, 16, 16), voxel_size=(1, 1, 1), whole=True
    )
    volume.write(volume.box, np.random.default_rng(0).integers(0, 9, volume.shape, np.uint8))
    monkeypatch.setattr(passes, "SIDE", 16)
    files = [tmp_path / "a.zarr" / "0" / "c" / "0" / str(y) / "0" for y in range(3)]
    before = [file.read_bytes() for file in files]
    files[0].write_bytes(before[0][:-3])
    files[1].unlink()
    files[2].unlink()
    counted = Counted(Check, monkeypatch)
    counted.broken_off(lambda: neuroshed.volume_check(tmp_path / "a.zarr", work=tmp_path), (0, 15, 0))
    files[0].write_bytes(before[0])
    files[1].write_bytes(before[1])
    files[2].write_bytes(b"")
    found = neuroshed.volume_check(tmp_path / "a.zarr", work=tmp_path)
    assert counted.done == [(0, 15, 0)]
    assert [(row["file"], row["kind"]) for row in found["damaged"]] == [(str(files[2]), "empty")]
    assert (found["files"], found["missing"]) == (16, 0)


def test_what_a_run_writes_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the volume of a run that is at work, or went on between two calls."""
    affinities = random_affinities(np.random.default_rng(3), (4, 256, 4), 256)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    given = [f"affinities={path}", f"output={tmp_path / 'run'}", "block_shape=[4,32,4]", "cluster=in-process:1"]
    volume = Path(neuroshed.run("stitch", [*given, "thresholds=[0.5]"])["segmentations"]["0.5"])
    file = volume / "0" / "c" / "0" / "0" / "0"
    file.unlink()
    neuroshed.volume_check(volume, redo=True)
    counted = Counted(Check, monkeypatch)
    run, one_at_a_time = Check.run, threading.Lock()

    def while_it_goes_on(stage: Check, step: str, index: Vec) -> Any:
        done = run(stage, step, index)
        with one_at_a_time:
            neuroshed.resume(tmp_path / "run")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Check, "run", while_it_goes_on)
        found = neuroshed.volume_check(volume)
    assert (found["missing"], found["damaged"]) == (1, [])
    # Each file a block of the check.
    monkeypatch.setattr(passes, "SIDE", 4)
    file.unlink()
    counted.broken_off(lambda: neuroshed.volume_check(volume, work=tmp_path / "work"), (0, 7, 0))
    neuroshed.volume_check(volume, redo=True)
    neuroshed.resume(tmp_path / "run")
    counted.done = []
    found = neuroshed.volume_check(volume, work=tmp_path / "work")
    assert (counted.done, found["missing"], found["damaged"]) == ([(0, 7, 0)], 0, [])


def test_a_volume_that_goes_away_meanwhile_is_no_volume_without_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = write(tmp_path / "a.zarr", labels()), Check.run

    def losing(stage: Check, step: str, index: Vec) -> Any:
        done = run(stage, step, index)
        if source.exists():
            source.rename(tmp_path / "moved.zarr")
        return done

    monkeypatch.setattr(Check, "run", losing)
    with pytest.raises(RunFailedError, match="was removed or replaced since this was planned") as caught:
        neuroshed.volume_check(source)
    assert caught.value.exit_code == 2


def test_the_commands(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = map(str, pair)
    work = ["--work", str(tmp_path / "work")]
    for words in (["volume", "check", a], ["volume", "compare", a, b, "--labels"], ["evaluate", a, b]):
        plain, kept = (CliRunner().invoke(main, [*words, *more, "--json"]) for more in ([], work))
        assert json.loads(kept.stdout) == json.loads(plain.stdout)
        assert list((tmp_path / "work").iterdir()) == []
    with pytest.raises(WorkflowError, match=r"work folder .* is in .*b.zarr, which is never changed; choose another"):
        neuroshed.volume_compare(a, b, work=pair[1] / "work")

    def interrupted(*given: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "volume_check", interrupted)
    told = [CliRunner().invoke(main, ["volume", "check", a, *more]).stderr for more in ([], work)]
    assert "stopped; nothing is kept; it is with --work FOLDER" in told[0]
    assert "stopped; what is done is kept, the same command goes on" in told[1]
