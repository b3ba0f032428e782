"""What goes with a session of a coordinator: its log, its provenance, what others see of it, and their requests.

A thread of its own sees to files in the run folder, so that the coordinator never waits for them, and so that a request
is heard whatever the coordinator is at. No failure of it harms the run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from neuroshed.engine.books import Books
from neuroshed.engine.clusters import Connection
from neuroshed.engine.control import Wish
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Progress
from neuroshed.stages.base import Stage
from neuroshed.storage.holders import Holder
from neuroshed.storage.journal import Journal
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow import provenance
from neuroshed.workflow.live import LIVE_FILE, Live, put_live
from neuroshed.workflow.logs import RunLog
from neuroshed.workflow.monitor import Monitor, MonitorOptions
from neuroshed.workflow.requests import hear
from neuroshed.workflow.summary import history

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Every:
    """Seconds between two looks at the run folder."""

    live: float
    requests: float
    log: float


ON_DISK = Every(live=2.0, requests=2.0, log=30.0)
IN_BUCKET = Every(live=15.0, requests=10.0, log=30.0)
"""Each is a request that the store charges for."""


@contextmanager
def attended(
    journal: Journal, stages: Sequence[Stage], options: Options, monitored: MonitorOptions | None = None
) -> Iterator[Options]:
    """While a coordinator works with the options that this gives, others can follow it and ask it to stop.

    The journal must be open for writing.
    """
    run_folder = journal.run_folder
    holder = holder_of(run_folder)
    assert holder is not None
    live = Live(holder, options.control, stages, history(journal.ledger)["started"])
    entry = provenance.provenance(sys.argv, os.environ)
    provenance.record(run_folder, entry)
    with RunLog(run_folder, holder.token[:12]) as run_log:
        _log_start(entry, options, stages)
        narrator = _Narrator(options)
        attendant = _Attendant(run_folder, holder, options, live, run_log)
        monitor = Monitor(monitored or MonitorOptions(), run_folder, live)

        def watch(progress: Progress) -> None:
            live.watch(progress)
            narrator.watch(progress)
            monitor.watch(progress)
            options.watch(progress)

        def tick(books: Books, connection: Connection, workers: dict[str, dict[str, Any]]) -> None:
            live.tick(books, connection, workers)
            narrator.tick(books, workers)
            options.tick(books, connection, workers)

        try:
            with attendant, monitor:
                yield replace(options, watch=watch, tick=tick)
        except BaseException as error:
            log.error("ended by %s: %s", type(error).__name__, error)
            raise
        log.info("ended: everything is done")


class _Attendant:
    """The thread."""

    def __init__(self, run_folder: Location, holder: Holder, options: Options, live: Live, run_log: RunLog) -> None:
        self._run_folder, self._holder, self._live = run_folder, holder, live
        self._control = options.control
        every = ON_DISK if run_folder.is_local else IN_BUCKET
        self._duties: list[tuple[float, Callable[[], None]]] = [
            (every.requests, self._hear),
            (every.live, self._show),
            (every.log, run_log.ship),
        ]
        self._ended = threading.Event()
        self._troubled: set[str] = set()
        self._thread = threading.Thread(target=self._attend, name="neuroshed-attendant", daemon=True)

    def __enter__(self) -> _Attendant:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        # Whoever waits for an answer has it: the run is given back.
        self._safely(self._hear)
        self._safely((self._run_folder / LIVE_FILE).delete)

    def _attend(self) -> None:
        due = [0.0] * len(self._duties)
        while True:
            for number, (seconds, duty) in enumerate(self._duties):
                if time.monotonic() >= due[number]:
                    self._safely(duty)
                    due[number] = time.monotonic() + seconds
            if self._ended.wait(max(min(due) - time.monotonic(), 0.0)):
                return

    def _safely(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except Exception as error:
            # Whatever the store's client raises. Once is enough to know.
            if duty.__name__ not in self._troubled:
                log.warning("others cannot follow run %s for now (%s)", self._run_folder, error)
            self._troubled.add(duty.__name__)
        else:
            self._troubled.discard(duty.__name__)

    def _hear(self) -> None:
        heard = hear(self._run_folder, self._holder, self._control)
        if heard:
            log.info("heard a request: %s", heard)

    def _show(self) -> None:
        if self._live.snapshot is not None:
            put_live(self._run_folder, self._live.snapshot)


class _Narrator:
    """Logs what changes: workers that come and go, blocks to be tried again, wishes to stop, stages that end."""

    def __init__(self, options: Options) -> None:
        self._control = options.control
        self._wish = Wish.RUN
        self._known: dict[str, str] = {}
        self._retried = 0
        self._unfinished: set[str] | None = None
        self._note = ""

    def watch(self, progress: Progress) -> None:
        unfinished = {
            fingerprint
            for fingerprint, count in progress.stages.items()
            if count.done + count.skipped + count.failed < count.total
        }
        if self._unfinished is None:
            for fingerprint, count in progress.stages.items():
                log.info("stage %s: %d of %d blocks done", progress.titles[fingerprint], count.done, count.total)
        else:
            for fingerprint in self._unfinished - unfinished:
                count = progress.stages[fingerprint]
                log.info("stage %s ended: %d done, %d failed", progress.titles[fingerprint], count.done, count.failed)
        self._unfinished = unfinished
        if self._control.wish != self._wish:
            self._wish = self._control.wish
            log.warning("to %s: %s", self._wish.name.lower(), self._control.reason)

    def tick(self, books: Books, workers: dict[str, dict[str, Any]]) -> None:
        found = {address: f"{info.get('name')} on {info.get('host')}" for address, info in workers.items()}
        for joined in sorted(found.keys() - self._known.keys()):
            log.info("worker %s joined (%s)", found[joined], joined)
        for left in sorted(self._known.keys() - found.keys()):
            log.warning("worker %s is gone (%s)", self._known[left], left)
        self._known = found
        waiting = books.attempts.waiting
        if waiting > self._retried:
            log.warning("blocks that wait to be tried again: %d", waiting)
        self._retried = waiting


def _log_start(entry: dict[str, Any], options: Options, stages: Sequence[Stage]) -> None:
    packages = ", ".join(f"{name} {version}" for name, version in entry["packages"].items())
    log.info("session of process %d on %s: %s", entry["pid"], entry["host"], " ".join(entry["command"]))
    log.info("neuroshed %s, Python %s, %s", entry["neuroshed"], entry["python"], packages)
    log.info("cluster: %s", options.cluster.model_dump_json(exclude_none=True))
    log.info("stages: %s", ", ".join(stage.title for stage in stages if stage.steps))
