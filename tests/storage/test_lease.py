"""A run has one writer: whatever clocks say, whatever is cached, however long a holder sleeps."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from neuroshed.errors import LeaseLostError, WorkflowError
from neuroshed.storage.lease import Lease, Pace, holder_of
from neuroshed.storage.locations import Location
from tests.storage.conftest import Client, Machine
from tests.storage.dying import child_of, die
from tests.storage.objects import Store

FAST = Pace(beat_seconds=0.05, silence_seconds=0.6)
# A holder that works is not taken for gone, however busy the machine is.
PATIENT = Pace(beat_seconds=0.05, silence_seconds=60.0)
# For tests in which nobody is to be waited for.
NEVER = Pace(beat_seconds=60.0, silence_seconds=600.0)


def take(lease: Lease) -> Lease:
    """Enter, for holders that never leave."""
    return lease.__enter__()


def test_a_lease_is_held_renewed_and_given_back(client: Client) -> None:
    with Lease(client(), "neuroshed run", FAST) as lease:
        found = holder_of(client())
        assert found == lease.holder
        assert (found.name, found.pid, found.alive) == ("neuroshed run", os.getpid(), True)
        before = (client() / "journal" / "epoch-000001").read_bytes()
        time.sleep(0.3)
        assert (client() / "journal" / "epoch-000001").read_bytes() != before
        lease.check(fresh=True)
    assert holder_of(client()) is None
    assert not lease._thread.is_alive()
    with Lease(client(), "later", FAST) as later:
        assert later.epoch == lease.epoch + 1


def test_a_run_that_never_was_has_no_holder(client: Client) -> None:
    assert holder_of(client()) is None


def test_a_second_holder_is_refused_at_once_by_name(client: Client) -> None:
    run = client()
    with Lease(run, "neuroshed run", NEVER) as lease:
        begin = time.monotonic()
        with pytest.raises(WorkflowError) as caught:
            take(Lease(client(), "second", NEVER))
        assert time.monotonic() - begin < 5
        assert str(caught.value) == (
            f"run {run} is being worked on by neuroshed run (process {os.getpid()} on {lease.holder.host}); wait for "
            f"it, or stop it with `neuroshed cancel {run}`"
        )
        lease.check(fresh=True)


def contend(client: Client, number: int, machine: Machine | None, pace: Pace) -> tuple[list[Lease], list[str]]:
    """Many try at once to hold a run; who did, and what the others were told."""
    won: list[Lease] = []
    told: list[str] = []
    gate, over = threading.Barrier(number), threading.Barrier(number)

    def one(mine: int) -> None:
        if machine is not None:
            machine(f"host{mine}")
        lease = Lease(client(), f"writer {mine}", pace)
        gate.wait()
        try:
            with lease:
                won.append(lease)
                over.wait()
                lease.check(fresh=True)
        except WorkflowError as error:
            told.append(str(error))
            over.wait()

    threads = [threading.Thread(target=one, args=(mine,)) for mine in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, told


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_of_many_at_once_one_holds_and_the_others_hear_its_name(
    elsewhere: bool, again: bool, client: Client, machine: Machine
) -> None:
    if again:
        with Lease(client(), "before", FAST):
            pass
    won, told = contend(client, 6, machine if elsewhere else None, PATIENT)
    assert len(won) == 1
    assert len(told) == 5
    assert all(f"worked on by {won[0].holder};" in text for text in told)


def test_of_many_at_once_one_takes_over_from_the_dead(client: Client, machine: Machine) -> None:
    machine("gone")
    die(take(Lease(client(), "dead", FAST)))
    won, told = contend(client, 4, machine, Pace(0.05, 2.0))
    assert len(won) == 1
    assert won[0].epoch == 2
    assert all(f"worked on by {won[0].holder};" in text for text in told)


HOLD = (
    "import os, sys; from neuroshed.errors import WorkflowError; from neuroshed.storage.lease import Lease\n"
    "from neuroshed.storage.locations import Location\n"
    "try:\n"
    "    with Lease(Location.of(sys.argv[1]), 'child'): print('held', flush=True); os.read(0, 1)\n"
    "except WorkflowError as error: print(error, flush=True)"
)


def test_of_processes_at_once_one_holds_and_the_others_hear_its_name(tmp_path: Path) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(child_of(HOLD, tmp_path)) for _ in range(3)]
        lines = {child.pid: child.stdout.readline().strip() for child in children}
    held = [pid for pid, line in lines.items() if line == "held"]
    assert len(held) == 1
    others = [line for line in lines.values() if line != "held"]
    assert all(f"worked on by child (process {held[0]} on " in line for line in others)
    assert len(others) == 2


@pytest.mark.parametrize("reaped", [False, True])
def test_a_process_that_was_killed_is_succeeded_at_once(reaped: bool, tmp_path: Path) -> None:
    with child_of(HOLD, tmp_path) as child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(WorkflowError, match=f"process {child.pid} on"):
            take(Lease(Location.of(tmp_path), "second", NEVER))
        child.process.kill()
        if reaped:
            child.process.wait()
        else:
            # Many a container has no process that asks how its children ended.
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        begin = time.monotonic()
        with Lease(Location.of(tmp_path), "second", NEVER) as lease:
            assert lease.epoch == 2
        assert time.monotonic() - begin < 5


def test_an_old_listing_keeps_nobody_waiting(machine: Machine) -> None:
    store = Store()
    with Lease(store.client() / "run", "busy", PATIENT):
        machine("two")
        begin = time.monotonic()
        with pytest.raises(WorkflowError, match="worked on by busy"):
            take(Lease(store.client(list_lag=10) / "run", "second", PATIENT))
        assert time.monotonic() - begin < 8


def test_a_silent_holder_elsewhere_is_succeeded_after_the_silence_and_not_before(
    client: Client, machine: Machine
) -> None:
    machine("one")
    die(take(Lease(client(), "dead", FAST)))
    machine("two")
    begin = time.monotonic()
    with Lease(client(), "second", FAST) as lease:
        assert time.monotonic() - begin > FAST.silence_seconds
        assert lease.epoch == 2


def test_a_holder_elsewhere_that_works_is_noticed_by_its_beat(client: Client, machine: Machine) -> None:
    machine("one")
    with Lease(client(), "busy", FAST) as lease:
        machine("two")
        begin = time.monotonic()
        with pytest.raises(WorkflowError, match=r"busy \(process \d+ on one\)"):
            take(Lease(client(), "second", PATIENT))
        assert time.monotonic() - begin < 10
        machine("one")
        lease.check(fresh=True)


def test_a_lease_that_is_given_back_while_it_is_watched_is_taken(client: Client, machine: Machine) -> None:
    machine("one")
    lease = take(Lease(client(), "leaving", NEVER))
    leaving = threading.Timer(0.3, lease.__exit__, (None, None, None))
    leaving.start()
    machine("two")
    with Lease(client(), "second", PATIENT) as second:
        assert second.epoch == 2
    leaving.join()


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[" * 10**5, bytes(64), b'{"holder": {"name": "x", "host": "y", "pid": "z"}, "beat": 1}']
)
def test_what_cannot_be_made_out_is_held_by_somebody(damage: bytes, client: Client) -> None:
    with Lease(client(), "first", FAST):
        pass
    assert (client() / "journal" / "epoch-000002").create(damage)
    assert str(holder_of(client())) == "another coordinator (process 0 on an unknown host)"
    begin = time.monotonic()
    with Lease(client(), "second", FAST) as lease:
        assert time.monotonic() - begin > FAST.silence_seconds
        assert lease.epoch == 3
        assert holder_of(client()) == lease.holder


def test_a_holder_that_was_taken_over_stops(client: Client, machine: Machine) -> None:
    machine("one")
    first = take(Lease(client(), "first", FAST))
    die(first)
    machine("two")
    with Lease(client(), "second", FAST) as second:
        for action in (lambda: first.check(fresh=True), first.check, first.renew):
            with pytest.raises(LeaseLostError) as caught:
                action()
            assert f"was taken over by {second.holder}; this coordinator stops" in str(caught.value)
        first.__exit__(None, None, None)
        second.check(fresh=True)
        assert holder_of(client()) == second.holder


def test_a_holder_that_was_taken_over_stops_by_itself(client: Client) -> None:
    with Lease(client(), "first", FAST) as lease:
        assert (client() / "journal" / "epoch-000002").create(b"of one who is about to write it")
        time.sleep(0.3)
        with pytest.raises(LeaseLostError, match="was taken over by another coordinator"):
            lease.check()


@pytest.mark.parametrize("again", [False, True])
def test_a_holder_that_slept_goes_on_under_the_next_epoch(again: bool, client: Client, machine: Machine) -> None:
    machine("one")
    lease = take(Lease(client(), "sleepy", FAST))
    for epoch in range(2, 4 if again else 3):
        die(lease)
        time.sleep(FAST.silence_seconds * 0.6)
        lease.check()
        assert (lease.epoch, holder_of(client())) == (epoch, lease.holder)
    lease.renew()
    lease.__exit__(None, None, None)
    assert holder_of(client()) is None


@pytest.mark.parametrize("seed", range(6))
def test_one_that_wakes_up_and_one_that_takes_over_are_never_both_holders(seed: int, machine: Machine) -> None:
    store, chance = Store(), random.Random(seed)
    pace = Pace(0.02, 0.2)
    machine("one")
    sleepy = take(Lease(store.client() / "run", "sleepy", pace))
    die(sleepy)
    told: list[str] = []

    def wake_up() -> None:
        time.sleep(pace.silence_seconds * chance.uniform(0.9, 1.2))
        try:
            sleepy.check(fresh=True)
            told.append("sleepy")
        except LeaseLostError as error:
            told.append(str(error))

    waking = threading.Thread(target=wake_up)
    waking.start()
    machine("two")
    try:
        take(Lease(store.client(pace.silence_seconds / 4) / "run", "successor", pace))
        successor = "holds"
    except WorkflowError as error:
        successor = str(error)
    waking.join()
    if told[0] == "sleepy":
        assert "worked on by sleepy" in successor
    else:
        assert successor == "holds"
        assert "taken over by" in told[0]


def test_clocks_that_go_wrong_change_nothing(client: Client, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e10, 1e10))
    machine("one")
    with Lease(client(), "busy", FAST):
        machine("two")
        with pytest.raises(WorkflowError, match="busy"):
            take(Lease(client(), "second", PATIENT))
    machine("one")
    die(take(Lease(client(), "dead", FAST)))
    machine("two")
    with Lease(client(), "second", FAST) as lease:
        assert lease.epoch == 3


def test_a_store_out_of_reach_for_long_stops_the_holder_and_for_short_does_not() -> None:
    store, broken = Store(), threading.Event()

    def wait(verb: str) -> None:
        if broken.is_set():
            raise ConnectionError("no route to the store")

    with Lease(store.client(wait=wait) / "run", "cut off", FAST) as lease:
        broken.set()
        time.sleep(FAST.silence_seconds / 6)
        broken.clear()
        time.sleep(FAST.silence_seconds / 2)
        lease.check()
        broken.set()
        time.sleep(FAST.silence_seconds)
        with pytest.raises(LeaseLostError, match=r"could not be renewed for \d+ s \(no route to the store\)"):
            lease.check()
        broken.clear()
        with pytest.raises(LeaseLostError):
            lease.check()


def test_who_asks_does_not_wait_for_a_store_that_hangs() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def wait(verb: str) -> None:
        if verb == "put" and hangs.is_set():
            goes_on.wait(20)

    with Lease(Store().client(wait=wait) / "run", "patient", PATIENT) as lease:
        hangs.set()
        time.sleep(0.3)
        begin = time.monotonic()
        lease.check()
        assert time.monotonic() - begin < 10
        goes_on.set()


def test_who_could_not_enter_does_not_stand_in_its_own_way() -> None:
    broken = threading.Event()
    broken.set()

    def wait(verb: str) -> None:
        # The epoch is claimed by then.
        if verb == "after create" and broken.is_set():
            raise ConnectionError("no route to the store")

    run = Store().client(wait=wait) / "run"
    with pytest.raises(ConnectionError):
        take(Lease(run, "first", NEVER))
    broken.clear()
    with Lease(run, "first", NEVER) as lease:
        assert lease.epoch == 2


def test_answers_that_are_lost_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    run = store.client() / "run"

    def forgetful(done: Callable[..., bool]) -> Callable[..., bool]:
        def do(*arguments: object) -> bool:
            done(*arguments)
            return False

        return do

    monkeypatch.setattr(type(run), "create", forgetful(type(run).create))
    with Lease(run, "first", NEVER) as lease:
        lease.renew()
        lease.check(fresh=True)
        assert holder_of(run) == lease.holder
    assert holder_of(run) is None


@pytest.mark.parametrize("lag", [0.1, 0.3])
def test_old_contents_make_no_two_holders(lag: float, machine: Machine) -> None:
    store = Store()
    with Lease(store.client() / "run", "first", FAST):
        pass
    time.sleep(lag)
    machine("one")
    with Lease(store.client() / "run", "second", FAST) as second:
        machine("two")
        # Still sees a run that nobody holds.
        with pytest.raises(WorkflowError, match=r"second \(process \d+ on one\)"):
            take(Lease(store.client(lag) / "run", "third", PATIENT))
        machine("one")
        second.renew()
    time.sleep(lag)
    machine("two")
    late = store.client(lag) / "run"
    last = take(Lease(late, "fourth", FAST))
    die(last)
    machine("three")
    with Lease(store.client() / "run", "fifth", FAST) as fifth:
        # Still sees its own epoch alone, but a later one cannot be made twice.
        with pytest.raises(LeaseLostError, match="was taken over by"):
            last.renew()
        fifth.check(fresh=True)
