"""A writer that was taken over adds nothing, and nothing is lost to it."""

from __future__ import annotations

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from neuroshed.errors import LeaseLostError, WorkflowError
from neuroshed.storage import journal as module
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.lease import Pace
from neuroshed.storage.locations import Location
from tests.storage.conftest import Client, Machine
from tests.storage.dying import child_of, die
from tests.storage.objects import Store
from tests.storage.records import positions_in, record, recorded, segments, small, write

FAST = Pace(beat_seconds=0.03, silence_seconds=0.4)


@pytest.mark.parametrize("compacted", [False, True])
def test_what_is_written_after_a_takeover_does_not_count(
    compacted: bool, client: Client, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    first = Journal(client(), "first", FAST).__enter__()
    record(first, 1)
    die(first)
    machine("two")
    with Journal(client(), "second", FAST) as second:
        assert positions_in(second.ledger) == [1]
        for position in (2, 3):
            with pytest.raises(LeaseLostError, match="taken over by second"):
                record(first, position)
        # Even one that does not ask, as if it slept between asking and writing.
        first._lease.check = first._lease.renew = lambda **options: None  # type: ignore[method-assign,assignment]
        if compacted:
            small(monkeypatch, 0)
            monkeypatch.setattr(type(client()), "delete", lambda self: None)
        record(first, 4)
        monkeypatch.undo()
        assert recorded(client()) == [1]
        machine("two")
        record(second, 5)
    for position in (6, 7):
        write(client(), [position])
    assert recorded(client()) == [1, 5, 6, 7]


@pytest.mark.parametrize("when", ["before the base", "after the base"])
def test_a_takeover_in_the_middle_of_compaction_loses_nothing(
    when: str, client: Client, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    first = Journal(client(), "first", FAST).__enter__()
    record(first, 1)
    record(first, 2)
    die(first)
    second: list[Journal] = []

    def take_over() -> None:
        machine("two")
        small(monkeypatch, 1 << 20)
        second.append(Journal(client(), "second", FAST).__enter__())
        record(second[0], 3)

    create, renew = module._create, first._lease.renew

    def create_late(at: Location, data: bytes) -> None:
        if at.name.endswith(".base") and when == "before the base" and not second:
            take_over()
        create(at, data)

    def renew_late() -> None:
        if when == "after the base" and not second:
            take_over()
        renew()

    monkeypatch.setattr(module, "_create", create_late)
    monkeypatch.setattr(first._lease, "renew", renew_late)
    first._lease._renewed += 60
    small(monkeypatch, 0)
    with pytest.raises(LeaseLostError):
        record(first, 9)
    assert any(segment.name.startswith("000001") and segment.name.endswith("base") for segment in segments(client()))
    assert recorded(client()) == [1, 2, 3, 9]
    record(second[0], 4)
    second[0].__exit__(None, None, None)
    write(client(), [5])
    assert recorded(client()) == [1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize("noticed", [False, True])
def test_what_is_written_in_ones_sleep_is_not_acknowledged(
    noticed: bool, client: Client, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("one")
    first = Journal(client(), "first", FAST).__enter__()
    record(first, 1)
    die(first)
    name = "_append" if client().is_local else "_create"
    write, second = getattr(module, name), Journal(client(), "second", FAST)

    def write_late(*arguments: Any) -> None:
        monkeypatch.undo()
        machine("two")
        second.__enter__()
        machine("one")
        write(*arguments)

    if not noticed:
        # Its clock stood still as well, as that of a virtual machine may.
        first._lease._renewed += 60
    monkeypatch.setattr(module, name, write_late)
    with pytest.raises(LeaseLostError, match="taken over by second"):
        record(first, 2)
    record(second, 3)
    second.__exit__(None, None, None)
    assert recorded(client()) == [1, 3]


def test_a_writer_that_slept_goes_on_and_nothing_is_lost(client: Client) -> None:
    with Journal(client(), "sleepy", FAST) as journal:
        for position in range(6):
            record(journal, position)
            if position % 2:
                die(journal._lease)
                time.sleep(0.3)
    assert journal._lease.epoch > 2
    assert recorded(client()) == list(range(6))
    write(client(), [6])
    assert recorded(client()) == list(range(7))


@pytest.mark.parametrize("compacted", [False, True])
def test_a_successor_misses_nothing_that_an_old_listing_does_not_show(
    compacted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    write(store.client() / "run", [1, 2])
    time.sleep(0.5)
    write(store.client() / "run", [3, 4])
    if compacted:
        small(monkeypatch, 0)
    write(store.client() / "run", [5, 6])
    monkeypatch.undo()
    with Journal(store.client(list_lag=0.5) / "run") as journal:
        assert positions_in(journal.ledger) == [1, 2, 3, 4, 5, 6]
    assert recorded(store.client() / "run") == [1, 2, 3, 4, 5, 6]


CHILD = """
import sys
from neuroshed.errors import LeaseLostError
from neuroshed.geometry import Box, Grid
from neuroshed.storage.journal import Journal
from neuroshed.storage.lease import Pace
grid = Grid(Box((0, 0, 0), (10, 10, 100)), (1, 1, 1))
try:
    with Journal(sys.argv[1], "child", Pace(0.03, 0.4)) as journal:
        for position in (1, 2):
            journal.append([{"e": "done", "id": journal.part("a" * 64, "block", grid), "at": [position],
                             "figures": {"voxels": 1 << position}}])
            journal.flush()
            print("recorded", flush=True)
            sys.stdin.readline()
except LeaseLostError as error:
    print(error, flush=True)
"""


def test_a_holder_that_was_stopped_and_wakes_up_cannot_add(tmp_path: Path, machine: Machine) -> None:
    with child_of(CHILD, tmp_path) as child:
        assert child.stdout.readline() == "recorded\n"
        machine("another")
        with pytest.raises(WorkflowError, match=rf"worked on by child \(process {child.pid} on"):
            # However busy the machine is, it is not taken for gone.
            Journal(tmp_path, "second", Pace(0.03, 60)).__enter__()
        os.kill(child.pid, signal.SIGSTOP)
        with Journal(tmp_path, "second", FAST) as journal:
            os.kill(child.pid, signal.SIGCONT)
            child.stdin.write("\n")
            child.stdin.close()
            told = child.stdout.read()
            assert f"was taken over by {journal._lease.holder}; this coordinator stops" in told
            assert child.process.wait() == 0
            record(journal, 3)
    assert recorded(Location.of(tmp_path)) == [1, 3]
    assert [event.get("error") for event in read_ledger(tmp_path).sessions if event["e"] == "end"] == [None]


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_is_recorded_whoever_sleeps_dies_or_sees_what_was(seed: int, machine: Machine) -> None:
    store = Store()
    acknowledged: list[int] = []
    ends: list[str] = []
    deadline = time.monotonic() + 3
    pace = Pace(0.02, 0.3)

    def seen() -> bool:
        return {"died", "left", "WorkflowError"} <= set(ends) and len(acknowledged) > 20

    def work(mine: int) -> None:
        chance = random.Random(10 * seed + mine)

        def sleep(verb: str) -> None:
            if chance.random() < 0.01:
                time.sleep(chance.uniform(0, 2 * pace.silence_seconds))

        position = 200 * mine
        session = 0
        while time.monotonic() < deadline or (not seen() and time.monotonic() < deadline + 60):
            session += 1
            machine(f"host {mine} in session {session}")
            run = store.client(chance.choice((0, 0.02, pace.silence_seconds / 4)), sleep) / "run"
            journal = Journal(run, f"writer {mine}", pace)
            try:
                journal.__enter__()
                for _ in range(chance.randrange(1, 20)):
                    record(journal, position)
                    acknowledged.append(position)
                    position += 1
                if chance.random() < 0.5:
                    die(journal)
                    ends.append("died")
                else:
                    journal.__exit__(None, None, None)
                    ends.append("left")
            except (WorkflowError, LeaseLostError) as error:
                ends.append(type(error).__name__)
                die(journal)
                time.sleep(0.02)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = recorded(store.client() / "run")
    assert set(acknowledged) <= set(found)
    assert seen(), ends
