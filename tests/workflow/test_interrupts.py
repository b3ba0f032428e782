"""Ctrl-C in commands: before the work begins, while it is at work, and while others do it."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from neuroshed import api
from neuroshed.cli import main
from neuroshed.cli.base import Interrupts, at_work
from neuroshed.engine.control import Wish
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Progress
from neuroshed.engine.readiness import Counts
from neuroshed.errors import RunStoppedError
from neuroshed.storage.lease import Lease
from neuroshed.storage.locations import Location
from neuroshed.terminal.bars import Bars
from neuroshed.workflow import launch, requests


def progress(running: int = 0) -> Progress:
    return Progress(
        {"f": Counts(total=9, done=2, running=running, failed=0, ready=0, waiting=5, skipped=0)}, {"f": "x"}
    )


def test_before_the_work_begins_it_ends_the_command() -> None:
    with pytest.raises(KeyboardInterrupt), at_work():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def interrupting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that gets Ctrl-C while it is imported, long before its last line."""
    name = "interrupted_by_a_test"
    lines = ["import signal, time", "signal.raise_signal(signal.SIGINT)", "time.sleep(0.2)", "whole = True"]
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_no_import_is_interrupted_before_the_work_begins(interrupting: str) -> None:
    def begin() -> None:
        with at_work():
            importlib.import_module(interrupting)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert sys.modules[interrupting].whole


def test_no_import_of_a_command_is_interrupted(interrupting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(run_folder: str) -> None:
        importlib.import_module(interrupting)
        time.sleep(10)

    monkeypatch.setattr(api, "status", status)
    result = CliRunner().invoke(main, ["status", "run1"])
    assert result.exit_code == 130
    assert result.stderr == "neuroshed: stopped; what is done is kept, the same command goes on\n"
    assert sys.modules[interrupting].whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_hears_interrupts_in_its_own_way_goes_on_so(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        monkeypatch.setattr(api, "runs", lambda folder: signal.raise_signal(signal.SIGINT) or [])
        assert CliRunner().invoke(main, ["runs"]).exit_code == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_at_work_the_first_drains_and_the_second_stops(capsys: pytest.CaptureFixture[str]) -> None:
    with at_work() as (control, watch):
        watch(progress(2))
        signal.raise_signal(signal.SIGINT)
        assert control.wish == Wish.DRAIN
        watch(progress(2))
        signal.raise_signal(signal.SIGINT)
        assert control.wish == Wish.STOP
        watch(progress())
    told = capsys.readouterr().err
    assert told.count("Ctrl-C: finishing up to 2 blocks that are at work; Ctrl-C again stops at once") == 1
    assert told.count("Ctrl-C: stopping") == 1


def test_a_request_from_elsewhere_is_no_interrupt() -> None:
    from threading import Thread

    control = Interrupts()
    thread = Thread(target=control.ask, args=(Wish.STOP, "cancelled"))
    thread.start()
    thread.join()
    assert control.wish == Wish.STOP


def test_bars_that_showed_nothing_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars():
        pass
    assert capsys.readouterr().err == ""


def test_waiting_for_what_was_started_may_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    run = Location.of(tmp_path)
    started = SimpleNamespace(description="job 17", output=tmp_path / "output", alive=lambda: True)
    launcher: Any = SimpleNamespace(launch=lambda command, folder: started)
    monkeypatch.setattr(launch.time, "sleep", interrupted)
    with pytest.raises(RunStoppedError, match=r"job 17 was started for run .* and goes on by itself"):
        launch.submit(["run"], run, launcher)
    with Lease(run, "me"), pytest.raises(RunStoppedError, match=r"me .* was asked to stop run"):
        requests.cancel(run)


def test_a_request_that_may_not_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Location.of(tmp_path)

    def refused(self: object, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    with Lease(run, "alice"), monkeypatch.context() as patch:
        patch.setattr(type(run), "put", refused)
        with pytest.raises(requests.WorkflowError, match=r"Permission denied\); ask alice to cancel it"):
            requests.cancel(run)


@pytest.mark.parametrize("verb", ["run", "resume", "retry"])
def test_options_reach_the_engine(verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Options] = []

    def noted(*given: Any) -> dict[str, Any]:
        seen.append(next(value for value in given if isinstance(value, Options)))
        return {}

    for name in ("start", "resume", "retry"):
        monkeypatch.setattr(api.runs_, name, noted)
    monkeypatch.setattr(api, "_plan", lambda *given: None)
    control = Interrupts()
    getattr(api, verb)(tmp_path, verify_writes=True, control=control)
    assert seen[0].verify_writes
    assert seen[0].control is control
    getattr(api, verb)(tmp_path)
    assert not seen[1].verify_writes
    assert seen[1].control is not control
