"""The journal of a run: an append-only record of what is done and what failed, and the lock of its one writer.

Each session of the coordinator writes a segment of its own, one checksummed JSON line an event. A line counts once
it is synced; a tail torn by a crash is dropped. Readers never block the writer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.files import make_folder, sync_path
from neuroshed.storage.locations import Location


class Journal:
    """The writer's side. Use as a context manager; a second writer is refused with the first one's name."""

    def __init__(self, run_folder: Location) -> None:
        self.run_folder = run_folder
        self.folder = _folder(run_folder)

    def __enter__(self) -> Journal:
        make_folder(self.folder)
        self._lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise WorkflowError(
                f"run {self.run_folder} is being worked on by {holder}; wait for it or stop it"
            ) from None
        try:
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._lock.flush()
            number = max((int(path.stem) for path in _segments(self.folder)), default=0) + 1
            # Unbuffered: what a full disk refused is not tried again when the file is closed.
            self._segment = (self.folder / f"{number:06d}.log").open("xb", buffering=0)
            sync_path(self.folder)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._segment.close()
        self._lock.truncate(0)
        self._lock.close()

    def append(self, events: Iterable[dict[str, Any]]) -> None:
        """Record events; they are on disk when this returns."""
        lines = b"".join(_line(event) for event in events)
        if lines:
            written = self._segment.write(lines)
            while written < len(lines):
                written += self._segment.write(lines[written:])
            os.fsync(self._segment.fileno())


def read_journal(run_folder: Location) -> Iterator[dict[str, Any]]:
    """All recorded events of a run, oldest first; none if it never started.

    Raises `InputError` if a line before the end of a segment is damaged: what follows it could not be trusted.
    """
    for path in _segments(_folder(run_folder)):
        lines = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines):
            event = _parse(line)
            if event is not None:
                yield event
            elif any(_parse(later) is not None for later in lines[number + 1 :]):
                raise InputError(f"{path} is damaged at line {number + 1}; restore the file or start a new run folder")
            else:
                break


def _folder(run_folder: Location) -> Path:
    place = Location.of(run_folder)
    if place.is_local:
        return place.local / "journal"
    return Path(tempfile.gettempdir()) / hashlib.sha256(str(place).encode()).hexdigest() / "journal"


def _segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def _line(event: dict[str, Any]) -> bytes:
    text = json.dumps(event, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if not text or checksum != b"%08x" % zlib.crc32(text):
        return None
    event: dict[str, Any] = json.loads(text)
    return event
