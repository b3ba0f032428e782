"""Segments of a journal: files of checksummed lines, how they are named, and which of them count.

`EEEEEE-NNNNNN.log` is number N of the writer with epoch E; its lines count once they are synced, and a tail torn by a
crash is dropped. `EEEEEE-NNNNNN.base` says what all before it add up to. The first segment of an epoch starts with the
lengths at which those of older epochs were read: what a writer that was taken over adds later does not count.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from neuroshed.errors import InputError
from neuroshed.storage.formats import events_of_format_1, refuse_newer
from neuroshed.storage.locations import Location

Event = dict[str, Any]

TRIES = 20
"""How often a folder is listed anew that does not agree with what is in it."""
READS_AT_ONCE = 16
_NAME = re.compile(r"(?:(\d+)-)?(\d+)\.(log|base)")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """Name of a segment; they are sorted as they were written. Those of format 1 have epoch 0."""

    epoch: int
    number: int
    base: bool = False

    @classmethod
    def parse(cls, name: str) -> Segment | None:
        """From the name of a file; None if it is something else."""
        found = _NAME.fullmatch(name)
        return found and cls(int(found[1] or 0), int(found[2]), found[3] == "base")

    def __str__(self) -> str:
        epoch = f"{self.epoch:06d}-" if self.epoch else ""
        return f"{epoch}{self.number:06d}.{'base' if self.base else 'log'}"


@dataclass(frozen=True, slots=True)
class Content:
    """What counts of a segment, up to its last whole line."""

    place: Location
    data: bytes

    @classmethod
    def of(cls, place: Location, data: bytes) -> Content:
        """Without a torn tail."""
        end = len(data)
        while end:
            start = data.rfind(b"\n", 0, end - data.endswith(b"\n", 0, end)) + 1
            if _text(data[start:end].rstrip(b"\n")):
                break
            end = start
        return cls(place, data[:end])

    def events(self) -> Iterator[Event]:
        """All events. Raises `InputError` if a line is damaged, or the format too new."""
        start, number = 0, 1
        while start < len(self.data):
            end = self.data.find(b"\n", start)
            end = len(self.data) if end < 0 else end
            event = _event(self.data[start:end])
            if event is None:
                raise self._damaged(number)
            if event.get("e") == "format":
                refuse_newer(self.place, event)
            yield event
            start, number = end + 1, number + 1

    @property
    def sealed(self) -> dict[str, int] | None:
        """The segments of older epochs that count, and how much of them, if this one says so."""
        for number, event in zip((1, 2), self.events(), strict=False):
            if event.get("e") == "sealed":
                segments = event.get("segments")
                if isinstance(segments, dict) and all(isinstance(n, int) and n >= 0 for n in segments.values()):
                    return segments
                raise self._damaged(number)
        return None

    def _damaged(self, line: int) -> InputError:
        return InputError(f"{self.place} is damaged at line {line}; restore the file or start a new run folder")


def encode(event: Event) -> bytes:
    """One line. Raises TypeError for what JSON cannot hold."""
    text = json.dumps(event, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _text(line: bytes) -> bytes:
    """What a line holds; empty if it is not whole."""
    checksum, _, text = line.partition(b" ")
    return text if checksum == b"%08x" % zlib.crc32(text) else b""


def _event(line: bytes) -> Event | None:
    """The event of a line; None if there is none."""
    try:
        event = json.loads(_text(line) or b"null")
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def segments_in(folder: Location) -> list[Segment]:
    """All segments of a folder, those before the newest base too, oldest first."""
    return sorted(segment for name in folder.names() if (segment := Segment.parse(name)))


def read_segments(folder: Location, epoch: int | None = None) -> dict[Segment, Content]:
    """All that counts, oldest first. The writer gives its `epoch`, and gets what an old listing would not show too.

    Raises `InputError` for a segment that is missing, cut short or of a newer format.
    """
    missing = ""
    void: set[Segment] = set()
    for attempt in range(TRIES):
        time.sleep(0.01 * attempt)
        try:
            found = _from_base([segment for segment in _listed(folder, epoch) if segment not in void])
            contents = _counting(folder, _read_all(folder, found))
        except FileNotFoundError as error:
            # A writer may have put a base in place of it meanwhile.
            missing = str(error)
            continue
        if not found or not found[0].base or found[0] in contents:
            return contents
        # Of a writer that was taken over while it wrote that base; what it stands for is still there.
        void.add(found[0])
    raise InputError(
        f"the journal {folder} lacks all or a part of {missing}; restore it from a copy, or start a new run folder"
    )


def events_in(contents: dict[Segment, Content]) -> Iterator[Event]:
    """Events of a ledger, oldest first, and none about the segments themselves."""
    old = [content for segment, content in contents.items() if not segment.epoch]
    yield from events_of_format_1(lambda: (event for content in old for event in content.events()))
    for segment, content in contents.items():
        if segment.epoch:
            yield from (event for event in content.events() if event.get("e") not in ("format", "base", "sealed"))


def _listed(folder: Location, epoch: int | None) -> list[Segment]:
    found = set(segments_in(folder))
    last = max(found, default=Segment(1, 0))
    for later in range(max(last.epoch, 1), epoch or 0):
        number = last.number + 1 if later == last.epoch else 1
        while shown := _there(folder, later, number):
            found.add(shown)
            number += 1
    return sorted(found)


def _there(folder: Location, epoch: int, number: int) -> Segment | None:
    both = Segment(epoch, number), Segment(epoch, number, base=True)
    return next((segment for segment in both if (folder / str(segment)).exists()), None)


def _from_base(segments: list[Segment]) -> list[Segment]:
    """The newest base and what follows it. Raises FileNotFoundError if one of them must be there and is not."""
    newest = max((place for place, segment in enumerate(segments) if segment.base), default=0)
    found = segments[newest:]
    before = Segment(0, 0) if not found or not found[0].base else Segment(found[0].epoch, found[0].number - 1)
    for last, segment in pairwise((before, *found)):
        wanted = last.number + 1 if last.epoch == segment.epoch else 1
        if segment.epoch and segment.number != wanted:
            raise FileNotFoundError(str(Segment(segment.epoch, wanted)))
    return found


def _read_all(folder: Location, segments: list[Segment]) -> dict[Segment, Content]:
    def read(segment: Segment) -> Content:
        place = folder / str(segment)
        try:
            return Content.of(place, place.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(str(segment)) from None

    if folder.is_local:
        return {segment: read(segment) for segment in segments}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return dict(zip(segments, pool.map(read, segments), strict=True))


def _counting(folder: Location, contents: dict[Segment, Content]) -> dict[Segment, Content]:
    """Segments up to the length at which a later epoch read them, without those that it did not see.

    Raises FileNotFoundError if it saw more than is there.
    """
    sealed: dict[str, int] = {}
    sealed_before = 0
    counting: dict[Segment, Content] = {}
    for segment, content in sorted(contents.items(), reverse=True):
        if segment.epoch < sealed_before:
            if str(segment) not in sealed:
                continue
            size = sealed.pop(str(segment))
            if len(content.data) < size:
                raise FileNotFoundError(str(segment))
            content = Content(content.place, content.data[:size])
        counting[segment] = content
        if segment.epoch and segment.number == 1 and (seal := content.sealed) is not None:
            # An older epoch's seal says no more of what both name.
            sealed, sealed_before = sealed | seal, segment.epoch
    first = min(contents, default=None)
    if first is not None and first.base:
        sealed = {name: size for name, size in sealed.items() if (known := Segment.parse(name)) and known >= first}
    if sealed:
        raise FileNotFoundError(min(sealed))
    return dict(sorted(counting.items()))
