"""Which worker gets the next job: a short window of jobs for each, by what it has and what the job needs. Pure.

The coordinator names the worker of every job itself, so Dask neither queues nor steals: the order of work stays that of
the run, a job's memory is where it was counted, and when a worker dies it is known what it had.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Resource = Literal["cpu", "gpu"]

WAITING_PER_THREAD = 1
"""Jobs that wait at a worker for each one that it works on, so that it never waits for the coordinator."""


TIME_FACTOR, TIME_EXTRA = 1.5, 30.0
"""A worker whose end is known gets a block if so many times what such blocks take, and so many seconds, are left."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process as the scheduler lists it."""

    address: str
    host: str
    threads: int
    memory_bytes: int
    """What its jobs may take together; 0 if nobody said."""
    gpus: float = 0.0
    memory_group: str = ""
    """Workers of the same group share `memory_bytes`; by default a worker has its own."""
    member: str = ""
    """What it belongs to of what was started for this run (`engine.fleet.Member`)."""
    pool: str = ""
    """The pool of that."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one block of a job needs."""

    resource: Resource
    memory_bytes: int
    seconds: float = 0.0
    """That it takes, as far as blocks like it have shown."""


def is_time_for(seconds: float, ends_at: float | None, now: float) -> bool:
    """Whether a worker that ends at a time since the epoch could finish a block of so many seconds.

    >>> [is_time_for(100, ends_at, 1000) for ends_at in (None, 1200, 1170)]
    [True, True, False]
    """
    return ends_at is None or now + TIME_FACTOR * seconds + TIME_EXTRA <= ends_at


@dataclass(slots=True)
class _Desk:
    """A worker and its jobs, oldest first."""

    worker: Worker
    jobs: dict[int, Demand] = field(default_factory=dict)
    reserved: bool = False
    """Whether its one job must have no company."""
    closed: bool = False
    """Whether it gets nothing any more."""

    @property
    def memory_group(self) -> str:
        return self.worker.memory_group or self.worker.address

    @property
    def room(self) -> int:
        return 0 if self.reserved else self.worker.threads * (1 + WAITING_PER_THREAD) - len(self.jobs)

    def memory(self, extra: int = 0) -> int:
        """The most that its jobs can take at a time, with one more."""
        sizes = sorted((*(demand.memory_bytes for demand in self.jobs.values()), extra), reverse=True)
        return sum(sizes[: self.worker.threads])


class Windows:
    """All workers and what they work on."""

    def __init__(
        self, pool_for: Callable[[Demand], str | None] | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`pool_for` names the pool whose workers get a job; without it GPUs and memory alone decide."""
        self._desks: dict[str, _Desk] = {}
        self._of_job: dict[int, _Desk] = {}
        self._pool_for, self._clock = pool_for, clock
        self._ends: Mapping[str, float | None] = {}
        self._dismissed: set[str] = set()

    def update(self, workers: Iterable[Worker]) -> None:
        """Take in who is there now. Workers that are not any more have to be given up with `leave`."""
        for worker in workers:
            if worker.address in self._desks:
                self._desks[worker.address].worker = worker
            else:
                self._desks[worker.address] = _Desk(worker)

    def leave(self, address: str) -> list[int]:
        """A worker is gone: forget it and its jobs, which are returned, oldest first."""
        desk = self._desks.pop(address, None)
        if desk is None:
            return []
        for job in desk.jobs:
            del self._of_job[job]
        return list(desk.jobs)

    def missing(self, addresses: Collection[str]) -> list[str]:
        """Known workers that are not among `addresses`."""
        return [address for address in self._desks if address not in addresses]

    def place(self, demand: Demand, alone: bool = False) -> str | None:
        """The worker for a job: of those that fit it the one with the fewest jobs for its threads; None if none has
        room now. `alone`: only a worker without any job.
        """
        fitting = [
            desk
            for desk in self._fitting(demand)
            if desk.room > 0 and not (alone and desk.jobs) and self._has_memory(desk, demand)
        ]
        if not fitting:
            return None
        return min(fitting, key=lambda desk: (len(desk.jobs) / desk.worker.threads, desk.worker.address)).worker.address

    def fits_somewhere(self, demand: Demand) -> bool:
        """Whether any worker could take the job if it had nothing else."""
        return any(
            not desk.worker.memory_bytes or demand.memory_bytes <= desk.worker.memory_bytes
            for desk in self._fitting(demand)
        )

    def add(self, job: int, address: str, demand: Demand, alone: bool = False) -> None:
        """A job was sent to a worker, which gets no other beside it if it has to be `alone`."""
        desk = self._desks[address]
        desk.reserved = alone
        desk.jobs[job] = demand
        self._of_job[job] = desk

    def remove(self, job: int) -> None:
        """A job has ended."""
        desk = self._of_job.pop(job, None)
        if desk is not None:
            del desk.jobs[job]
            desk.reserved = False

    def at_work(self, job: int) -> bool:
        """Whether a worker may be working on the job, and is not just holding it: workers take jobs in the order in
        which they were sent.
        """
        desk = self._of_job[job]
        return job in list(desk.jobs)[: desk.worker.threads]

    @property
    def workers(self) -> list[Worker]:
        """All that are there."""
        return [desk.worker for desk in self._desks.values()]

    @property
    def threads(self) -> int:
        """Jobs that can be worked on at a time."""
        return sum(desk.worker.threads for desk in self._desks.values())

    def jobs_by_member(self) -> Counter[str]:
        """How many jobs each of what was started for this run has, those with none included."""
        found: Counter[str] = Counter()
        for desk in self._desks.values():
            found[desk.worker.member] += len(desk.jobs)
        return found

    def set_ends(self, ends: Mapping[str, float | None]) -> None:
        """Take in when members will be ended, in seconds since the epoch, as far as that is known."""
        self._ends = ends

    def dismiss(self, members: Iterable[str]) -> None:
        """Give nothing more to the workers of some members."""
        self._dismissed.update(members)

    def close(self, address: str) -> list[int]:
        """Give nothing more to a worker. Returns the jobs that it only holds."""
        desk = self._desks[address]
        desk.closed = True
        return list(desk.jobs)[desk.worker.threads :]

    def closed(self) -> list[str]:
        """Workers that get nothing more and have nothing."""
        return [address for address, desk in self._desks.items() if desk.closed and not desk.jobs]

    def _fitting(self, demand: Demand) -> list[_Desk]:
        """Workers of the pool that is meant, if there are pools, that have the time.

        Else workers with a GPU for what needs one, those without for the rest; where no worker says that it has one, or
        all do, any.
        """
        if self._pool_for is not None:
            pool, now = self._pool_for(demand), self._clock()
            return [
                desk
                for desk in self._desks.values()
                if not desk.closed
                and desk.worker.pool == pool
                and desk.worker.member not in self._dismissed
                and is_time_for(demand.seconds, self._ends.get(desk.worker.member), now)
            ]
        desks = [desk for desk in self._desks.values() if not desk.closed]
        with_gpu = [desk for desk in desks if desk.worker.gpus]
        without = [desk for desk in desks if not desk.worker.gpus]
        return (with_gpu or without) if demand.resource == "gpu" else (without or with_gpu)

    def _has_memory(self, desk: _Desk, demand: Demand) -> bool:
        limit = desk.worker.memory_bytes
        if not limit:
            return True
        group = [other for other in self._desks.values() if other.memory_group == desk.memory_group]
        others = sum(other.memory() for other in group if other is not desk)
        return others + desk.memory(demand.memory_bytes) <= limit
