"""The journal keeps what it took, through any crash, and a base takes the place of events."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroshed.errors import WorkflowError
from neuroshed.storage import journal as module
from neuroshed.storage.journal import Journal, read_events, read_ledger
from neuroshed.storage.lease import holder_of
from neuroshed.storage.ledger import Event, Ledger
from neuroshed.storage.locations import Location
from tests.storage.conftest import Client
from tests.storage.dying import die
from tests.storage.objects import Store
from tests.storage.records import GRID, STAGE, done, positions_in, record, recorded, segments, small, write


def test_a_run_that_never_started_has_no_events(client: Client) -> None:
    assert list(read_events(client())) == []
    assert read_ledger(client()) == Ledger()


def test_sessions_add_up(client: Client) -> None:
    for number in range(12):
        write(client(), [2 * number, 2 * number + 1])
    assert recorded(client()) == list(range(24))
    kinds = [event["e"] for event in read_events(client())]
    assert kinds == ["session", "part", "done", "done", "end"] + ["session", "done", "done", "end"] * 11


def test_sessions_say_who_wrote_and_how_it_ended(client: Client) -> None:
    with pytest.raises(KeyError, match="lost"), Journal(client(), "neuroshed run"):
        raise KeyError("lost")
    session, end = read_ledger(client()).sessions
    assert (session["name"], session["pid"], session["epoch"]) == ("neuroshed run", os.getpid(), 1)
    assert (end["epoch"], end["error"]) == (1, "KeyError: 'lost'")


def test_events_wait_for_a_flush(client: Client) -> None:
    with Journal(client()) as journal:
        number = journal.part(STAGE, "block", GRID)
        assert number == journal.part(STAGE, "block", GRID) == 1
        journal.append([done(3), done(4)])
        assert positions_in(journal.ledger) == [3, 4]
        assert recorded(client()) == []
        journal.flush()
        assert recorded(client()) == [3, 4]
        journal.append([done(5)])
    assert recorded(client()) == [3, 4, 5], "the end flushes"


@pytest.mark.parametrize("event", [{"e": "done", "id": 9, "at": [1]}, {"e": "rumour"}])
def test_events_that_make_no_sense_are_not_taken(event: Event, client: Client) -> None:
    with Journal(client()) as journal:
        with pytest.raises(ValueError, match="makes no sense"):
            journal.append([event])
        record(journal, 1)
    assert recorded(client()) == [1]


def test_a_second_writer_is_refused_by_name_and_readers_are_not(client: Client) -> None:
    with Journal(client(), "neuroshed run") as journal:
        record(journal, 1)
        before = len(segments(client()))
        with pytest.raises(
            WorkflowError, match=rf"worked on by neuroshed run \(process {os.getpid()} on .+\); wait for"
        ):
            Journal(client()).__enter__()
        assert len(segments(client())) == before
        assert recorded(client()) == [1]
        record(journal, 2)
    write(client(), [3])
    assert recorded(client()) == [1, 2, 3]


def test_a_write_that_fails_is_not_made_later(tmp_path: Path) -> None:
    run = Location.of(tmp_path)
    failing = pytest.raises(OSError, match="Bad file descriptor")
    with failing, Journal(run) as journal:
        record(journal, 1)
        # A descriptor that cannot be written stands in for a full disk.
        reading = os.open(segments(run)[0].local, os.O_RDONLY)
        assert journal._file is not None
        os.dup2(reading, journal._file)
        os.close(reading)
        with pytest.raises(OSError, match="Bad file descriptor"):
            record(journal, 2)
        journal.flush()
    assert recorded(run) == [1]
    assert holder_of(run) is None
    write(run, [3])
    assert recorded(run) == [1, 3]


def test_after_a_write_that_failed_nothing_is_added_to_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "_append" if client().is_local else "_create"
    whole = getattr(module, name)

    def half(to: Any, lines: bytes) -> None:
        whole(to, lines[: len(lines) // 2])
        raise OSError("no space left")

    journal = Journal(client()).__enter__()
    record(journal, 1)
    monkeypatch.setattr(module, name, half)
    with pytest.raises(OSError, match="no space left"):
        record(journal, 2)
    monkeypatch.undo()
    with pytest.raises(OSError, match="no space left"):
        record(journal, 3)
    journal.__exit__(OSError, OSError(), None)
    assert recorded(client()) == [1]
    write(client(), [4])
    assert recorded(client()) == [1, 4]


def test_answers_that_are_lost_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Store().client() / "run"
    create = type(run).create
    monkeypatch.setattr(type(run), "create", lambda self, data: create(self, data) and False)
    write(run, [1, 2])
    assert recorded(run) == [1, 2]


def test_segments_stay_small_and_objects_are_whole_batches(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    write(client(), range(50))
    assert recorded(client()) == list(range(50))
    sizes = [len(segment.read_bytes()) for segment in segments(client())]
    local = segments(client())[0].is_local
    assert max(sizes) < 1500
    assert len(sizes) == 52 if not local else 4 < len(sizes) < 20
    assert all(segment.read_bytes().splitlines()[0].find(b'"format":2') > 0 for segment in segments(client()))


@pytest.mark.parametrize(("size", "count"), [(2000, 1000), (1 << 20, 3), (0, 1000)])
def test_a_base_takes_the_place_of_events(
    size: int, count: int, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, size, count)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 500)
    for session in range(3):
        write(client(), range(15 * session, 15 * session + 15))
        assert recorded(client()) == list(range(15 * session + 15))
    with Journal(client()) as journal:
        journal.append([{"e": "failed", "id": 1, "at": [99], "error": "no", "trace": "none"}])
        journal.append([{"e": "dropped", "id": 1, "at": [5]}])
        journal.flush()
        assert read_ledger(client()) == journal.ledger
    assert any(segment.name.endswith(".base") for segment in segments(client()))
    assert sum(len(segment.read_bytes()) for segment in segments(client())) < size + 8000 if size < 1 << 20 else True
    assert len(segments(client())) <= max(count, 10) + 2
    assert len(read_ledger(client()).failures) == 1


def test_bases_come_as_often_as_they_pay_whoever_wrote(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 1 << 20, 12)
    for session in range(20):
        write(client(), [session])
        assert len(segments(client())) < 17
    small(monkeypatch, 5000)
    for session in range(20):
        write(client(), [session])
        assert sum(len(segment.read_bytes()) for segment in segments(client()) if segment.name[-4:] == ".log") < 6500
    small(monkeypatch, 1 << 20, 12)
    compacted = []
    compact = Journal._compact
    monkeypatch.setattr(Journal, "_compact", lambda self: (compacted.append(1), compact(self)))
    monkeypatch.setattr(module, "SEGMENT_BYTES", 0)
    write(client(), range(20, 80))
    assert 5 <= len(compacted) <= 7
    assert recorded(client()) == list(range(80))


@pytest.mark.parametrize("error", [None, KeyError("lost")])
def test_at_its_end_a_session_leaves_little_to_read(
    error: Exception | None, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_BYTES", 2000)
    write(client(), range(3))
    assert not any(segment.name.endswith(".base") for segment in segments(client()))
    journal = Journal(client()).__enter__()
    for position in range(3, 40):
        record(journal, position)
    journal.__exit__(type(error) if error else None, error, None)
    (base,) = segments(client())
    assert base.name.endswith(".base")
    assert recorded(client()) == list(range(40))
    assert read_ledger(client()) == journal.ledger
    assert journal.ledger.sessions[-1]["error"] == (None if error is None else "KeyError: 'lost'")
    write(client(), [40])
    assert recorded(client()) == list(range(41))


def test_an_end_that_leaves_much_to_read_is_an_end(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module, "END_BYTES", 2000)
    with Journal(client()) as journal:
        for position in range(40):
            record(journal, position)
        if client().is_local:
            monkeypatch.setattr(module, "_create", refuse)
        else:
            monkeypatch.setattr(module, "delete_all", refuse)
    assert "could not be made smaller" in caplog.text
    monkeypatch.undo()
    assert recorded(client()) == list(range(40))
    assert read_ledger(client()).sessions[-1]["e"] == "end"
    assert holder_of(client()) is None
    write(client(), [40])
    assert recorded(client()) == list(range(41))


class Crash(BaseException):
    """The machine goes off."""


def crash_before(monkeypatch: pytest.MonkeyPatch, run: Location, operation: int) -> Callable[[], int]:
    """Go off before that operation on the store, counted from 0; returns how to ask for the number so far."""
    made = -1

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made >= operation:
                raise Crash
            return act(*arguments)

        return do

    for verb in ("create", "put", "delete"):
        monkeypatch.setattr(type(run), verb, counted(getattr(type(run), verb)))
    for name in ("_open", "_append"):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return lambda: made


@pytest.mark.parametrize("limit", ["COMPACT_BYTES", "END_BYTES"])
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_crash_anywhere_in_compaction_loses_nothing(kind: str, limit: str, tmp_path: Path) -> None:
    crashes = 0
    for operation in range(1000):
        run = Location.of(tmp_path / str(operation)) if kind == "disk" else Store().client() / "run"
        write(run, range(2))
        write(run, range(2, 4))
        acknowledged = list(range(4))
        journal = Journal(run)
        crashed = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, limit, 0)
            made = crash_before(patch, run, operation)
            try:
                journal.__enter__()
                for position in (4, 5):
                    record(journal, position)
                    acknowledged.append(position)
                journal.__exit__(None, None, None)
            except Crash:
                crashed = True
            assert made() > 5 or crashed
        die(journal)
        found = recorded(run)
        assert found in (acknowledged, [*acknowledged, len(acknowledged)]), operation
        with Journal(run) as after:
            assert positions_in(after.ledger) == found
            record(after, 99)
        assert recorded(run) == [*found, 99]
        crashes += crashed
        if not crashed:
            break
    assert crashes > (15 if limit == "COMPACT_BYTES" else 10)


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_readers_see_all_that_was_recorded_while_bases_come_and_segments_go(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 1 << 20, 5)
    monkeypatch.setattr(module, "SEGMENT_BYTES", 300)
    chance = random.Random(0)
    store = Store()
    pause = lambda verb: time.sleep(chance.choice((0, 0, 0, 0.002)))  # noqa: E731
    run = Location.of(tmp_path) if kind == "disk" else store.client(wait=pause) / "run"
    acknowledged = 0
    over = threading.Event()
    problems: list[str] = []

    def read() -> None:
        while not over.is_set():
            before = acknowledged
            found = recorded(run)
            if found != list(range(len(found))) or len(found) < before:
                problems.append(f"{found} after {before}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with Journal(run) as journal:
        for position in range(150):
            record(journal, position)
            acknowledged = position + 1
    over.set()
    for reader in readers:
        reader.join()
    assert not problems
    assert recorded(run) == list(range(150))
