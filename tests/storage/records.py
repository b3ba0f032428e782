"""Journals of tests: blocks of one grid that are done, one event each."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from neuroshed.geometry import Box, Grid
from neuroshed.storage import journal as module
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.ledger import Event, Ledger
from neuroshed.storage.locations import Location
from neuroshed.storage.segments import Segment

GRID = Grid(Box((0, 0, 0), (10, 10, 100)), (1, 1, 1))
STAGE = "a" * 64


def done(position: int) -> Event:
    """The blocks are told apart by their voxels too."""
    return {"e": "done", "id": 1, "at": [position], "figures": {"voxels": 1 << position % 50}, "worker": "ä\n"}


def write(run: Location, positions: Iterable[int]) -> None:
    """One session, one flush for each."""
    with Journal(run) as journal:
        for position in positions:
            record(journal, position)


def record(journal: Journal, position: int) -> None:
    assert journal.part(STAGE, "block", GRID) == 1
    journal.append([done(position)])
    journal.flush()


def positions_in(ledger: Ledger) -> list[int]:
    return ledger.done(STAGE, "block", GRID).nonzero()[0].tolist()


def recorded(run: Location) -> list[int]:
    """What the journal says, after a check that its figures say the same."""
    ledger = read_ledger(run)
    found = positions_in(ledger)
    assert ledger.figures.get(STAGE, {}).get("voxels", 0) == sum(1 << position % 50 for position in found)
    return found


def segments(run: Location) -> list[Location]:
    names = [name for name in (run / "journal").names() if Segment.parse(name)]
    return [run / "journal" / name for name in sorted(names)]


def overwrite(place: Location, data: bytes) -> None:
    """Put other contents in place of a file's, as damage does."""
    if place.is_local:
        place.local.write_bytes(data)
    else:
        place.put(data)


def small(monkeypatch: pytest.MonkeyPatch, bytes_: int, count: int = 1000) -> None:
    monkeypatch.setattr(module, "COMPACT_BYTES", bytes_)
    monkeypatch.setattr(module, "COMPACT_SEGMENTS", count)
