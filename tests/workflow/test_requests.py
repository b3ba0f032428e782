"""Requests to stop: who hears them, who does not, and what comes of no answer."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import neuroshed
from neuroshed.engine.control import Control, Wish
from neuroshed.engine.hosting import run_name
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.storage.lease import Lease, holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow import requests
from neuroshed.workflow.requests import REQUEST_FILE, cancel, hear, put_request
from tests.storage.objects import Store


@pytest.fixture(params=["disk", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return Location.of(tmp_path) if request.param == "disk" else Store().client() / "run"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "POLL_SECONDS", 0.01)


def test_a_request_is_heard_once(run: Location) -> None:
    control = Control()
    with Lease(run, "me") as lease:
        assert hear(run, lease.holder, control) is None
        put_request(run, lease.holder, Wish.DRAIN)
        heard = hear(run, lease.holder, control)
        assert heard is not None
        assert heard.startswith("drain, cancelled by ")
        assert control.wish == Wish.DRAIN
        assert control.reason.startswith("cancelled by ")
        assert not (run / REQUEST_FILE).exists()
        put_request(run, lease.holder, Wish.STOP)
        hear(run, lease.holder, control)
        assert control.wish == Wish.STOP


def test_a_request_for_an_earlier_coordinator_comes_to_nothing(run: Location) -> None:
    with Lease(run, "first") as first:
        put_request(run, first.holder, Wish.STOP)
    control = Control()
    with Lease(run, "second") as second:
        assert hear(run, second.holder, control) is None
    assert control.wish == Wish.RUN
    assert not (run / REQUEST_FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"wish": 3, "by": "x", "token": "y"}', '{"wish": "dance"}'])
def test_a_damaged_request_comes_to_nothing(run: Location, text: str) -> None:
    control = Control()
    with Lease(run, "me") as lease:
        (run / REQUEST_FILE).put(text.encode())
        assert hear(run, lease.holder, control) is None
    assert control.wish == Wish.RUN
    assert not (run / REQUEST_FILE).exists()


@pytest.mark.parametrize("drain", [True, False])
def test_cancel_waits_until_the_run_is_given_back(run: Location, drain: bool) -> None:
    control, held, told = Control(), threading.Event(), []

    def coordinate() -> None:
        with Lease(run, "me") as lease:
            held.set()
            while not control.wish:
                hear(run, lease.holder, control)

    thread = threading.Thread(target=coordinate)
    thread.start()
    held.wait()
    cancel(run, drain=drain, tell=told.append)
    assert holder_of(run) is None
    thread.join()
    assert control.wish == (Wish.DRAIN if drain else Wish.STOP)
    assert len(told) == 2


def test_no_answer(run: Location) -> None:
    with Lease(run, "me") as lease:
        with pytest.raises(RunFailedError, match=rf"did not answer within 0\.05 s; .*process {lease.holder.pid}"):
            cancel(run, timeout=0.05)
        # It waits for the coordinator to look.
        assert json.loads((run / REQUEST_FILE).read_bytes())["token"] == lease.holder.token
        (run / REQUEST_FILE).delete()
        deleter = threading.Timer(0.1, (run / REQUEST_FILE).delete)
        deleter.start()
        with pytest.raises(RunFailedError, match="was asked to stop but still holds it within"):
            cancel(run, timeout=0.3)
        deleter.join()


def test_nobody_to_ask(run: Location) -> None:
    with pytest.raises(InputError, match="holds no run; check the path"):
        cancel(run)
    with Lease(run, "me"):
        pass
    with pytest.raises(WorkflowError, match="nobody works on run"):
        cancel(run)


def test_a_coordinator_that_waits_in_a_queue_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the run is there yet but what was submitted."""
    folder = tmp_path / "run" / "workers"
    folder.mkdir(parents=True)
    (folder / "coordinator.sh").write_text("#!/bin/bash")
    name = f"{run_name(Location.of(tmp_path / 'run'))}-coordinator"
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, body in (
        ("squeue", f'case "$*" in *--name={name}*) echo "12|PENDING"; echo "13|RUNNING";; esac'),
        ("scancel", f'echo "$@" > {tmp_path}/cancelled'),
    ):
        (programs / program).write_text(f"#!/bin/sh\n{body}\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    summary = neuroshed.cancel(tmp_path / "run")
    assert (tmp_path / "cancelled").read_text() == "12\n"
    assert (summary["state"], summary["holder"]) == ("unfinished", None)
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.cancel(tmp_path / "elsewhere")
