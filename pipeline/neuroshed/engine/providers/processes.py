"""Workers that are processes which this one starts and holds: on this machine, or by SSH on others.

Each gets its invitation through standard input, and ends when that ends: when this process closes it, or dies.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from neuroshed.engine.fleet import Member
from neuroshed.engine.joining import Invitation
from neuroshed.errors import WorkflowError

CLOSE_SECONDS = 20.0
"""For a worker to end by itself before it is killed."""


@dataclass(frozen=True)
class Place:
    """Room for one worker."""

    pool: str
    name: str
    """Part of the worker's name."""
    command: Callable[[str], Sequence[str]]
    """What starts a worker of a given name here."""
    environment: Mapping[str, str] | None = None
    """Of the command; by default that of this process."""
    scheduler: str | None = None
    """The scheduler's address as it is reached from here, if that is another."""


class HeldProcesses:
    """A `Provider` of processes in a given number of places."""

    def __init__(self, places: Sequence[Place], invitation: Invitation, logs: Path) -> None:
        self._places, self._invitation, self._logs = places, invitation, logs
        self._numbers = itertools.count(1)
        self._running: dict[str, tuple[Place, subprocess.Popen[bytes]]] = {}
        self._broken: list[Place] = []
        logs.mkdir(parents=True, exist_ok=True)

    @property
    def logs(self) -> str:
        """Folder of one file for each place."""
        return str(self._logs)

    def start(self, pool: str, count: int) -> None:
        """One worker in each of the next free places of a pool, as far as there are some."""
        taken = [*self._broken, *(place for place, _ in self._running.values())]
        free = [place for place in self._places if place.pool == pool and place not in taken]
        for place in free[:count]:
            self._start(place)

    def members(self) -> list[Member]:
        """Those whose process is alive."""
        self._running = {name: held for name, held in self._running.items() if held[1].poll() is None}
        return [Member(name, place.pool, running=True) for name, (place, _) in self._running.items()]

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        """Close their standard input; what does not end by itself is killed with `close`. Places that are `broken` are
        not used again.
        """
        for name in names:
            if name in self._running:
                self._broken += [self._running[name][0]] if broken else []
                _hang_up(self._running[name][1])

    def close(self) -> None:
        """End all, within seconds."""
        processes = [process for _, process in self._running.values()]
        for process in processes:
            _hang_up(process)
        until = time.monotonic() + CLOSE_SECONDS
        for process in processes:
            try:
                process.wait(max(until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _start(self, place: Place) -> None:
        name = f"{place.pool}-{place.name}-{next(self._numbers)}"
        command = [*place.command(name)]
        try:
            with (self._logs / f"{place.pool}-{place.name}.log").open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=None if place.environment is None else dict(place.environment),
                    # Ctrl-C is for the coordinator, which lets its workers finish.
                    start_new_session=True,
                )
        except OSError as error:
            raise WorkflowError(f"a worker cannot be started with {command[0]} ({error.strerror})") from error
        self._running[name] = place, process
        invitation = self._invitation if place.scheduler is None else self._invitation.at(place.scheduler)
        assert process.stdin is not None
        # It may have ended already, which `members` tells.
        with suppress(BrokenPipeError):
            process.stdin.write(invitation.text().encode() + b"\n")
            process.stdin.flush()


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(BrokenPipeError):
            process.stdin.close()
