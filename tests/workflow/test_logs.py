"""The log of a run: what goes in, where it lies, and that nothing of it stays behind in the process."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuroshed.engine.capture import kept_lines
from neuroshed.storage.locations import Location
from neuroshed.workflow.logs import RunLog, last_lines
from tests.storage.objects import Store

OURS = logging.getLogger("neuroshed")
DEEP = logging.getLogger("neuroshed.engine.coordinator")


class Listener(logging.Handler):
    """A handler that a user's program set up."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.fixture
def listener() -> Iterator[Listener]:
    handler = Listener()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nobody set up logging."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def state() -> tuple[object, ...]:
    return OURS.level, OURS.propagate, list(OURS.handlers), list(logging.getLogger().handlers)


def test_it_holds_information_and_the_user_hears_what_he_always_did(tmp_path: Path, listener: Listener) -> None:
    before = state()
    with RunLog(Location.of(tmp_path), "1") as log:
        DEEP.debug("no")
        DEEP.info("stage predict")
        DEEP.warning("worker lost")
        logging.getLogger("other").warning("not ours")
    DEEP.warning("after")
    assert state() == before
    lines = (tmp_path / "log" / "coordinator.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO stage predict", "WARNING worker lost"]
    assert log.place == Location.of(tmp_path) / "log" / "coordinator.log"
    assert listener.heard == ["worker lost", "not ours", "after"]


def test_the_level_that_a_user_asked_for_still_counts(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OURS, "level", logging.DEBUG)
    OURS.manager._clear_cache()
    with RunLog(Location.of(tmp_path), "1"):
        DEEP.debug("detail")
    OURS.manager._clear_cache()
    assert listener.heard == ["detail"]
    assert "DEBUG detail" in (tmp_path / "log" / "coordinator.log").read_text()


def test_nothing_is_told_on_the_terminal_as_well(
    tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(Location.of(tmp_path), "1"), kept_lines() as lines:
        DEEP.warning("worker lost")
        assert len(lines) == 1
    assert capsys.readouterr().err == ""


def test_two_runs_of_one_process_may_end_in_any_order(tmp_path: Path) -> None:
    before = state()
    first, second = RunLog(Location.of(tmp_path / "a"), "1"), RunLog(Location.of(tmp_path / "b"), "2")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    DEEP.info("still told")
    second.__exit__(None, None, None)
    assert state() == before
    assert "still told" not in (tmp_path / "a" / "log" / "coordinator.log").read_text()
    assert "still told" in (tmp_path / "b" / "log" / "coordinator.log").read_text()


def test_a_long_log_is_cut_into_files(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLog(Location.of(tmp_path), "1"):
            for _ in range(60):
                DEEP.info("x" * 1_000_000)
    files = sorted((tmp_path / "log").iterdir())
    assert [file.name for file in files] == ["coordinator.log", *(f"coordinator.log.{n}" for n in range(1, 6))]
    assert all(file.stat().st_size < 10_100_000 for file in files)


def test_in_an_object_store_each_session_has_its_own(tmp_path: Path) -> None:
    run = Store().client() / "run"
    with RunLog(run, "abc") as log:
        DEEP.info("first")
        log.ship()
        assert (run / "log" / "coordinator-abc.log").read_bytes().endswith(b"INFO first\n")
        DEEP.info("second")
    with RunLog(run, "def"):
        DEEP.info("third")
    assert (run / "log").names() == ["coordinator-abc.log", "coordinator-def.log"]
    assert b"second" in (run / "log" / "coordinator-abc.log").read_bytes()


def test_a_process_that_is_killed_leaves_no_log_of_a_store_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with RunLog(Store().client() / "run", "abc"):
        DEEP.info("first")
        assert list(tmp_path.iterdir()) == []


def test_a_store_that_fails_does_not_end_the_run() -> None:
    def refuse(verb: str) -> None:
        raise OSError("no store")

    before = state()
    with RunLog(Store().client(wait=refuse) / "run", "abc"):
        DEEP.info("first")
    assert state() == before


def test_the_end_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "output.log"
    assert last_lines(file) == []
    file.write_text("".join(f"{number}\n" for number in range(100_000)))
    assert last_lines(file, 2) == ["99998", "99999"]
