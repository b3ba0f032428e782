"""One connection to a cluster, from the first job to the last: jobs go out, reports come in, workers come and go.

No task graph is ever built. A job names blocks by their places; workers load the stage themselves.
"""

from __future__ import annotations

import functools
import logging
import queue
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuroshed.engine.admission import Admission
from neuroshed.engine.books import Books, Work
from neuroshed.engine.clusters import Connection
from neuroshed.engine.control import Control, Wish
from neuroshed.engine.dispatch import Demand, Windows
from neuroshed.engine.scaler import Scaler
from neuroshed.engine.watchdog import Left, at_work, take_faults
from neuroshed.engine.worker import Job, Report, run_job
from neuroshed.errors import RunFailedError, StorageFullError

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""How often workers are counted and whoever watches is told, if nothing else happens."""
LAST_WORDS_SECONDS = 0.5
"""Longest wait for what a worker leaves when it dies, if none is seen that has still to end."""
DYING_SECONDS = 10.0
"""Longest wait for one that is seen: connections are closed before the rest of a process."""
OUT_OF_MEMORY = "its worker process died; the usual cause is too little memory: use smaller blocks or fewer workers"


@dataclass(frozen=True, slots=True)
class _Sent:
    work: Work
    demand: Demand
    future: Any
    worker: str
    host: str


class SchedulerLostError(OSError):
    """The scheduler does not answer any more."""


@dataclass(frozen=True)
class Orders:
    """What is the same for all jobs of a run: each stage's file and its digest, by fingerprint, and how blocks run."""

    files: dict[str, tuple[str, str]]
    seconds: float | None
    verify_writes: bool


class Session:
    """Sends what the books say comes next until nothing is left, somebody stops it, or the scheduler is lost."""

    def __init__(
        self,
        connection: Connection,
        books: Books,
        orders: Orders,
        control: Control,
        watch: Callable[[], None],
        tick: Callable[[dict[str, dict[str, Any]]], None],
    ) -> None:
        """`watch` is called whenever blocks ended, `tick` every second with the workers as the scheduler lists them."""
        self.connection, self.books, self.orders = connection, books, orders
        self.control, self._watch, self._tell = control, watch, tick
        fleet = connection.fleet
        self.windows = Windows(connection.pool_for if fleet else None)
        self._scaler = Scaler(fleet, connection.pools) if fleet else None
        self._admission = Admission(connection, self._refuse)
        self._sent: dict[int, _Sent] = {}
        self._ended: queue.SimpleQueue[tuple[int, Report | BaseException]] = queue.SimpleQueue()
        # Another session's job of the same name would answer for ours.
        self._name = uuid.uuid4().hex[:12]
        self._number = 0
        self._next_tick = self._next_report = 0.0
        self._reports: list[tuple[Work, Report]] = []
        # Workers that died, as long as the scheduler still lists them.
        self._dead: set[str] = set()
        # What workers left whose death was not yet told.
        self._words: list[Left] = []
        self._without_workers: float | None = None
        # Workers, by address, whose GPU has failed, and their names; those that were told to start again.
        self._failing: dict[str, str] = {}
        self._restarting: set[str] = set()

    def run(self, patience: float) -> None:
        """Returns when nothing is left to do, or when what was begun is finished after a wish to drain.

        Raises `SchedulerLostError`, `StorageFullError` if a disk is full, `RunFailedError` if no worker came for
        `patience` seconds. Blocks that were on their way are as if never sent.
        """
        try:
            while True:
                draining = bool(self.control.wish or self.books.stopped_by)
                if draining:
                    self._take_back()
                self._tick(patience)
                self.books.wake(time.monotonic())
                if self.control.wish == Wish.STOP:
                    return
                if not draining:
                    self._send()
                if not self._sent and (draining or self.books.idle):
                    return
                self._collect()
        finally:
            self._leave()
            self._report()

    def _send(self) -> None:
        threads = self.windows.threads
        while (found := self.books.next_work(self.windows.place, threads)) is not None:
            work, demand, address = found
            self._number += 1
            file, digest = self.orders.files[work.key[0]]
            job = Job(
                file,
                digest,
                work.key[1],
                work.positions,
                self.orders.seconds,
                self.orders.verify_writes,
                check=True,
                own_process=self.connection.processes,
            )
            # A tuple key with a constant first element: Dask keeps a record of every distinct key prefix for ever.
            try:
                future = self.connection.submit(run_job, job, ("neuroshed", self._name, self._number), address)
            except OSError as error:
                self.books.back(work)
                raise SchedulerLostError(str(error)) from error
            host = next(worker.host for worker in self.windows.workers if worker.address == address)
            self._sent[self._number] = _Sent(work, demand, future, address, host)
            self.windows.add(self._number, address, demand, work.alone)
            self.connection.client.loop.add_callback(self._await, self._number, future)

    async def _await(self, number: int, future: Any) -> None:
        """Runs in the loop of Dask's client, which fetches results there."""
        try:
            outcome = await future
        except BaseException as error:
            outcome = error
        self._ended.put((number, outcome))

    def _collect(self) -> None:
        """Wait for the next job to end, or for a while, and take in all that have ended."""
        ended = []
        try:
            ended.append(self._ended.get(timeout=self._patience()))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        full = None
        for number, outcome in ended:
            if isinstance(outcome, Report):
                sent = self._forget(number)
                if sent is not None:
                    self._reports.append((sent.work, outcome))
                    self._look_at_device(sent, outcome)
                    full = next((failed.error for failed in outcome.failed if failed.disk_full), full)
            else:
                self._failed(number, outcome)
        if full or not self._sent or time.monotonic() >= self._next_report:
            self._report()
        if full:
            raise StorageFullError(f"no space left for run {self.books.journal.run_folder} ({full})")

    def _report(self) -> None:
        """Have the books record what came in; not more often than pays, where each record is an object in a store."""
        reports, self._reports = self._reports, []
        if reports:
            self.books.report(reports)
            self._next_report = time.monotonic() + self.books.journal.flush_seconds
            self._watch()

    def _patience(self) -> float:
        until = min(self._next_tick, self.books.attempts.next_due or self._next_tick)
        if self._reports:
            until = min(until, self._next_report)
        return min(max(until - time.monotonic(), 0.0), TICK_SECONDS)

    def _failed(self, number: int, error: BaseException) -> None:
        """A job ended without a report."""
        from distributed import KilledWorker

        if number not in self._sent:
            return
        if isinstance(error, KilledWorker):
            self._died(self._sent[number].worker)
            return
        if self.connection.client.status != "running" or isinstance(error, OSError):
            raise SchedulerLostError(f"{type(error).__name__}: {error}".splitlines()[0])
        sent = self._forget(number)
        assert sent is not None
        log.warning("a job of %d blocks came back: %s: %s", len(sent.work.positions), type(error).__name__, error)
        # Not through its blocks: what they raise is in the report.
        self.books.died(sent.work, f"job lost: {type(error).__name__}: {error}".splitlines()[0], "", sent.worker, "")

    def _died(self, address: str) -> None:
        """A worker is gone. Each of its jobs may be to blame: of those that it had finished word may be lost."""
        self._dead.add(address)
        self._failing.pop(address, None)
        numbers = self.windows.leave(address)
        trace = self._last_words([self._sent[number].work for number in numbers]) if numbers else ""
        error = trace.splitlines()[0] if trace else OUT_OF_MEMORY
        for number in numbers:
            sent = self._sent.pop(number)
            log.warning("worker %s died with %d blocks", sent.worker, len(sent.work.positions))
            self.books.died(sent.work, error, trace, sent.worker, sent.host)

    def _last_words(self, works: list[Work]) -> str:
        """What a worker on this machine that was at one of these left when it died; nothing if it was killed. Its end
        may be known here before it is quite over, and others may have died at the same time.
        """
        folder = self.connection.faults
        if folder is None:
            return ""
        names = [name for work in works for name in self.books.names(work)]

        def ours(running: str) -> bool:
            return any(name in running for name in names)

        begin = time.monotonic()
        while True:
            self._words += take_faults(folder)
            found = [left for left in self._words if ours(left.running)]
            if found:
                self._words = [left for left in self._words if left not in found]
                return max(found, key=lambda left: len(left.text)).text
            dying = any(ours(running) for running in at_work(folder))
            if time.monotonic() - begin > (DYING_SECONDS if dying else LAST_WORDS_SECONDS):
                return ""
            time.sleep(LAST_WORDS_SECONDS / 10)

    def _forget(self, number: int) -> _Sent | None:
        self.windows.remove(number)
        return self._sent.pop(number, None)

    def _tick(self, patience: float) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        try:
            found = self.connection.workers()
        except OSError as error:
            raise SchedulerLostError(str(error)) from error
        for address in self.windows.missing(found.keys()):
            self._died(address)
        self._dead &= found.keys()
        alive = {address: info for address, info in found.items() if address not in self._dead}
        found = self._admission.sift(alive)
        self.windows.update(self.connection.described(address, info) for address, info in found.items())
        self._start_again()
        if self._scaler:
            self._scaler.tick(self.books.backlogs(self.connection.pool_for), self.windows)
        self._check_workers(found, patience, now)
        self._tell(found)

    def _check_workers(self, found: dict[str, Any], patience: float, now: float) -> None:
        """Say what is waited for, and give up after `patience` seconds without any worker that fits."""
        wanted = self.books.wanted()
        lacking = [demand for demand in wanted if not self.windows.fits_somewhere(demand)]
        if (found and len(lacking) < len(wanted)) or self._sent or not wanted:
            self._without_workers, self.books.progress.note = None, ""
            return
        need = f"a worker with {lacking[0].memory_bytes / 1e9:.1f} GB" if found and lacking else "workers"
        queued = self._scaler.waiting() if self._scaler else 0
        self.books.progress.note = f"waiting for {need}" + (f", {queued} in the queue" if queued else "")
        if told := self._admission.told:
            self.books.progress.note += f"; {told}"
        if queued:
            self._without_workers = None
            return
        if self._without_workers is None:
            self._without_workers = now
            log.warning("waiting for %s", need)
        if now - self._without_workers > patience:
            raise RunFailedError(
                f"run {self.books.journal.run_folder} waited {patience:.0f} s for {need} in vain; start some, or use "
                f"smaller blocks{f' ({told})' if told else ''}"
            )

    def _refuse(self, name: str, reason: str, *, broken: bool = False) -> None:
        """A worker is not to be used: if it was started for this run, it is let go with what belongs to it, unless that
        is still of use.
        """
        member = name.rpartition("/")[0]
        used = any(w.member == member and w.address not in self._failing for w in self.windows.workers)
        if self._scaler and not used:
            self._scaler.refuse(member, reason, broken=broken)

    def _look_at_device(self, sent: _Sent, report: Report) -> None:
        """If a GPU has failed, its worker gets nothing more, and is started again or given up when it has nothing."""
        if report.done:
            self._admission.device_works(report.worker, sent.work.key)
        fault = report.device_fault
        if fault is None or sent.worker in self._failing:
            return
        self._failing[sent.worker] = report.worker
        given_up = self._admission.device_failed(report.worker, report.host, sent.work.key, fault.error)
        for number in self.windows.close(sent.worker):
            if (held := self._forget(number)) is not None:
                self.connection.cancel(held.future)
                self.books.back(held.work)
        if given_up:
            self._refuse(report.worker, self._admission.reasons[report.worker], broken=True)

    def _start_again(self) -> None:
        """Workers whose GPU has failed and that have nothing left to do, if they were not given up."""
        for address in self.windows.closed():
            name = self._failing.get(address)
            if name is not None and name not in self._admission.reasons and address not in self._restarting:
                self._restarting.add(address)
                self.connection.restart(address, functools.partial(self._admission.give_up, name, address))
        self._restarting &= {*self.windows.closed()}

    def _take_back(self) -> None:
        """Take back jobs that no worker is at yet."""
        numbers = [number for number in self._sent if not self.windows.at_work(number)]
        for sent in [self._forget(number) for number in numbers]:
            if sent is not None:
                self.connection.cancel(sent.future)
                self.books.back(sent.work)

    def _leave(self) -> None:
        for number in list(self._sent):
            sent = self._forget(number)
            if sent is not None:
                self.connection.cancel(sent.future)
                self.books.back(sent.work)
