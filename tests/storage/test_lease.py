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
from neuroshed.storage import holders
from neuroshed.storage.holders import Holder
from neuroshed.storage.lease import Lease, Pace, holder_of
from neuroshed.storage.locations import Location
from tests.storage.conftest import Machine, Place
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


def test_a_lease_is_held_renewed_and_given_back(place: Place) -> None:
    with Lease(place(), "neuroshed run", FAST) as lease:
        found = holder_of(place())
        assert found == lease.holder
        assert (found.name, found.pid, found.alive) == ("neuroshed run", os.getpid(), True)
        before = (place() / "journal" / "lease").read_bytes()
        time.sleep(0.3)
        assert (place() / "journal" / "lease").read_bytes() != before
        lease.check(fresh=True)
    assert holder_of(place()) is None
    assert not lease._thread.is_alive()
    with Lease(place(), "later", FAST) as later:
        assert later.epoch == lease.epoch + 1


def test_a_run_that_never_was_has_no_holder(place: Place) -> None:
    assert holder_of(place()) is None


def test_a_second_holder_is_refused_at_once_by_name(place: Place) -> None:
    run = place()
    with Lease(run, "neuroshed run", NEVER) as lease:
        begin = time.monotonic()
        with pytest.raises(WorkflowError) as caught:
            take(Lease(place(), "second", NEVER))
        assert time.monotonic() - begin < 5
        assert str(caught.value) == (
            f"run {run} is being worked on by neuroshed run (process {os.getpid()} on {lease.holder.host}); wait for "
            f"it, or stop it with `neuroshed cancel {run}`"
        )
        lease.check(fresh=True)


def contend(place: Place, number: int, machine: Machine | None, pace: Pace) -> tuple[list[Lease], list[str]]:
    """Many try at once to hold a run; who did, and what the others were told."""
    won: list[Lease] = []
    told: list[str] = []
    gate, over = threading.Barrier(number), threading.Barrier(number)

    def one(mine: int) -> None:
        if machine is not None:
            machine(f"host{mine}")
        lease = Lease(place(), f"writer {mine}", pace)
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
    elsewhere: bool, again: bool, place: Place, machine: Machine
) -> None:
    if again:
        with Lease(place(), "before", FAST):
            pass
    won, told = contend(place, 6, machine if elsewhere else None, PATIENT)
    assert len(won) == 1
    assert len(told) == 5
    assert all(f"worked on by {won[0].holder};" in text for text in told)


def test_of_many_at_once_one_takes_over_from_the_dead(place: Place, machine: Machine) -> None:
    machine("gone")
    die(take(Lease(place(), "dead", FAST)))
    won, told = contend(place, 4, machine, Pace(0.05, 2.0))
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


def test_what_is_known_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Holder.here("me")
    assert mine.alive is False, "it holds no lease"
    monkeypatch.setattr(holders, "held", {mine.token})
    assert mine.alive is True
    first = Holder("init", mine.host, 1, mine.boot_id, mine.pid_space, 10**15)
    assert first.alive is False, "another process has its number now"
    assert Holder("far", "elsewhere", 1, mine.boot_id, mine.pid_space).alive is None
    assert Holder("caged", mine.host, 1, mine.boot_id, "pid:[2]").alive is None, "containers number for themselves"
    assert Holder("before", mine.host, mine.pid, "another boot", mine.pid_space).alive is None
    assert Holder.parse({**{name: getattr(mine, name) for name in Holder.__slots__}, "mood": "new"}) == mine


def test_processes_that_cannot_be_seen_are_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Holder.here("other")
    with child_of("input()", tmp_path) as child:
        state = holders._state_of(child.pid)
        assert state is not None
        seen = Holder("child", other.host, child.pid, other.boot_id, other.pid_space, state[1])
        assert seen.alive is True
        monkeypatch.setattr(holders, "_state_of", lambda pid: None)
        assert seen.alive is None
    assert seen.alive is False


def test_a_silent_holder_elsewhere_is_succeeded_after_the_silence_and_not_before(
    place: Place, machine: Machine
) -> None:
    machine("one")
    die(take(Lease(place(), "dead", FAST)))
    machine("two")
    begin = time.monotonic()
    with Lease(place(), "second", FAST) as lease:
        assert time.monotonic() - begin > FAST.silence_seconds
        assert lease.epoch == 2


def test_a_holder_elsewhere_that_works_is_noticed_by_its_beat(place: Place, machine: Machine) -> None:
    machine("one")
    with Lease(place(), "busy", FAST) as lease:
        machine("two")
        begin = time.monotonic()
        with pytest.raises(WorkflowError, match=r"busy \(process \d+ on one\)"):
            take(Lease(place(), "second", PATIENT))
        assert time.monotonic() - begin < 10
        machine("one")
        lease.check(fresh=True)


def test_a_lease_that_is_given_back_while_it_is_watched_is_taken(place: Place, machine: Machine) -> None:
    machine("one")
    lease = take(Lease(place(), "leaving", NEVER))
    leaving = threading.Timer(0.3, lease.__exit__, (None, None, None))
    leaving.start()
    machine("two")
    with Lease(place(), "second", PATIENT) as second:
        assert second.epoch == 2
    leaving.join()


@pytest.mark.parametrize("claimed", [b"", None])
def test_one_who_died_between_claim_and_lease_is_succeeded(
    claimed: bytes | None, place: Place, machine: Machine
) -> None:
    with Lease(place(), "first", FAST):
        pass
    machine("one")
    dead = Lease(place(), "dead", FAST)
    data = (
        b'{"epoch": 2, "holder": {"name": "dead", "host": "one", "pid": 7}, "beat": 0}' if claimed is None else claimed
    )
    assert (dead._folder / "epoch-000002").create(data)
    assert holder_of(place()) is not None
    machine("two")
    with Lease(place(), "second", FAST) as lease:
        assert lease.epoch == 3


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\x00" * 64, b'{"epoch": 1, "holder": 3, "beat": 1}'])
def test_a_damaged_lease_is_written_anew(damage: bytes, place: Place) -> None:
    with Lease(place(), "first", FAST):
        pass
    (place() / "journal" / "lease").put(damage)
    with Lease(place(), "second", FAST) as lease:
        assert lease.epoch == 2
        assert holder_of(place()) == lease.holder


def test_a_holder_that_was_taken_over_stops(place: Place, machine: Machine) -> None:
    machine("one")
    first = take(Lease(place(), "first", FAST))
    die(first)
    machine("two")
    with Lease(place(), "second", FAST) as second:
        for action in (lambda: first.check(fresh=True), first.check, first.renew):
            with pytest.raises(LeaseLostError) as caught:
                action()
            assert f"was taken over by {second.holder}; this coordinator stops" in str(caught.value)
        first.__exit__(None, None, None)
        second.check(fresh=True)
        assert holder_of(place()) == second.holder


def test_a_later_epoch_is_enough_to_stop(place: Place) -> None:
    with Lease(place(), "first", NEVER) as lease:
        (place() / "journal" / "epoch-000002").create(b"of one who has not written the lease yet")
        with pytest.raises(LeaseLostError, match="was taken over by another"):
            lease.renew()


def test_a_removed_lease_stops_its_holder(place: Place) -> None:
    with Lease(place(), "first", NEVER) as lease:
        (place() / "journal" / "lease").delete()
        with pytest.raises(LeaseLostError, match="was removed"):
            lease.check(fresh=True)
    assert not (place() / "journal" / "lease").exists()


def test_clocks_that_go_wrong_change_nothing(place: Place, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: chance.uniform(-1e10, 1e10))
    machine("one")
    with Lease(place(), "busy", FAST):
        machine("two")
        with pytest.raises(WorkflowError, match="busy"):
            take(Lease(place(), "second", PATIENT))
    machine("one")
    die(take(Lease(place(), "dead", FAST)))
    machine("two")
    with Lease(place(), "second", FAST) as lease:
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


def test_a_store_that_never_shows_what_was_written_is_refused() -> None:
    store = Store()
    with Lease(store.client() / "run", "first", FAST):
        pass
    late = store.client() / "run"
    late.client.lag = 1e9
    with pytest.raises(WorkflowError, match=r"journal/lease has shown what was there before for 0\.6 s; try again"):
        take(Lease(late, "second", FAST))


def test_answers_that_are_lost_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    run = store.client() / "run"

    def forgetful(done: Callable[..., bool]) -> Callable[..., bool]:
        def do(*arguments: object) -> bool:
            done(*arguments)
            return False

        return do

    monkeypatch.setattr(type(run), "create", forgetful(type(run).create))
    monkeypatch.setattr(type(run), "put_if", forgetful(type(run).put_if))
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
        # Still sees its own lease, but what it would write is judged by what is there.
        with pytest.raises(LeaseLostError, match="taken over by fifth"):
            last.renew()
        fifth.check(fresh=True)
