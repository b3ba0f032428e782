"""Reading back what was just written: for disks and stores that are not to be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from neuroshed.errors import BlockError
from neuroshed.storage.locations import Location

_asked: ContextVar[bool] = ContextVar("neuroshed_reading_back", default=False)


@contextmanager
def reading_back() -> Iterator[None]:
    """While this lasts, volumes and node tables read what they write and compare it, in this thread or task alone.

    They raise `BlockError` naming the file if it is not what was written.
    """
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def is_reading_back() -> bool:
    """Whether what is written has to be read."""
    return _asked.get()


def forget_cached(files: Iterable[Location]) -> None:
    """Have files of this machine, which are synced, read from their disk the next time, and not from memory."""
    for file in files:
        if file.is_local and hasattr(os, "posix_fadvise"):
            with file.open_read() as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def not_held(file: Location, reason: object) -> BlockError:
    """What to raise about a file that is not what was written."""
    return BlockError(
        f"{file}: its disk or store does not hold what was written ({reason}); have it examined, then go on"
    )
