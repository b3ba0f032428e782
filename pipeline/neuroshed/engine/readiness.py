"""Which blocks may run: the one geometric rule, kept up to date event by event. Pure: no store, no Dask, no clock.

A block may run when every upstream block that its read boxes touch is done. When a block ends, only the blocks whose
read boxes touch it are looked at again.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuroshed.geometry import Vec, sub
from neuroshed.stages.base import Need, Step

WAITING, READY, RUNNING, DONE, FAILED = range(5)


@dataclass(frozen=True, slots=True)
class Task:
    """One block of one step of one stage."""

    fingerprint: str
    step: str
    index: Vec


@dataclass(frozen=True, slots=True)
class Counts:
    """How many blocks of a stage are in which state."""

    total: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0


class Readiness:
    """States of all blocks of a run, one byte each."""

    def __init__(self, steps: Sequence[tuple[str, Step]]) -> None:
        """`steps` are (fingerprint of the stage, step), upstream before downstream. What they need of stages that are
        not among them counts as done.
        """
        self._steps = {(fingerprint, step.name): step for fingerprint, step in steps}
        self._depth = {key: depth for depth, key in enumerate(self._steps)}
        self._states = {key: np.zeros(len(step.grid), np.uint8) for key, step in self._steps.items()}
        self._readers: dict[tuple[str, str], list[tuple[tuple[str, str], Need]]] = {key: [] for key in self._steps}
        for key, step in self._steps.items():
            for need in step.needs:
                if (need.fingerprint, need.step) not in self._steps:
                    continue
                self._readers[need.fingerprint, need.step].append((key, need))
        self._queue: list[tuple[int, int, Task]] = []

    def restore(self, task: Task) -> None:
        """Note a block that was done before; blocks that are not of this run are none of its business."""
        if self.knows(task):
            self._set(task, DONE)

    def forget(self, fingerprint: str) -> None:
        """None of a stage's blocks counts as done."""
        for (stage, _), states in self._states.items():
            if stage == fingerprint:
                states[:] = WAITING

    def knows(self, task: Task) -> bool:
        """Whether the block belongs to this run; a journal may hold blocks of a trial region, which reaches
        elsewhere.
        """
        step = self._steps.get((task.fingerprint, task.step))
        if step is None:
            return False
        return all(0 <= i < n for i, n in zip(sub(task.index, step.grid.first), step.grid.counts, strict=True))

    def start(self) -> None:
        """Find all blocks that may run now."""
        for key, step in self._steps.items():
            for position in np.flatnonzero(self._states[key] == WAITING):
                self._consider(key, step.grid.index(int(position)))

    def take(self, count: int) -> Iterator[Task]:
        """Up to `count` ready blocks, those furthest down the flow first, so that old work is finished before new
        begins.
        """
        while self._queue and count > 0:
            _, _, task = heapq.heappop(self._queue)
            self._set(task, RUNNING)
            count -= 1
            yield task

    def finish(self, task: Task) -> None:
        """A block is done: look again at the blocks that read it."""
        self._set(task, DONE)
        key = (task.fingerprint, task.step)
        box = self._steps[key].grid.block_box(task.index)
        for reader, need in self._readers[key]:
            # A reader's box grown by (low, high) touches this box where this box grown the other way round touches it.
            for index in self._steps[reader].grid.touching(box.grow(need.high, need.low)):
                self._consider(reader, index)

    def retry(self, task: Task) -> None:
        """Put a block back among the ready ones."""
        self._push((task.fingerprint, task.step), task.index)

    def fail(self, task: Task) -> None:
        """Set a block aside; what reads it will wait for ever."""
        self._set(task, FAILED)

    @property
    def waiting_queue(self) -> int:
        """Number of blocks that could run now."""
        return len(self._queue)

    def counts(self) -> dict[str, Counts]:
        """Blocks by stage fingerprint."""
        out: dict[str, Counts] = {}
        for (fingerprint, _), states in self._states.items():
            before = out.get(fingerprint, Counts())
            number = np.bincount(states, minlength=5).tolist()
            out[fingerprint] = Counts(
                total=before.total + states.size,
                done=before.done + number[DONE],
                running=before.running + number[RUNNING],
                failed=before.failed + number[FAILED],
            )
        return out

    def _consider(self, key: tuple[str, str], index: Vec) -> None:
        step = self._steps[key]
        if self._states[key][step.grid.position(index)] != WAITING:
            return
        box = step.grid.block_box(index)
        for need in step.needs:
            upstream = (need.fingerprint, need.step)
            if upstream not in self._steps:
                continue
            grid, states = self._steps[upstream].grid, self._states[upstream]
            if any(states[grid.position(i)] != DONE for i in grid.touching(box.grow(need.low, need.high))):
                return
        self._push(key, index)

    def _push(self, key: tuple[str, str], index: Vec) -> None:
        step = self._steps[key]
        position = step.grid.position(index)
        self._states[key][position] = READY
        heapq.heappush(self._queue, (-self._depth[key], position, Task(*key, index)))

    def _set(self, task: Task, state: int) -> None:
        key = (task.fingerprint, task.step)
        self._states[key][self._steps[key].grid.position(task.index)] = state
