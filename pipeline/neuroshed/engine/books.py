"""The books of a run: which blocks come next, what became of those that were sent, and the record of it.

Everything a coordinator knows but how to reach workers. A block counts as done once its outputs stand and the journal
says so on disk; only then do the blocks that read it become ready.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuroshed.engine.attempts import Attempts, Block, FailureOptions
from neuroshed.engine.dispatch import Demand
from neuroshed.engine.failures import Kinds, bounded_trace, error_line
from neuroshed.engine.pools import Backlog, add_up
from neuroshed.engine.progress import Failure, Progress, Rates, place_text
from neuroshed.engine.readiness import Key, Positions, Readiness
from neuroshed.engine.worker import Failed, Report
from neuroshed.geometry import Grid
from neuroshed.stages.base import Stage
from neuroshed.storage.journal import Journal
from neuroshed.storage.ledger import runs_of

# Blocks faster than this travel several to a job, so that scheduling stays a small part of the work.
JOB_SECONDS = 1.0
JOBS_PER_SECOND = 100
"""That a Dask scheduler takes with ease; the more workers, the longer the jobs."""
MAX_BLOCKS_PER_JOB = 256
READY_PER_THREAD = 8
"""Ready blocks of a step for each thread, beyond which nothing further up the flow is begun: intermediate data would
only pile up.
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """Blocks of one step that travel as one job."""

    key: Key
    positions: tuple[int, ...]
    alone: bool = False
    """Whether it may have ended a worker, and must have one of its own to show it."""

    @property
    def blocks(self) -> list[Block]:
        """Each by itself."""
        return [(*self.key, position) for position in self.positions]


class Books:
    """State of a run, from what its journal says to its end."""

    def __init__(
        self,
        journal: Journal,
        stages: Sequence[Stage],
        readiness: Readiness,
        progress: Progress,
        options: FailureOptions,
        discard: Callable[[Key, Positions], None],
    ) -> None:
        """`readiness` is started; `discard` deletes what blocks wrote that nothing reads any more."""
        self.journal, self.readiness, self.progress, self.options = journal, readiness, progress, options
        self.rates = Rates()
        self.attempts = Attempts(options)
        self.deaths = 0
        """Of workers with jobs."""
        self.stopped_by: Failure | None = None
        """The failure that stops the run, if failures do."""
        self._discard = discard
        self._kinds = Kinds()
        self._grids: dict[Key, Grid] = {}
        self._demands: dict[Key, Demand] = {}
        self._mean: dict[Key, float] = {}
        self._alone: list[Block] = []
        for stage in stages:
            for step in stage.steps:
                key = (stage.fingerprint, step.name)
                self._grids[key] = step.grid
                self._demands[key] = Demand(stage.resource(step.name), stage.memory_bytes(step.name))

    def grid(self, key: Key) -> Grid:
        """The blocks of a step."""
        return self._grids[key]

    def names(self, work: Work) -> list[str]:
        """Its blocks as a worker names what it is at."""
        key = work.key
        title, grid = self.progress.titles[key[0]], self._grids[key]
        return [f"{title} {key[1] or 'blocks'} {list(grid.index(position))}" for position in work.positions]

    def next_work(self, place: Callable[[Demand, bool], str | None], threads: int) -> tuple[Work, Demand, str] | None:
        """The next job and its worker, whom `place` names; None if nothing is ready that a worker has room for."""
        for number, block in enumerate(self._alone):
            key = block[:2]
            if (address := place(self._demands[key], True)) is not None:
                del self._alone[number]
                return Work(key, (block[2],), alone=True), self._demands[key], address
        for key, ready in self.readiness.ready():
            if (address := place(self._demands[key], False)) is not None:
                positions = self.readiness.take(key, self._blocks_per_job(key, ready, threads))
                return Work(key, tuple(positions.tolist())), self._demands[key], address
            if ready > READY_PER_THREAD * threads:
                return None
        return None

    def wanted(self) -> list[Demand]:
        """What ready blocks need, each step's once."""
        keys = dict.fromkeys([*(block[:2] for block in self._alone), *(key for key, _ in self.readiness.ready())])
        return [self._demands[key] for key in keys]

    def backlogs(self, pool_for: Callable[[Demand], str | None]) -> dict[str, Backlog]:
        """What is there to do, by the pool whose workers are to do it."""
        parts = []
        for key, counts in self.readiness.counts_by_step().items():
            demand, blocks = self._demands[key], counts.ready + counts.running
            parts.append((pool_for(demand), blocks, demand.seconds, blocks + counts.waiting))
        return add_up(parts)

    def wake(self, now: float) -> None:
        """Make blocks ready again whose time to wait is over."""
        for block, alone in self.attempts.due(now):
            if alone:
                self._alone.append(block)
            else:
                self.readiness.retry(block[:2], _positions([block[2]]))

    def back(self, work: Work) -> None:
        """Blocks that nobody worked on are ready as before."""
        if work.alone:
            self._alone += work.blocks
            return
        self.readiness.retry(work.key, _positions(work.positions))

    def report(self, reports: Sequence[tuple[Work, Report]]) -> None:
        """Record what jobs did. Returns when that is on disk."""
        finished: list[tuple[Key, Positions]] = []
        events = []
        for work, report in reports:
            if report.done:
                events.append(self._done(work, report))
                finished.append((work.key, _positions(report.done)))
            fault = report.device_fault
            tried = {*report.done, *(failed.position for failed in report.failed)}
            tried |= {fault.position} if fault else set()
            if rest := tuple(position for position in work.positions if position not in tried):
                self.back(Work(work.key, rest))
            for failed in report.failed:
                if failed.disk_full:
                    # Not the block's fault, and the run stops: it stays undone.
                    self.back(Work(work.key, (failed.position,)))
                elif not self.attempts.failed((*work.key, failed.position), time.monotonic()):
                    events.append(self._set_aside(work.key, failed, report.worker, report.host))
        self._record(events)
        self._finish(finished)
        for work, report in reports:
            if fault := report.device_fault:
                # Like the death of a worker: it may be the GPU's fault or the block's.
                self.died(Work(work.key, (fault.position,)), fault.error, fault.trace, report.worker, report.host)

    def died(self, work: Work, error: str, trace: str, worker: str, host: str) -> None:
        """Record that a worker died with a job. Any of its blocks may be the cause, so each goes alone from now on."""
        self.deaths += 1
        events = []
        for block in work.blocks:
            if self.attempts.died(block, time.monotonic()):
                continue
            failed = Failed(block[2], error_line(error), bounded_trace(trace), (), disk_full=False, seconds=0.0)
            events.append(self._set_aside(work.key, failed, worker, host))
        self._record(events)

    def discard(self, droppable: Sequence[tuple[Key, Positions]]) -> None:
        """Delete what nothing reads any more, once the journal says that it will not be there."""
        found = [(key, positions) for key, positions in droppable if positions.size]
        self._record([{"e": "dropped", "id": self._part(key), "at": runs_of(positions)} for key, positions in found])
        for key, positions in found:
            self.readiness.drop(key, positions)
            self._discard(key, positions)

    @property
    def idle(self) -> bool:
        """Whether nothing is ready, waits to be tried again, or is at a worker."""
        return self.readiness.finished and not self._alone and not self.attempts.waiting

    def _blocks_per_job(self, key: Key, ready: int, threads: int) -> int:
        mean = self._mean.get(key)
        if mean is None:
            return 1
        seconds = max(JOB_SECONDS, threads / JOBS_PER_SECOND)
        # The last blocks are shared among all workers.
        share = -(-ready // max(threads, 1))
        if self.readiness.passes(key):
            # However quick blocks are, two jobs a thread are two layers at most of what is not kept.
            counts = self._grids[key].counts
            share = min(share, math.prod(counts) // max(counts) // max(threads, 1))
        return max(min(int(seconds / max(mean, 1e-6)), MAX_BLOCKS_PER_JOB, share), 1)

    def _done(self, work: Work, report: Report) -> dict[str, Any]:
        mean = report.seconds / len(report.done)
        self._mean[work.key] = 0.8 * self._mean.get(work.key, mean) + 0.2 * mean
        self._demands[work.key] = replace(self._demands[work.key], seconds=self._mean[work.key])
        self.rates.note(work.key[0], len(report.done), int(report.figures.get("voxels", 0)))
        self.attempts.forget((*work.key, position) for position in report.done)
        return {
            "e": "done",
            "id": self._part(work.key),
            "at": runs_of(_positions(sorted(report.done))),
            "figures": {"seconds": round(report.seconds, 4), **report.figures},
            "worker": report.worker,
            "time": round(time.time(), 3),
        }

    def _set_aside(self, key: Key, failed: Failed, worker: str, host: str) -> dict[str, Any]:
        block = (*key, failed.position)
        attempts = self.attempts.count(block)
        self.attempts.forget([block])
        index = self._grids[key].index(failed.position)
        like = self._kinds.like(key[0], key[1], index, failed.error)
        detail = {"trace": failed.trace, "log": list(failed.log)} if like is None else {"like": place_text(*like)}
        event = {
            "e": "failed",
            "id": self._part(key),
            "at": [failed.position],
            "error": failed.error,
            **detail,
            "worker": worker,
            "host": host,
            "attempts": attempts,
            "time": round(time.time(), 3),
        }
        failure = Failure.of(self.progress.titles[key[0]], event, index, key[1])
        self.readiness.fail(key, _positions([failed.position]))
        self.progress.add([failure])
        log.error(
            "set aside after %d attempts: %s %s %s: %s", attempts, failure.stage, key[1], list(index), failed.error
        )
        if self.options.on_failure == "stop" and self.stopped_by is None:
            self.stopped_by = failure
        return event

    def _part(self, key: Key) -> int:
        """The number by which the journal knows a step's blocks."""
        return self.journal.part(*key, self._grids[key])

    def _record(self, events: Sequence[Mapping[str, Any]]) -> None:
        if events:
            self.journal.append(events)
            self.journal.flush()

    def _finish(self, finished: Sequence[tuple[Key, Positions]]) -> None:
        droppable = []
        for key, positions in finished:
            droppable += self.readiness.finish(key, positions)
        self.discard(droppable)


def _positions(values: Collection[int]) -> Positions:
    import numpy as np

    return np.fromiter(values, np.int64, len(values))
