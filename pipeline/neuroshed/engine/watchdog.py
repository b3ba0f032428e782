"""A time limit for each block, and what a worker process leaves behind when it dies.

In a worker process the limit holds against kernels that never let go of the interpreter: a timer that needs none
(`faulthandler`) writes the tracebacks of all threads and ends the process. Threads of a user's own process cannot be
ended; there a block that took too long is told afterwards.
"""

from __future__ import annotations

import faulthandler
import fcntl
import itertools
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from neuroshed.errors import BlockError

log = logging.getLogger(__name__)

WORKER = "NEUROSHED_WORKER"
"""Environment variable: 1 in worker processes, 0 in processes that must never be ended; without it, child processes of
`multiprocessing` count as workers.
"""
FAULTS = "NEUROSHED_FAULTS"
"""Environment variable: the folder for what processes leave behind; without it that goes to standard error."""

STANDARD_ERROR = 2
HEADER_BYTES = 1024
"""At the start of a process's file: what it is at."""
# The interpreter writes tracebacks after these bytes, and nothing else ever stands there.
_BLANK = b" " * (HEADER_BYTES - 1) + b"\n"


def is_worker() -> bool:
    """Whether this process may be ended to stop a block."""
    told = os.environ.get(WORKER)
    return multiprocessing.parent_process() is not None if told is None else told == "1"


@contextmanager
def limit(seconds: float | None, what: str) -> Iterator[None]:
    """Let what runs inside take so long; None: for ever. `what` names it, on one line.

    In a worker process (`is_worker`), the process ends with exit status 1 when the time is over. Elsewhere raises
    `BlockError`, after the end, if it took longer.
    """
    if is_worker():
        ticket = _watch.enter(seconds, what)
        try:
            yield
        finally:
            _watch.leave(ticket)
        return
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    if seconds is not None and took > seconds:
        raise BlockError(
            f"{what} took {took:.3g} s, longer than the limit of {seconds:g} s for a block; use smaller blocks or a "
            "longer limit (in-process workers cannot be stopped: use cluster: local)"
        )


def fault_file(pid: int, host: str | None = None) -> Path | None:
    """Where a process of a host (by default this one) leaves what it dies of; None if there is no folder for it."""
    folder = os.environ.get(FAULTS)
    return Path(folder) / _name(pid, host) if folder else None


class Left(NamedTuple):
    """What a process left behind when it died."""

    running: str
    """What it was at; empty if nothing, or nobody knows."""
    text: str
    """A line that names its blocks, then the tracebacks of its threads; empty if it was killed from outside."""


def read_fault(folder: Path, pid: int, host: str | None = None) -> str | None:
    """What a process died of: the text of `Left`. Its file is removed.

    None if there is no file, the process is alive, or it left nothing (as when it is killed from outside).
    """
    left = _take(folder / _name(pid, host))
    return left.text or None if left else None


def take_faults(folder: Path) -> list[Left]:
    """What all processes left that died. Their files are removed."""
    return [left for path in sorted(folder.glob(_name("*", "*"))) if (left := _take(path))]


def at_work(folder: Path) -> list[str]:
    """What each process is at that has not quite died yet."""
    found = []
    for path in sorted(folder.glob(_name("*", "*"))):
        with suppress(FileNotFoundError), path.open("rb") as file:
            found.append(_said(file.read(HEADER_BYTES)))
    return found


def _name(pid: int | str, host: str | None) -> str:
    return f"fault-{host or socket.gethostname()}-{pid}.txt"


def _said(content: bytes) -> str:
    return content.decode(errors="replace").strip()


def _take(path: Path) -> Left | None:
    try:
        with path.open("rb") as file:
            # A process holds the lock of its file for as long as it lives.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            content = file.read()
    except (BlockingIOError, FileNotFoundError):
        return None
    path.unlink(missing_ok=True)
    running, body = _said(content[:HEADER_BYTES]), _said(content[HEADER_BYTES:])
    if not body:
        return Left(running, "")
    first = body.splitlines()[0]
    if first.startswith("Timeout"):
        first = "its worker was ended at the time limit of a block; use smaller blocks or a longer limit"
    else:
        first = f"its worker process died: {first}"
    return Left(running, f"{first} (at work: {running or 'no block'})\n{body}\n")


class _Entry(NamedTuple):
    deadline: float
    what: str
    seconds: float | None


class _Watch:
    """The blocks that run in this process, by the time at which each has to be done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._entries: dict[int, _Entry] = {}
        self._armed = float("inf")
        self._file: int | None = None

    def enter(self, seconds: float | None, what: str) -> int:
        """A block begins; returns its number."""
        deadline = float("inf") if seconds is None else time.monotonic() + seconds
        with self._lock:
            if self._file is None:
                self._open()
            number = next(self._numbers)
            self._entries[number] = _Entry(deadline, what, seconds)
            self._update()
        return number

    def leave(self, number: int) -> None:
        """A block has ended."""
        with self._lock:
            del self._entries[number]
            self._update()

    def _update(self) -> None:
        """Say what is at work, then set the timer for the first that has to be done."""
        assert self._file is not None
        running = sorted(self._entries.values(), key=lambda entry: entry.deadline)
        if self._file != STANDARD_ERROR:
            text = "; ".join(_told(entry) for entry in running).encode()[: HEADER_BYTES - 1]
            # A block is worth more than what would be said of it.
            with suppress(OSError):
                os.pwrite(self._file, text + _BLANK[len(text) :], 0)
        earliest = running[0].deadline if running else float("inf")
        if earliest == self._armed:
            return
        self._armed = earliest
        if earliest == float("inf"):
            faulthandler.cancel_dump_traceback_later()
        else:
            left = max(earliest - time.monotonic(), 1e-3)
            faulthandler.dump_traceback_later(left, exit=True, file=self._file)

    def _open(self) -> None:
        path = fault_file(os.getpid())
        self._file = STANDARD_ERROR
        if path is not None:
            try:
                self._file = _begun(path)
            except OSError as error:
                log.warning("%s cannot be written (%s); what ends this process goes to standard error", path, error)
        faulthandler.enable(self._file)


def _begun(path: Path) -> int:
    """Descriptor of a process's own file, at the place where tracebacks go; locked before anybody sees it."""
    new = path.with_suffix(".new")
    file = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(file, _BLANK)
        new.rename(path)
    except OSError:
        os.close(file)
        raise
    return file


def _told(entry: _Entry) -> str:
    return entry.what if entry.seconds is None else f"{entry.what}, limit {entry.seconds:g} s"


_watch = _Watch()
