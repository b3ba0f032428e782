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

from neuroshed.errors import NeuroshedError, RunFailedError

log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
"""Between two looks at how workers are."""
TRIES = 8
"""To start workers of a pool, one after another, before that they cannot be is told as an error."""
WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 60.0
"""After the first try in vain, doubled each time, and at most: a queue may be full for a while."""


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

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        """End workers, or take back that they were asked for. `broken`: what they ran on is not to be used again, as
        far as that can be chosen.
        """

    def close(self) -> None:
        """End all that are left, and wait until they are gone."""


class Fleet:
    """A provider, behind a queue of orders. To be used in a `with` statement, which ends all workers."""

    def __init__(self, provider: Provider, patience: float = 600.0) -> None:
        """`patience` is how many seconds the provider may be silent."""
        self.provider = provider
        self._patience = patience
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="neuroshed-fleet", daemon=True)
        self._lock = threading.Lock()
        self._members: list[Member] = []
        self._ordered: Counter[str] = Counter()
        self._stopped: set[str] = set()
        self._silent_since: float | None = None
        self._failed: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._error: NeuroshedError | None = None

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._orders.put(None)
        self._thread.join()
        self.provider.close()

    def start(self, pool: str, count: int) -> None:
        """Order more workers, unless such an order has just failed."""
        if time.monotonic() < self._not_before.get(pool, 0.0):
            return
        log.info("asking for %d workers of pool %s", count, pool)
        with self._lock:
            self._ordered[pool] += count
        self._orders.put(lambda: self._start(pool, count))

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        """Order the end of workers. `broken`: and not to use again what they ran on."""
        log.info("letting go %s", ", ".join(names))
        with self._lock:
            self._stopped.update(names)
        self._orders.put(lambda: self._stop(names, broken))

    def look(self) -> tuple[list[Member], Counter[str]]:
        """All workers as last seen, but those that were told to end; and by pool how many are still being asked for.

        Raises `RunFailedError` if workers could not be started, or nobody answered, for too long.
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
            order: Callable[[], object] | None = self._look
            with suppress(queue.Empty):
                order = self._orders.get(timeout=max(next_look - time.monotonic(), 0.0))
            if order is None:
                return
            try:
                order()
            except Exception as error:
                # Without this thread nobody would hear of workers any more, and the run would wait for ever.
                log.exception("the thread that looks after workers failed")
                self._give_up(f"workers cannot be looked after any more ({type(error).__name__}: {error})")
            next_look = time.monotonic() + LOOK_SECONDS

    def _start(self, pool: str, count: int) -> None:
        failure: Exception | None = None
        try:
            self.provider.start(pool, count)
        except (OSError, NeuroshedError) as error:
            failure = error
        answers = self._look()
        with self._lock:
            self._ordered[pool] -= count
        if failure is None:
            self._failed[pool] = 0
            return
        log.warning("%s", failure)
        self._not_before[pool] = time.monotonic() + min(WAIT_SECONDS * 2.0 ** self._failed[pool], LONGEST_WAIT_SECONDS)
        # Where nobody answers, no word of refusal was given either.
        self._failed[pool] += answers
        if self._failed[pool] >= TRIES:
            self._give_up(f"{failure} (tried {TRIES} times)")

    def _stop(self, names: Collection[str], broken: bool) -> None:
        try:
            self.provider.stop(names, broken=broken)
        except (OSError, NeuroshedError) as error:
            log.warning("workers could not be ended now, but will be at the end: %s", error)

    def _look(self) -> bool:
        """Take in how workers are; whether there was an answer."""
        try:
            members = list(self.provider.members())
        except (OSError, NeuroshedError) as error:
            now = time.monotonic()
            if self._silent_since is None:
                log.warning("how workers are cannot be learnt: %s", error)
                self._silent_since = now
            if now - self._silent_since > self._patience:
                self._give_up(f"how workers are could not be learnt for {self._patience:.0f} s: {error}")
            return False
        self._silent_since = None
        with self._lock:
            self._members = members
            self._stopped &= {member.name for member in members}
        return True

    def _give_up(self, reason: str) -> None:
        with self._lock:
            self._error = RunFailedError(reason)
