"""Holders on machines that go off, and in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from neuroshed.storage import holders
from neuroshed.storage.journal import Journal
from neuroshed.storage.lease import Lease


def die(holder: Lease | Journal) -> None:
    """Stop without a word to the store; what is called later is as of one that wakes up."""
    lease = holder._lease if isinstance(holder, Journal) else holder
    lease._ended.set()
    if lease._thread.is_alive():
        lease._thread.join()
    lease._ended.clear()
    holders.held.discard(lease.holder.token)
    if isinstance(holder, Journal):
        holder._close()


class Child:
    """A Python process with lines to and from it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.pid = process, process.pid
        self.stdin: IO[str] = process.stdin
        self.stdout: IO[str] = process.stdout


@contextmanager
def child_of(code: str, folder: Path) -> Iterator[Child]:
    """A process that runs `code` on a run folder; it is gone at the end, whatever happened."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Child(process)
        finally:
            process.kill()
