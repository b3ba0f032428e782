"""The journal of a run: an append-only record of what is done and what failed, and the only thing that is believed.

Its one writer holds a lease, and a ledger of what all events add up to. A batch of events counts once it is synced and
the lease was seen to be held after that. On disk a segment grows, in an object store each batch is an object. When much
was written, the ledger takes the place of the events. Readers never disturb the writer.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from neuroshed.errors import InputError
from neuroshed.geometry import Grid
from neuroshed.storage.files import sync_path
from neuroshed.storage.formats import format_event
from neuroshed.storage.lease import FOLDER, Lease, Pace
from neuroshed.storage.ledger import Ledger
from neuroshed.storage.locations import Location
from neuroshed.storage.many import delete_all
from neuroshed.storage.segments import (
    Content,
    Event,
    Segment,
    encode,
    events_in,
    read_segments,
    segments_in,
)
from neuroshed.version import __version__

SEGMENT_BYTES = 16 << 20
COMPACT_BYTES = 64 << 20
COMPACT_SEGMENTS = 1000
END_BYTES = 1 << 20
"""Of events that are left at the end of a session; more would keep everybody waiting who looks at the run."""
OBJECT_SECONDS = 1.0
"""How often events are worth an object of their own."""

log = logging.getLogger(__name__)


class Journal:
    """The writer's side. Use as a context manager; a second writer is refused with the first one's name.

    Entering raises `WorkflowError` if the run is being worked on, `InputError` if the journal is damaged. All else
    raises `LeaseLostError` once another writer took over.
    """

    def __init__(self, run_folder: Location | Path | str, name: str = "neuroshed", pace: Pace | None = None) -> None:
        self.run_folder = Location.of(run_folder)
        self.ledger = Ledger()
        """What all events add up to, those included that are not yet durable."""
        self._folder = self.run_folder / FOLDER
        self.flush_seconds = 0.0 if self._folder.is_local else OBJECT_SECONDS
        """How long to wait between two calls of `flush`, so that it pays."""
        self._lease = Lease(self.run_folder, name, pace)
        self._waiting: list[bytes] = []
        # Segments are named by the epoch in which writing began, also if the lease has a later one by now.
        self._segment = Segment(0, 0)
        self._file: int | None = None
        self._file_bytes = 0
        # Since the last base.
        self._bytes = self._segments = 0
        self._failed: BaseException | None = None

    def __enter__(self) -> Journal:
        self._lease.__enter__()
        try:
            contents = read_segments(self._folder, self._lease.epoch)
            self.ledger = _ledger(self._folder, contents)
            lengths = {str(segment): len(content.data) for segment, content in contents.items()}
            self._bytes = sum(size for name, size in lengths.items() if not name.endswith(".base"))
            self._segment, self._segments = Segment(self._lease.epoch, 0), len(lengths)
            self._waiting.append(encode({"e": "sealed", "segments": lengths}))
            self.append([self._session()])
            self.flush()
        except BaseException:
            self._close()
            self._lease.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if value is None:
                self._end(None)
            elif self._failed is None:
                # What stopped the run is told, not that the journal could not note it.
                with suppress(Exception):
                    self._end(f"{type(value).__name__}: {value}")
        finally:
            self._close()
            self._lease.__exit__(kind, value, trace)

    def part(self, fingerprint: str, step: str, grid: Grid) -> int:
        """The id by which events name the blocks of a grid, which is declared if it is new."""
        number = self.ledger.part(fingerprint, step, grid)
        if number is not None:
            return number
        event = self.ledger.declaration(fingerprint, step, grid)
        self.append([event])
        return int(event["id"])

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in events, for the next `flush`. Raises `ValueError` for one that makes no sense."""
        for event in events:
            line = encode(dict(event))
            self.ledger.apply(dict(event))
            self._waiting.append(line)

    def flush(self) -> None:
        """Make all events durable; they are when this returns, and the run was not taken over before they were.

        After a failure nothing more can be written: what has reached the store is known to the next writer only.
        """
        if self._failed is not None:
            raise self._failed
        self._lease.check()
        if not self._waiting:
            return
        try:
            self._write(b"".join(self._waiting))
            self._waiting.clear()
            self._lease.check(fresh=True)
            if self._bytes > COMPACT_BYTES or self._segments > COMPACT_SEGMENTS:
                self._compact()
        except BaseException as error:
            self._failed = error
            raise

    def check(self) -> None:
        """Raise `LeaseLostError` if another writer took the run over; cheap."""
        self._lease.check()

    def _session(self) -> Event:
        holder = self._lease.holder
        return {
            "e": "session",
            "epoch": self._lease.epoch,
            "name": holder.name,
            "host": holder.host,
            "pid": holder.pid,
            "version": __version__,
            "python": platform.python_version(),
            "time": round(time.time(), 3),
        }

    def _end(self, error: str | None) -> None:
        self.append([{"e": "end", "epoch": self._lease.epoch, "error": error, "time": round(time.time(), 3)}])
        self.flush()
        if self._bytes <= END_BYTES:
            return
        try:
            self._compact()
        except Exception as problem:
            # All is recorded, and reading it takes a little longer.
            log.warning("the journal of run %s could not be made smaller (%s)", self.run_folder, problem)

    def _write(self, lines: bytes) -> None:
        if self._file is None or self._file_bytes > SEGMENT_BYTES:
            place = self._next()
            lines = encode(format_event()) + lines
            if self._folder.is_local:
                self._file, self._file_bytes = _open(place.local), 0
            else:
                _create(place, lines)
        if self._file is not None:
            _append(self._file, lines)
            self._file_bytes += len(lines)
        self._bytes += len(lines)

    def _next(self, *, base: bool = False) -> Location:
        """The place of a new segment, which is the current one from now on."""
        self._close()
        self._segment = Segment(self._segment.epoch, self._segment.number + 1, base)
        self._segments += 1
        return self._folder / str(self._segment)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _compact(self) -> None:
        """Put the ledger in the place of all events. Old segments go only when it is durable, and surely ours."""
        events = (format_event(), {"e": "base"}, *self.ledger.events())
        _create(self._next(base=True), b"".join(map(encode, events)))
        self._lease.renew()
        self._bytes, self._segments = 0, 1
        delete_all(self._folder / str(segment) for segment in segments_in(self._folder) if segment < self._segment)


def read_ledger(run_folder: Location | Path | str) -> Ledger:
    """What the journal of a run adds up to now; empty if it never started. Never disturbs its writer.

    Raises `InputError` if a segment is missing or damaged before its end: what follows could not be trusted.
    """
    folder = Location.of(run_folder) / FOLDER
    return _ledger(folder, read_segments(folder))


def read_events(run_folder: Location | Path | str) -> Iterator[Event]:
    """The events themselves, oldest first, as far as no base stands for them."""
    yield from events_in(read_segments(Location.of(run_folder) / FOLDER))


def _ledger(folder: Location, contents: dict[Segment, Content]) -> Ledger:
    ledger = Ledger()
    try:
        for event in events_in(contents):
            ledger.apply(event)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"the journal {folder} does not add up ({error}); start a new run folder") from error
    return ledger


def _create(place: Location, data: bytes) -> None:
    # A store that answers too late may deny what it did.
    if not place.create(data) and place.read_bytes() != data:
        raise InputError(f"{place} was written by somebody else; start a new run folder")


def _open(path: Path) -> int:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
    sync_path(path.parent)
    return file


def _append(file: int, lines: bytes) -> None:
    left = memoryview(lines)
    while left:
        left = left[os.write(file, left) :]
    os.fsync(file)
