"""The state of a run for whoever watches it: blocks by stage, failures, speed and what is left."""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuroshed.engine.readiness import Counts
from neuroshed.geometry import Vec

RATE_SECONDS = 120.0
"""Speeds are those of so long a time before now."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A block that was set aside."""

    stage: str
    step: str
    index: Vec
    error: str
    trace: str
    worker: str = ""
    host: str = ""
    attempts: int = 0
    log: tuple[str, ...] = ()
    like: tuple[str, Vec] | None = None
    """The block (step and index) of the same stage whose traceback and log lines stand for those of this one."""

    @classmethod
    def of(cls, title: str, event: Mapping[str, Any], index: Vec, step: str) -> Failure:
        """From an event of the journal."""
        like = event.get("like")
        return cls(
            title,
            step,
            index,
            event["error"],
            event.get("trace", ""),
            event.get("worker", ""),
            event.get("host", ""),
            event.get("attempts", 0),
            tuple(event.get("log", ())),
            None if like is None else _place(like),
        )


# Very many failures are like the same few.
@functools.lru_cache(maxsize=4096)
def place_text(step: str, index: Vec) -> str:
    """A block of a stage as events of the journal name it.

    >>> place_text("up0", (0, 1, 2)), place_text("", (0, 1, 2))
    ('up0 0,1,2', '0,1,2')
    """
    return f"{step} {','.join(map(str, index))}".lstrip()


@functools.lru_cache(maxsize=4096)
def _place(text: str) -> tuple[str, Vec]:
    step, _, index = text.rpartition(" ")
    z, y, x = map(int, index.split(","))
    return step, (z, y, x)


@dataclass
class Rates:
    """Voxels and blocks that ended of late, by stage fingerprint."""

    clock: Callable[[], float] = time.monotonic
    _recent: deque[tuple[float, str, int, int]] = field(default_factory=deque)

    def note(self, fingerprint: str, blocks: int, voxels: int) -> None:
        """Blocks that ended now."""
        now = self.clock()
        last = self._recent[-1] if self._recent else None
        # One entry a second and stage is enough, however many blocks end.
        if last is not None and last[1] == fingerprint and int(last[0]) == int(now):
            self._recent[-1] = (last[0], fingerprint, last[2] + blocks, last[3] + voxels)
        else:
            self._recent.append((now, fingerprint, blocks, voxels))
        self._trim(now)

    def per_second(self, begun: float) -> dict[str, tuple[float, float]]:
        """Blocks and voxels a second, by stage, since `begun` or for the last two minutes."""
        now = self.clock()
        self._trim(now)
        seconds = max(min(now - begun, RATE_SECONDS), 1e-3)
        sums: dict[str, tuple[float, float]] = {}
        for _, fingerprint, blocks, voxels in self._recent:
            before = sums.get(fingerprint, (0.0, 0.0))
            sums[fingerprint] = before[0] + blocks / seconds, before[1] + voxels / seconds
        return sums

    def _trim(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - RATE_SECONDS:
            self._recent.popleft()


@dataclass
class Progress:
    """State of a run: blocks by stage, in the order of the flow, and failures so far."""

    stages: dict[str, Counts]
    titles: dict[str, str]
    failures: list[Failure] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    """How many failures there are of each stage, by its title."""
    restored: int = 0
    lost: list[str] = field(default_factory=list)
    """Stages of which blocks were done, but whose outputs somebody removed."""
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What blocks said of themselves, summed up by stage."""
    workers: int = 0
    note: str = ""
    """What the coordinator waits for, if it does."""

    def add(self, failures: Iterable[Failure]) -> None:
        """Take in blocks that were set aside."""
        for failure in failures:
            self.failures.append(failure)
            self.failed[failure.stage] += 1

    def seconds(self, fingerprint: str) -> float:
        """Time that workers spent in a stage."""
        return float(self.figures.get(fingerprint, {}).get("seconds", 0.0))

    def largest(self, fingerprint: str) -> tuple[int, int]:
        """Voxels and id of the largest segment so far, of stages that say so; else zeros."""
        voxels, segment = self.figures.get(fingerprint, {}).get("largest", (0, 0))
        return int(voxels), int(segment)

    @property
    def finished(self) -> bool:
        """Whether every block is done, or not needed."""
        return all(count.done + count.skipped == count.total for count in self.stages.values())

    def seconds_left(self, fingerprints: Sequence[str], threads: int) -> float | None:
        """What is left for `threads` workers at the speed so far; None while a stage that is not done has no block to
        judge by.
        """
        left = 0.0
        for fingerprint in fingerprints:
            count = self.stages[fingerprint]
            missing = count.total - count.done - count.skipped - count.failed
            if missing and not count.done:
                return None
            if missing:
                left += missing * self.seconds(fingerprint) / count.done
        return left / max(threads, 1)


Watcher = Callable[[Progress], None]
