"""Promise 3: a failed block never sinks a run."""

from __future__ import annotations

import collections
import errno
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import BlockError, RunFailedError, StorageFullError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Done
from neuroshed.stages.fragments import Fragments
from neuroshed.storage.journal import Journal, read_events
from neuroshed.storage.ledger import positions_of
from neuroshed.storage.locations import Location

from .chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 8, 16), (4, 4, 4)
LEAVES = 2 * 2 * 4
BAD = (1, 1, 1)
Break = Callable[[Vec], None]


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    return write_affinities(path, random_affinities(np.random.default_rng(1), SHAPE, 256))


@pytest.fixture
def settings(affinities: Path, tmp_path: Path) -> list[str]:
    return [
        f"affinities={affinities}",
        f"output={tmp_path / 'run'}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:2",
        "fragments.small=10",
        "failures.backoff_seconds=0.05",
    ]


def sabotage(patch: pytest.MonkeyPatch, fault: Break, stage: type[Any] = Fragments) -> collections.Counter[Vec]:
    """Let `fault` happen before each block of a stage; returns how often each block was tried."""
    tried: collections.Counter[Vec] = collections.Counter()
    run = stage.run

    def faulty(self: Any, step: str, index: Vec) -> Done:
        tried[index] += 1
        fault(index)
        return run(self, step, index)

    patch.setattr(stage, "run", faulty)
    return tried


def damaged(index: Vec) -> None:
    if index == BAD:
        raise BlockError("this block is damaged\nand this is a second line")


def segmentations(summary: dict[str, Any]) -> list[dict[str, bytes]]:
    return [
        {str(file.relative_to(path)): file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}
        for path in summary["segmentations"].values()
    ]


def test_a_bad_block_is_set_aside_and_the_rest_goes_on(settings: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tried = sabotage(patch, damaged)
        with pytest.raises(RunFailedError) as caught:
            neuroshed.run("segment", settings)
    assert tried[BAD] == 3
    assert {count for index, count in tried.items() if index != BAD} == {1}
    message = str(caught.value)
    assert "1 block of run" in message
    assert "stage fragments at [1, 1, 1]: BlockError: this block is damaged; mend the cause" in message
    assert f"`neuroshed resume {tmp_path / 'run'}` goes on" in message
    assert "\n" not in message
    summary = caught.value.summary
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    done = {kind: (row["done"], row["failed"]) for kind, row in summary["stages"].items()}
    # A leaf of the tree reads the lower neighbours too: the bad block holds back itself and the upper ones.
    upper = 1 * 1 * 3
    assert done == {
        "fragments": (LEAVES - 1, 1),
        "agglomerate": (LEAVES - upper + 1, 0),
        "segment 0.3": (0, 0),
        "segment 0.5": (0, 0),
    }
    (failure,) = summary["failures"]
    assert failure["block"] == [1, 1, 1]
    assert failure["error"] == "BlockError: this block is damaged"
    assert "Traceback" in failure["trace"]
    assert "in faulty" in failure["trace"]
    told = neuroshed.status(tmp_path / "run")
    assert (told["status"], told["stages"]["fragments"]["failed"]) == ("failed", 1)
    assert told["failures"] == summary["failures"]

    with pytest.MonkeyPatch.context() as patch:
        tried = sabotage(patch, lambda index: None)
        mended = neuroshed.resume(tmp_path / "run")
    assert tried == {BAD: 1}
    assert mended["status"] == "done"
    assert mended["failures"] == neuroshed.status(tmp_path / "run")["failures"] == []
    assert mended["restored_blocks"] == LEAVES - 1 + LEAVES - upper + 1
    fresh = neuroshed.run("segment", [*settings, f"output={tmp_path / 'fresh'}"])
    assert segmentations(mended) == segmentations(fresh)


def test_the_command_line_says_so(settings: list[str], tmp_path: Path) -> None:
    arguments = [word for text in settings for word in ("--set", text)]
    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch, damaged)
        result = CliRunner().invoke(main, ["run", "segment", *arguments, "--json"])
        again = CliRunner().invoke(main, ["resume", str(tmp_path / "run")])
    assert result.exit_code == again.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"
    for outcome in (result, again):
        assert "this block is damaged" in outcome.stderr.splitlines()[-1]
        assert "Traceback" not in outcome.stderr
    told = CliRunner().invoke(main, ["status", str(tmp_path / "run")])
    assert told.exit_code == 0
    assert "BlockError: this block is damaged" in told.stdout


def test_a_passing_trouble_is_tried_again(settings: list[str]) -> None:
    left = [2]

    def at_times(index: Vec) -> None:
        if index == BAD and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "the disk hiccups")

    with pytest.MonkeyPatch.context() as patch:
        tried = sabotage(patch, at_times)
        summary = neuroshed.run("segment", settings)
    assert tried[BAD] == 3
    assert (summary["status"], summary["failures"]) == ("done", [])


def test_every_block_of_a_stage_may_fail(settings: list[str]) -> None:
    def broken(index: Vec) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        sabotage(patch, broken, Agglomerate)
        with pytest.raises(RunFailedError, match=f"{LEAVES} blocks of run .+ stage agglomerate") as caught:
            neuroshed.run("segment", settings)
    assert caught.value.summary["stages"]["agglomerate"]["failed"] == LEAVES
    assert caught.value.summary["stages"]["segment 0.3"]["done"] == 0


FULL = OSError(errno.ENOSPC, "No space left on device")


def fill_disk_at(patch: pytest.MonkeyPatch, where: str) -> None:
    """The disk is full when some file is written, and from then on."""
    disk = type(Location.of("/"))
    put, replacing = disk.put, disk.replacing
    names = {"plan": "plan.json", "stage": "stage.json"}
    nodes = itertools.count(1)

    def full_put(place: Location, data: bytes) -> None:
        if place.name == names.get(where):
            raise FULL
        put(place, data)

    def full_node(place: Location) -> Any:
        if where in names or next(nodes) < (30 if where == "some node" else 1):
            return replacing(place)
        return Path("/dev/full").open("wb")

    patch.setattr(disk, "put", full_put)
    patch.setattr(disk, "replacing", full_node)


def full_journal(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append
    calls = [0]

    def full(self: Journal, events: Any) -> None:
        events = list(events)
        calls[0] += bool(events)
        if calls[0] > 2:
            raise FULL
        append(self, events)

    patch.setattr(Journal, "append", full)


@pytest.mark.parametrize("where", ["first node", "some node", "plan", "stage", "journal"])
def test_a_full_disk_stops_the_run_which_goes_on_later(where: str, settings: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if where == "journal":
            full_journal(patch)
        else:
            fill_disk_at(patch, where)
        with pytest.raises(StorageFullError) as caught:
            neuroshed.run("segment", settings)
    message = str(caught.value)
    assert message.startswith("no space left for run")
    assert "free some, then `neuroshed resume" in message
    assert "\n" not in message
    assert not any(event["e"] == "failed" for event in read_events(tmp_path / "run"))
    if where == "plan":
        # There is nothing to resume yet.
        summary = neuroshed.run("segment", settings)
    else:
        assert neuroshed.status(tmp_path / "run")["status"] == "unfinished"
        summary = neuroshed.resume(tmp_path / "run")
    assert summary["status"] == "done"
    # What was done before the disk was full was kept, and none of it was done twice.
    events = [event for event in read_events(tmp_path / "run") if event["e"] == "done"]
    done = [(event["id"], position) for event in events for position in positions_of(event["at"])]
    assert len(done) == len({*done}) == sum(row["blocks"] for row in summary["stages"].values())


KILLER = """
import os, sys

def spoil():
    from neuroshed.stages.fragments import Fragments
    run = Fragments.run

    def deadly(self, step, index):
        if tuple(index) == (1, 1, 1):
            os.kill(os.getpid(), 9)
        return run(self, step, index)

    Fragments.run = deadly

if any("spawn_main" in word for word in sys.orig_argv):
    spoil()
"""


@pytest.mark.system
def test_a_block_that_kills_its_worker_sinks_no_other(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    with pytest.MonkeyPatch.context() as patch:
        # The worker processes inherit it; this process has started already.
        patch.setenv("PYTHONPATH", str(tmp_path))
        patch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path / "dask"))
        with pytest.raises(RunFailedError) as caught:
            neuroshed.run("segment", [*settings, "cluster=local:1"])
    (failure,) = caught.value.summary["failures"]
    assert failure["block"] == [1, 1, 1]
    assert "worker process died" in failure["error"]
    assert "smaller blocks or fewer workers" in failure["error"]
    assert caught.value.summary["stages"]["fragments"]["done"] == LEAVES - 1
    with pytest.MonkeyPatch.context() as patch:
        tried = sabotage(patch, lambda index: None)
        resumed = neuroshed.run("segment", settings)
    assert tried == {BAD: 1}
    assert resumed["status"] == "done"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tls://127.0.0.1:1", "TLS expects a `ssl_context`"),
        ("foo://here:8786", "unknown address scheme 'foo'"),
        ("tcp://", "missing port number"),
    ],
)
def test_a_scheduler_that_cannot_be_reached(address: str, words: str, settings: list[str]) -> None:
    with pytest.raises(WorkflowError) as caught:
        neuroshed.run("segment", [*settings, f"cluster={address}"])
    message = str(caught.value)
    assert f"no Dask scheduler can be reached at {address}" in message
    assert words in message
    assert "\n" not in message


def test_a_scheduler_that_goes_away_is_told_and_the_run_goes_on_later(settings: list[str], tmp_path: Path) -> None:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        closing = threading.Thread(target=cluster.close)

        def close(index: Vec) -> None:
            if index == BAD and not closing.ident:
                closing.start()
                # Until the connections are gone.
                closing.join(1)

        sabotage(patch, close, Agglomerate)
        where = f"{{kind: address, address: '{cluster.scheduler_address}', patience_seconds: 0}}"
        with pytest.raises(
            RunFailedError, match=r"lost its Dask scheduler .+; start it, then `neuroshed resume"
        ) as caught:
            neuroshed.run("segment", [*settings, f"cluster={where}"])
        closing.join()
    assert "\n" not in str(caught.value)
    assert neuroshed.run("segment", settings)["status"] == "done"
