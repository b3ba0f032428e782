"""Runs in a bucket are watched, listed, stopped and cleaned like those in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import neuroshed
from neuroshed.errors import RunStoppedError
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow import requests, sessions
from neuroshed.workflow.clean import SUPERSEDED

from .commands import coordinator_ended, wait_until
from .held import BLOCKS, halted, settings

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "IN_BUCKET", sessions.Every(live=0.2, requests=0.2, log=0.2))
    monkeypatch.setattr(requests, "POLL_SECONDS", 0.05)


def test_watched_cancelled_and_taken_up_again(bucket: Location, tmp_path: Path) -> None:
    run = bucket / "runs" / "one"
    given = settings(tmp_path, f"output={run}")
    with halted(given) as (future, go_on):
        found = wait_until(lambda: (s := neuroshed.status(run))["live"] and s["live"]["workers"]["workers"] and s)
        assert (found["state"], found["stages"]["fragments"]["done"]) == ("running", 0)
        assert found["stages"]["fragments"]["running"] >= 1
        # The log is in the bucket while the run goes on.
        log = wait_until(lambda: (run / "log").names())
        assert len(log) == 1
        wait_until(lambda: b"joined" in (run / "log" / log[0]).read_bytes())
        assert found["log"] == str(run / "log")
        heard: list[str] = []

        def tell(text: str) -> None:
            heard.append(text)
            # Threads cannot be ended: the blocks at work go on until they are let.
            if len(heard) == 2:
                go_on.set()

        stopped = neuroshed.cancel(run, tell=tell)
        with pytest.raises(RunStoppedError, match="cancelled by"):
            future.result()
    assert stopped["state"] == "stopped"
    assert [row["state"] for row in neuroshed.runs(bucket / "runs")] == ["stopped"]
    assert neuroshed.runs(bucket / "none") == []
    assert neuroshed.resume(run)["status"] == "done"
    (row,) = neuroshed.runs(bucket / "runs")
    assert (row["name"], row["state"], row["done"]) == ("one", "done", BLOCKS)
    assert len((run / "log").names()) == 2
    assert len(json.loads((run / "provenance.json").read_bytes())) == 2
    assert not {"live.json", "request.json"} & {*run.names()}
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in file.read_bytes() for file, _ in run.files())


def test_cleaned(bucket: Location, tmp_path: Path) -> None:
    run = bucket / "run"
    neuroshed.run("stitch", settings(tmp_path, f"output={run}", "fragments.small=5"))
    before = {*run.names()}
    neuroshed.run("stitch", settings(tmp_path, f"output={run}"))
    old = {name for name in before if name.startswith(("fragments-", "agglomerate-", "segment-"))}
    size = sum(size for name in old for _, size in (run / name).files())
    found = neuroshed.clean(run)
    assert found["by_reason"] == {SUPERSEDED: size}
    assert not old & {*run.names()}
    assert neuroshed.clean(run)["finds"] == []
    assert neuroshed.verify(run)["status"] == "equal"


def test_submitted(bucket: Location, tmp_path: Path) -> None:
    run = bucket / "run"
    with coordinator_ended(run):
        started = neuroshed.submit("stitch", settings(tmp_path, f"output={run}"))
        assert started["state"] in ("running", "done")
        *_, last = neuroshed.follow(run)
        wait_until(lambda: holder_of(run) is None)
    assert last["state"] == "done"
    assert "done: " in Path(started["output"]).read_text()
