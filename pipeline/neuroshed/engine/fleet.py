"""The workers that a run has asked for somewhere: a thread of its own starts and ends them and looks how they are.

Queues and hosts may take their time to answer; the coordinator never waits for them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from neuroshed.errors import NeuroshedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
"""Between two looks at how workers are."""
TRIES = 5
"""Of a look or a start that fails, one after another, before that is told as an error."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that was asked for: waiting in a queue, or at work."""

    name: str
    """By which the place that runs it, and the Dask scheduler (followed by a slash and a number), know it."""
    pool: str
    running: bool
    ends_at: float | None = None
    """Time since the epoch at which it will be ended, if there is a limit."""


class Provider(Protocol):
    """Where workers run."""

    @property
    def logs(self) -> str:
        """Where they leave what they print, for people."""

    def start(self, pool: str, count: int) -> None:
        """Ask for more workers. Raises `NeuroshedError` if that cannot be."""

    def members(self) -> Sequence[Member]:
        """All that were asked for and have not ended. Raises OSError if nobody answers."""

    def stop(self, names: Collection[str]) -> None:
        """End workers, or take back that they were asked for."""

    def close(self) -> None:
        """End all that are left, and wait until they are gone."""


class Fleet:
    """A provider, behind a queue of orders. To be used in a `with` statement, which ends all workers."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="neuroshed-fleet", daemon=True)
        self._lock = threading.Lock()
        self._members: list[Member] = []
        self._ordered: Counter[str] = Counter()
        self._stopped: set[str] = set()
        self._failed = 0
        self._error: Exception | None = None

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._orders.put(None)
        self._thread.join()
        self.provider.close()

    def start(self, pool: str, count: int) -> None:
        """Order more workers."""

        def work() -> None:
            try:
                self.provider.start(pool, count)
                self._look()
            finally:
                with self._lock:
                    self._ordered[pool] -= count

        with self._lock:
            self._ordered[pool] += count
        self._orders.put(work)

    def stop(self, names: Collection[str]) -> None:
        """Order the end of workers."""
        with self._lock:
            self._stopped.update(names)
        self._orders.put(lambda: self.provider.stop(names))

    def look(self) -> tuple[list[Member], Counter[str]]:
        """All workers as last seen, but those that were told to end; and by pool how many are still being asked for.

        Raises what went wrong, if it did several times.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            return [member for member in self._members if member.name not in self._stopped], Counter(self._ordered)

    def waiting(self) -> Counter[str]:
        """By pool, how many were asked for and have not begun."""
        with self._lock:
            return Counter(member.pool for member in self._members if not member.running) + self._ordered

    def _work(self) -> None:
        next_look = 0.0
        while True:
            order: Callable[[], None] | None = self._look
            with suppress(queue.Empty):
                order = self._orders.get(timeout=max(next_look - time.monotonic(), 0.0))
            if order is None:
                return
            self._try(order)
            next_look = time.monotonic() + LOOK_SECONDS

    def _try(self, order: Callable[[], None]) -> None:
        try:
            order()
            self._failed = 0
        except (OSError, NeuroshedError) as error:
            self._failed += 1
            log.warning("workers: %s", error)
            if self._failed == TRIES:
                with self._lock:
                    self._error = error

    def _look(self) -> None:
        members = list(self.provider.members())
        with self._lock:
            self._members = members
            self._stopped &= {member.name for member in members}
