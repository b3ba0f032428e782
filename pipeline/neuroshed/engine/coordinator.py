"""The coordinator: keeps a window of tasks in flight on Dask and a journal of what is true.

No task graph is ever built. Tasks are coordinates; workers load the stage themselves. A block counts as done once its
outputs stand on disk and the journal says so.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroshed.engine.clusters import ClusterConfig, connect, slots
from neuroshed.engine.readiness import Counts, Readiness, Task
from neuroshed.engine.worker import Outcome, run_blocks
from neuroshed.errors import StorageFullError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.registry import save_stage, stage_digest
from neuroshed.storage.journal import Journal, read_journal
from neuroshed.storage.locations import Location

# Enough that a worker never waits for the coordinator, few enough that the scheduler stays small.
WINDOW_PER_SLOT = 3
MAX_ATTEMPTS = 3
# Blocks faster than this travel several to a task, so that scheduling stays a small part of the work.
TASK_SECONDS = 0.5
MAX_BLOCKS_PER_TASK = 16


@dataclass(frozen=True)
class Failure:
    """A block that was set aside."""

    stage: str
    step: str
    index: Vec
    error: str
    trace: str


@dataclass
class Progress:
    """State of a run, for whoever watches: blocks by stage, in the order of the flow, and failures so far."""

    stages: dict[str, Counts]
    titles: dict[str, str]
    failures: list[Failure] = field(default_factory=list)
    restored: int = 0
    lost: list[str] = field(default_factory=list)
    """Stages of which blocks were done, but whose outputs somebody removed."""
    seconds: dict[str, float] = field(default_factory=dict)
    largest: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Voxels and id of the largest segment so far, by stage, of stages that say so."""

    def note(self, fingerprint: str, figures: Mapping[str, Any]) -> None:
        """Take in the figures of a finished block."""
        self.seconds[fingerprint] = self.seconds.get(fingerprint, 0.0) + figures["seconds"]
        if "largest_voxels" in figures:
            found = (figures["largest_voxels"], figures["largest_segment"])
            # Of equals the one with the smaller id, whatever the order in which blocks end.
            before = self.largest.get(fingerprint, (0, 0))
            self.largest[fingerprint] = max(found, before, key=lambda size: (size[0], -size[1]))


Watcher = Callable[[Progress], None]


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


def restore(run_folder: Location, stages: Sequence[Stage]) -> tuple[Readiness, Progress]:
    """What the journal says of these stages. Blocks of a stage whose outputs were removed do not count as done."""
    readiness = Readiness([(stage.fingerprint, step) for stage in stages for step in stage.steps])
    titles = {stage.fingerprint: stage.title for stage in stages}
    progress = Progress({}, titles)
    failures: dict[Task, Failure] = {}
    claimed = set()
    for event in read_journal(run_folder):
        if event["state"] == "lost":
            readiness.forget(event["stage"])
            progress.seconds.pop(event["stage"], None)
            progress.largest.pop(event["stage"], None)
            claimed.discard(event["stage"])
            continue
        z, y, x = event["block"]
        task = Task(event["stage"], event["step"], (z, y, x))
        if event["state"] == "done":
            readiness.restore(task)
            claimed.add(task.fingerprint)
            failures.pop(task, None)
            progress.note(task.fingerprint, event)
        elif readiness.knows(task):
            failures[task] = Failure(titles[task.fingerprint], task.step, task.index, event["error"], event["trace"])
    for stage in stages:
        if stage.fingerprint in claimed and not all(path.exists() for path in stage.marks):
            readiness.forget(stage.fingerprint)
            progress.lost.append(stage.fingerprint)
    progress.stages = readiness.counts()
    progress.restored = sum(count.done for count in progress.stages.values())
    progress.failures = list(failures.values())
    return readiness, progress


def execute(
    journal: Journal, stages: Sequence[Stage], cluster: ClusterConfig, watch: Watcher = lambda progress: None
) -> Progress:
    """Run every block of `stages` (upstream first) that the journal, opened for writing, does not hold as done.

    Returns the final state, failures included. Raises `StorageFullError` if a disk fills up, `RunFailedError` if the
    scheduler is lost; in both cases, and on any crash, calling again goes on where it stopped.
    """
    readiness, progress = restore(journal.run_folder, stages)
    progress.failures = []
    watch(progress)
    if all(count.done == count.total for count in progress.stages.values()):
        return progress
    # Before the stages' files are there again, without which the blocks would not be missed.
    journal.append({"stage": fingerprint, "state": "lost", "time": time.time()} for fingerprint in progress.lost)
    files = {}
    for stage in stages:
        path = save_stage(stage)
        files[stage.fingerprint] = path, stage_digest(path)
    for stage in stages:
        stage.prepare()
    readiness.start()
    with connect(cluster) as client:
        _Session(client, journal, readiness, progress, files, watch).run()
    return progress


class _Session:
    """One connection to a cluster, from the first task to the last."""

    def __init__(
        self,
        client: Any,
        journal: Journal,
        readiness: Readiness,
        progress: Progress,
        files: dict[str, tuple[Location, str]],
        watch: Watcher,
    ) -> None:
        self.client, self.journal, self.readiness = client, journal, readiness
        self.progress, self.files, self.watch = progress, files, watch
        self.attempts: dict[Task, int] = {}
        self.mean_seconds: dict[tuple[str, str], float] = {}
        self.in_flight: dict[Any, list[Task]] = {}
        # Blocks that were at a worker that died. One of them may have killed it, so they go alone, one at a time.
        self.suspects: list[Task] = []
        self.suspect_key: Any = None
        # Another session's task of the same name would answer for ours.
        self.name = uuid.uuid4().hex[:12]
        self.sent = 0

    def run(self) -> None:
        """Refill the window as tasks end, until nothing runs and nothing is ready."""
        from distributed import as_completed

        completed = as_completed(self._submit(), loop=self.client.loop, with_results=True, raise_errors=False)
        for batch in completed.batches():
            outcomes = [pair for future, result in batch for pair in self._outcomes(future, result)]
            self._record(outcomes)
            completed.update(self._submit())

    def _submit(self) -> list[Any]:
        futures = []
        if self.suspects and self.suspect_key is None:
            futures.append(self._send([self.suspects.pop(0)]))
            self.suspect_key = futures[0].key
        number = slots(self.client)
        while len(self.in_flight) < WINDOW_PER_SLOT * max(number, 1) and self.readiness.waiting_queue:
            futures.append(self._send(self._next_tasks(number)))
        return futures

    def _send(self, tasks: list[Task]) -> Any:
        first = tasks[0]
        # A tuple key with a constant first element: Dask keeps a record of every distinct key prefix for ever.
        key = ("neuroshed", self.name, self.sent, first.fingerprint[:12], first.step)
        self.sent += 1
        future = self.client.submit(
            run_blocks, *self.files[first.fingerprint], first.step, [task.index for task in tasks], key=key, pure=False
        )
        self.in_flight[future.key] = tasks
        return future

    def _next_tasks(self, slots_now: int) -> list[Task]:
        first = next(self.readiness.take(1))
        mean = self.mean_seconds.get((first.fingerprint, first.step), TASK_SECONDS)
        share = -(-self.readiness.waiting_queue // max(slots_now, 1))
        number = min(int(TASK_SECONDS / max(mean, 1e-3)), MAX_BLOCKS_PER_TASK, share)
        more = []
        for task in self.readiness.take(number - 1):
            if (task.fingerprint, task.step) != (first.fingerprint, first.step):
                self.readiness.retry(task)
                break
            more.append(task)
        return [first, *more]

    def _outcomes(self, future: Any, result: Any) -> list[tuple[Task, Outcome]]:
        from distributed import KilledWorker

        tasks = self.in_flight.pop(future.key)
        if future.key == self.suspect_key:
            self.suspect_key = None
        if future.status == "finished":
            return list(zip(tasks, result, strict=True))
        reason = result[1] if isinstance(result, tuple) else result
        died = isinstance(reason, KilledWorker)
        error = f"task {future.status}: {type(reason).__name__}: {reason}".splitlines()[0]
        if died:
            error = "its worker process died; the usual cause is too little memory: use smaller blocks or fewer workers"
        return [(task, Outcome(task.index, 0.0, error=error, worker_died=died)) for task in tasks]

    def _record(self, outcomes: list[tuple[Task, Outcome]]) -> None:
        events, full = [], None
        for task, outcome in outcomes:
            if outcome.error is None:
                events.append(self._done(task, outcome))
                continue
            full = outcome.error if outcome.disk_full else full
            self.attempts[task] = self.attempts.get(task, 0) + 1
            if outcome.disk_full:
                # Not the block's fault, and the run stops: it stays undone.
                continue
            if self.attempts[task] >= MAX_ATTEMPTS:
                events.append(self._failed(task, outcome))
            elif outcome.worker_died:
                self.suspects.append(task)
            else:
                self.readiness.retry(task)
        self.journal.append(events)
        for task, outcome in outcomes:
            if outcome.error is None:
                self.readiness.finish(task)
        self.progress.stages = self.readiness.counts()
        self.watch(self.progress)
        if full:
            raise StorageFullError(f"no space left for run {self.journal.run_folder} ({full})")

    def _done(self, task: Task, outcome: Outcome) -> dict[str, Any]:
        key = (task.fingerprint, task.step)
        self.mean_seconds[key] = 0.8 * self.mean_seconds.get(key, outcome.seconds) + 0.2 * outcome.seconds
        self.progress.note(task.fingerprint, {"seconds": outcome.seconds, **outcome.figures})
        return _event(task, outcome, "done") | {"voxels": outcome.voxels} | dict(outcome.figures)

    def _failed(self, task: Task, outcome: Outcome) -> dict[str, Any]:
        self.readiness.fail(task)
        error = outcome.error or ""
        title = self.progress.titles[task.fingerprint]
        self.progress.failures.append(Failure(title, task.step, task.index, error, outcome.trace))
        return _event(task, outcome, "failed") | {"error": error, "trace": outcome.trace}


def _event(task: Task, outcome: Outcome, state: str) -> dict[str, Any]:
    return {
        "stage": task.fingerprint,
        "step": task.step,
        "block": task.index,
        "state": state,
        "seconds": round(outcome.seconds, 4),
        "time": round(time.time(), 3),
    }
