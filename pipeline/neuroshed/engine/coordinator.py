"""The coordinator: from what the journal says to everything done, through any loss of workers or scheduler."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroshed.engine.attempts import FailureOptions
from neuroshed.engine.books import Books
from neuroshed.engine.clusters import Connection, connect
from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.control import Control, Wish
from neuroshed.engine.discarding import Discarding
from neuroshed.engine.progress import Failure, Progress, Watcher
from neuroshed.engine.readiness import Key, Positions, Readiness
from neuroshed.engine.session import Orders, SchedulerLostError, Session
from neuroshed.errors import WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.stages.registry import save_stage, stage_digest
from neuroshed.storage.files import remove_drafts
from neuroshed.storage.journal import Journal
from neuroshed.storage.ledger import Ledger

log = logging.getLogger(__name__)

RECONNECT_SECONDS = 2.0
"""Between two tries to reach a scheduler that is gone."""

Tick = Callable[[Books, Connection, dict[str, dict[str, Any]]], None]


@dataclass(frozen=True)
class Options:
    """How a run is worked on; nothing of it changes a result."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    failures: FailureOptions = field(default_factory=FailureOptions)
    droppable: frozenset[Key] = frozenset()
    """Steps whose outputs are deleted as soon as everything that reads them is done."""
    verify_writes: bool = False
    control: Control = field(default_factory=Control)
    again: Callable[[Failure], bool] = lambda failure: True
    """Which of the blocks that failed before are tried again; the others stay set aside."""
    watch: Watcher = lambda progress: None
    tick: Tick = lambda books, connection, workers: None
    """Called every second while connected, with the workers as the scheduler lists them."""


def ordered(last: Sequence[Stage]) -> list[Stage]:
    """The given stages and all that they read from, upstream first, each once."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for upstream in stage.upstream:
            visit(upstream)
        found.setdefault(stage.fingerprint, stage)

    for stage in last:
        visit(stage)
    return list(found.values())


def restore(
    ledger: Ledger, stages: Sequence[Stage], droppable: Collection[Key] = frozenset()
) -> tuple[Readiness, Progress, list[tuple[Key, Positions]]]:
    """What the journal says of these stages, and the blocks whose outputs nothing will read.

    Blocks of a stage whose outputs were removed do not count as done.
    """
    readiness = Readiness([(stage.fingerprint, step) for stage in stages for step in stage.steps], droppable)
    titles = {stage.fingerprint: stage.title for stage in stages}
    progress = Progress({}, titles)
    for stage in stages:
        found = [(step, ledger.done(stage.fingerprint, step.name, step.grid)) for step in stage.steps]
        if any(done.any() for _, done in found) and not all(path.exists() for path in stage.marks):
            progress.lost.append(stage.fingerprint)
            continue
        for step, done in found:
            dropped = ledger.dropped(stage.fingerprint, step.name, step.grid)
            readiness.restore((stage.fingerprint, step.name), done, dropped)
        progress.figures[stage.fingerprint] = dict(ledger.figures.get(stage.fingerprint, {}))
        progress.add(_failures(ledger, stage))
    droppable_now = readiness.start()
    progress.stages = readiness.counts()
    progress.restored = sum(count.done for count in progress.stages.values())
    return readiness, progress, droppable_now


def _failures(ledger: Ledger, stage: Stage) -> list[Failure]:
    """Of blocks that belong to the stage's steps; a trial region's may lie elsewhere, and masks may leave some out."""
    steps = {step.name: step for step in stage.steps}
    return [
        Failure.of(stage.title, event, index, step)
        for (fingerprint, step, index), event in ledger.failures.items()
        if fingerprint == stage.fingerprint and step in steps and steps[step].holds(index)
    ]


def execute(journal: Journal, stages: Sequence[Stage], options: Options) -> Progress:
    """Run every block of `stages` (upstream first) that the journal, opened for writing, does not hold as done.

    Returns the final state, failures included, also if somebody asked to stop. Raises `StorageFullError` if a disk
    fills up, `SchedulerLostError` if the scheduler and `RunFailedError` if all workers are lost for longer than the
    cluster's patience; in all these cases, and on any crash, calling again goes on where it stopped.
    """
    readiness, progress, droppable = restore(journal.ledger, stages, options.droppable)
    _set_aside(readiness, progress, stages, options.again)
    options.watch(progress)
    killed = _was_killed(journal.ledger)
    if killed:
        _remove_drafts(stages)
    with Discarding(stages) as discarding:
        books = Books(journal, stages, readiness, progress, options.failures, discarding.discard)
        if killed:
            # The journal says that outputs are dropped before they are deleted, so some of them may still stand.
            for key, dropped in readiness.dropped():
                discarding.finish(key, dropped)
        books.discard(droppable)
        if not progress.finished:
            _work(books, stages, options)
    if books.deaths:
        _remove_drafts(stages)
    return progress


def _was_killed(ledger: Ledger) -> bool:
    """Whether the session before this one did not come to its end."""
    before = list(ledger.sessions)[:-1]
    return bool(before) and before[-1]["e"] != "end"


def _remove_drafts(stages: Sequence[Stage]) -> None:
    """Remove what killed writers left half written; nobody looks at it, but it takes space."""
    found = sum(remove_drafts(stage.folder.local) for stage in stages if stage.steps and stage.folder.is_local)
    if found:
        log.info("removed %d files that killed writers had not finished", found)


def _set_aside(
    readiness: Readiness, progress: Progress, stages: Sequence[Stage], again: Callable[[Failure], bool]
) -> None:
    """Leave out the failed blocks that are not to be tried again; they stay among the failures."""
    left = [failure for failure in progress.failures if not again(failure)]
    progress.failures, progress.failed = [], Counter()
    progress.add(left)
    grids = {(stage.title, step.name): (stage, step.grid) for stage in stages for step in stage.steps}
    for failure in progress.failures:
        stage, grid = grids[failure.stage, failure.step]
        readiness.set_aside((stage.fingerprint, failure.step), np.array([grid.position(failure.index)]))
    progress.stages = readiness.counts()


def _work(books: Books, stages: Sequence[Stage], options: Options) -> None:
    # Before the stages' files are there again, without which the blocks would not be missed.
    books.journal.append([{"e": "lost", "stage": fingerprint} for fingerprint in books.progress.lost])
    books.journal.flush()
    files = {}
    for stage in stages:
        path = save_stage(stage)
        files[stage.fingerprint] = str(path), stage_digest(path)
    for stage in stages:
        stage.prepare()
    orders = Orders(files, options.failures.block_seconds, options.verify_writes)
    lost_at: float | None = None
    while True:
        try:
            with connect(options.cluster, books.journal.run_folder) as connection:
                lost_at = None
                _session(connection, books, orders, options)
                return
        except (SchedulerLostError, WorkflowError) as error:
            # One that never answered is the user's to mend; one that did may come back.
            if isinstance(error, WorkflowError) and lost_at is None:
                raise
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            patience = options.cluster.patience_seconds if options.cluster.kind in ("address", "kubernetes") else 0.0
            if now - lost_at >= patience or options.control.wish:
                raise SchedulerLostError(str(error)) from error
            log.warning("the scheduler is lost (%s); trying again for %.0f s", error, patience - (now - lost_at))
            books.progress.note = "the scheduler is lost; trying to reach it again"
            options.watch(books.progress)
            time.sleep(min(RECONNECT_SECONDS, patience))


def _session(connection: Connection, books: Books, orders: Orders, options: Options) -> None:
    progress = books.progress

    def watch() -> None:
        progress.stages, progress.figures = books.readiness.counts(), books.journal.ledger.figures
        options.watch(progress)

    def tick(workers: dict[str, dict[str, Any]]) -> None:
        progress.workers = len(workers)
        books.journal.check()
        watch()
        options.tick(books, connection, workers)

    try:
        Session(connection, books, orders, options.control, watch, tick).run(options.cluster.patience_seconds)
    finally:
        watch()
    if options.control.wish == Wish.STOP:
        log.warning("stopped: %s", options.control.reason)
