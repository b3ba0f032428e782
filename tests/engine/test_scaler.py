"""Workers are asked for as there is work, let go when there is none, and never while they are at something."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection

import pytest

from neuroshed.engine import fleet as fleets
from neuroshed.engine.dispatch import Demand, Windows, Worker
from neuroshed.engine.fleet import TRIES, Fleet, Member
from neuroshed.engine.pools import Backlog, Pool
from neuroshed.engine.scaler import FAILED_STARTS, IDLE_SECONDS, REFUSED_SECONDS, Scaler
from neuroshed.errors import RunFailedError

NEED = Demand("cpu", 10, seconds=100.0)


class Queue:
    """A fleet whose orders are carried out when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Member] = []
        self.stopped: list[str] = []
        self.broken: list[str] = []
        self.ordered: Counter[str] = Counter()
        self.provider = type("Provider", (), {"logs": "/logs"})()
        self._number = 0

    def start(self, pool: str, count: int) -> None:
        self.ordered[pool] += count

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        self.stopped += names
        self.broken += names if broken else []
        self.asked = [member for member in self.asked if member.name not in names]

    def look(self) -> tuple[list[Member], Counter[str]]:
        return list(self.asked), Counter(self.ordered)

    def carry_out(self) -> None:
        """What was ordered waits in the queue."""
        for pool, count in self.ordered.items():
            for _ in range(count):
                self._number += 1
                self.asked.append(Member(f"{pool}-{self._number}", pool, running=False))
        self.ordered.clear()

    def begin(self, ends_at: float | None = None) -> list[str]:
        """All that wait run."""
        self.asked = [Member(member.name, member.pool, True, member.ends_at or ends_at) for member in self.asked]
        return [member.name for member in self.asked]


class Site:
    """A scaler, its queue, its workers, and a clock."""

    def __init__(self, **pools: Pool) -> None:
        self.now = 1000.0
        self.queue = Queue()
        self.windows = Windows(lambda demand: "cpu", lambda: self.now)
        self.scaler = Scaler(self.queue, pools, lambda: self.now)  # type: ignore[arg-type]

    def tick(self, blocks: int, left: int | None = None, pool: str = "cpu") -> None:
        backlog = Backlog(blocks, blocks * NEED.seconds, NEED.seconds, blocks if left is None else left)
        self.scaler.tick({pool: backlog}, self.windows)

    def join(self) -> None:
        """Workers of all that run connect."""
        self.windows.update(
            Worker(f"tcp://{m.name}", "here", 1, 100, memory_group=m.name, member=m.name, pool=m.pool)
            for m in self.queue.asked
            if m.running
        )

    def fill(self) -> list[int]:
        """Jobs for everybody."""
        jobs = []
        while (address := self.windows.place(NEED)) is not None:
            jobs.append(len(jobs))
            self.windows.add(jobs[-1], address, NEED)
        return jobs


def test_workers_are_asked_for_once_and_as_many_as_there_is_work_for() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 3)))
    site.tick(0, left=50)
    assert not site.queue.ordered
    site.tick(50)
    assert site.queue.ordered == {"cpu": 3}
    site.tick(50)
    site.queue.carry_out()
    site.tick(50)
    assert not site.queue.ordered
    assert len(site.queue.asked) == site.scaler.waiting("cpu") == 3
    # One that dies is replaced.
    site.queue.begin()
    site.join()
    site.tick(50)
    site.queue.asked.pop()
    site.tick(50)
    assert site.queue.ordered == {"cpu": 1}


def test_a_pool_is_let_go_at_once_when_nothing_is_left_for_it_but_not_those_at_work() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(2, 2)), gpu=Pool(memory_gb=1, gpus=1, workers=(1, 1)))
    site.tick(10)
    site.queue.carry_out()
    names = site.queue.begin()
    assert len(names) == 2
    site.join()
    assert site.fill()
    site.tick(0, left=0)
    assert not site.queue.stopped
    busy = site.windows.workers[0].member
    for job in range(4):
        site.windows.remove(job) if site.windows._of_job[job].worker.member != busy else None
    site.tick(0, left=0)
    assert site.queue.stopped == [name for name in names if name != busy]
    # It gets nothing more, though it may still be there.
    assert site.windows.place(NEED) in {None, f"tcp://{busy}"}


def test_idle_workers_are_kept_a_while_as_long_as_there_is_more_to_come() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(1, 4)))
    site.tick(40)
    site.queue.carry_out()
    site.queue.begin()
    site.join()
    site.tick(0, left=10)
    site.now += IDLE_SECONDS - 1
    site.tick(0, left=10)
    assert not site.queue.stopped
    site.now += 2
    site.tick(0, left=10)
    assert len(site.queue.stopped) == 3
    assert len(site.queue.asked) == 1


def test_those_in_the_queue_go_before_those_at_work() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 4)))
    site.tick(1)
    site.queue.carry_out()
    first = site.queue.begin()
    site.join()
    site.tick(40)
    site.queue.carry_out()
    site.now += IDLE_SECONDS + 1
    site.tick(1)
    site.now += IDLE_SECONDS + 1
    site.tick(1)
    assert [member.name for member in site.queue.asked] == first


def test_a_worker_near_its_end_gets_nothing_leaves_and_is_replaced() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(1, 1)))
    site.tick(5)
    site.queue.carry_out()
    (name,) = site.queue.begin(ends_at=site.now + 200)
    site.join()
    site.tick(5)
    address = site.windows.place(NEED)
    assert address is not None
    site.windows.add(0, address, NEED)
    site.now += 50
    # Not time enough for another block of 100 s; the one that it has may end.
    site.tick(5)
    assert site.windows.place(NEED) is None
    assert site.queue.ordered == {"cpu": 1}
    assert not site.queue.stopped
    site.windows.remove(0)
    site.tick(5)
    assert site.queue.stopped == [name]


def test_workers_that_end_before_they_connect_are_told_as_an_error() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 1)))
    for _ in range(FAILED_STARTS):
        site.tick(5)
        site.queue.carry_out()
        site.tick(5)
        site.queue.asked.clear()
    with pytest.raises(RunFailedError, match=f"{FAILED_STARTS} workers of pool cpu ended .* output is in /logs"):
        site.tick(5)


def test_workers_that_connect_and_die_are_not() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 1)))
    for _ in range(3 * FAILED_STARTS):
        site.tick(5)
        site.queue.carry_out()
        site.queue.begin()
        site.join()
        site.tick(5)
        for member in site.queue.asked:
            site.windows.leave(f"tcp://{member.name}")
        site.queue.asked.clear()


class Place:
    """A provider that can be made to fail."""

    logs = "/logs"

    def __init__(self) -> None:
        self.failing = False
        self.there: list[Member] = []
        self.calls: list[str] = []
        self.closed = False

    def start(self, pool: str, count: int) -> None:
        self._call("start")
        self.there += [Member(f"{pool}-{number}", pool, running=True) for number in range(count)]

    def members(self) -> list[Member]:
        self._call("members")
        return list(self.there)

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        self._call("stop")
        self.there = [member for member in self.there if member.name not in names]

    def close(self) -> None:
        self.closed = True

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.failing:
            raise OSError("no answer")


def until(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_fleet_carries_out_orders_in_the_background_and_ends_all_at_the_end() -> None:
    place = Place()
    with Fleet(place) as fleet:
        fleet.start("cpu", 2)
        until(lambda: len(fleet.look()[0]) == 2 and not fleet.look()[1]["cpu"])
        fleet.stop(["cpu-0"])
        # At once, whatever the place says.
        assert [member.name for member in fleet.look()[0]] == ["cpu-1"]
        until(lambda: len(place.there) == 1)
    assert place.closed


def error_of(fleet: Fleet) -> str:
    """What it would tell its coordinator; empty if nothing is wrong."""
    try:
        fleet.look()
    except RunFailedError as error:
        return str(error)
    return ""


def test_a_place_that_does_not_answer_has_time_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(fleets, "WAIT_SECONDS", 0.01)
    place = Place()
    with Fleet(place, patience=1.0) as fleet:
        fleet.start("cpu", 1)
        until(lambda: fleet.look()[0])
        place.failing = True
        until(lambda: len(place.calls) > 5)
        # Nobody who is silent has refused anything.
        for _ in range(2 * TRIES):
            fleet.start("cpu", 1)
            until(lambda: not fleet.look()[1]["cpu"])
        place.failing = False
        calls = len(place.calls)
        until(lambda: len(place.calls) > calls + 5)
        assert len(fleet.look()[0]) == 1
        place.failing = True
        until(lambda: "could not be learnt for 1 s: no answer" in error_of(fleet))
    assert place.closed


def test_a_place_that_refuses_is_asked_again_at_longer_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(fleets, "LONGEST_WAIT_SECONDS", 0.1)
    place = Place()

    def refuse(pool: str, count: int) -> None:
        place.calls.append("refused")
        raise RunFailedError("no such partition")

    monkeypatch.setattr(place, "start", refuse)
    with Fleet(place) as fleet:

        def told() -> bool:
            if not error_of(fleet) and not fleet.look()[1]["cpu"]:
                fleet.start("cpu", 1)
            return f"no such partition (tried {TRIES} times)" in error_of(fleet)

        until(told)
        assert place.calls.count("refused") == TRIES


def test_a_worker_that_is_refused_goes_and_others_of_its_pool_are_asked_for_later() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 1)))
    for number in range(FAILED_STARTS):
        site.tick(50)
        site.queue.carry_out()
        (name,) = site.queue.begin()
        site.tick(50)
        site.scaler.refuse(name, "it has torch 1.0 (here 2.0)")
        assert site.queue.stopped[-1] == name
        assert not site.queue.broken
        if number < FAILED_STARTS - 1:
            site.tick(50)
            assert not site.queue.ordered
            site.now += REFUSED_SECONDS
    with pytest.raises(RunFailedError, match=r"5 workers of pool cpu could not be used.*it has torch 1.0 \(here 2.0\)"):
        site.tick(50)


def test_a_place_that_is_broken_makes_a_pool_smaller() -> None:
    site = Site(cpu=Pool(memory_gb=1, workers=(0, 2)))
    site.tick(50)
    site.queue.carry_out()
    names = site.queue.begin()
    site.join()
    site.tick(50)
    site.scaler.refuse(names[0], "its GPU failed", broken=True)
    assert site.queue.broken == [names[0]]
    site.now += REFUSED_SECONDS
    site.tick(50)
    assert not site.queue.ordered
    site.queue.asked.clear()
    site.tick(50)
    assert site.queue.ordered == {"cpu": 1}


def test_a_fleet_whose_thread_fails_says_so() -> None:
    class Place:
        logs = "/logs"

        def members(self) -> list[Member]:
            raise ZeroDivisionError("a mistake")

        def close(self) -> None:
            pass

    with Fleet(Place()) as fleet:  # type: ignore[arg-type]
        end = time.monotonic() + 30
        while fleet._error is None and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(RunFailedError, match=r"cannot be looked after any more \(ZeroDivisionError: a mistake"):
            fleet.look()
