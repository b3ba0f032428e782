"""What the journal of a run says of the blocks that are done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage.journal import read_events
from neuroshed.storage.ledger import positions_of
from neuroshed.storage.locations import Location


@dataclass
class Past:
    """The done blocks of one step."""

    blocks: list[Vec] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    """Sums of what they said of themselves, `seconds` among it; of numbers alone."""
    jobs: list[tuple[float, float]] = field(default_factory=list)
    """When each record of blocks was made, by the clock, and the seconds spent in them."""


def past_of(run_folder: Location) -> dict[tuple[str, str], Past]:
    """By fingerprint and step; of a run in which no block was done twice."""
    found: dict[tuple[str, str], Past] = {}
    parts: dict[int, tuple[tuple[str, str], Grid, Vec]] = {}
    for event in read_events(run_folder):
        if event["e"] == "part":
            counts, first = tuple(event["counts"]), tuple(event["first"])
            parts[event["id"]] = (event["stage"], event["step"]), Grid(Box((0, 0, 0), counts), (1, 1, 1)), first
        elif event["e"] == "done":
            key, grid, (z, y, x) = parts[event["id"]]
            past = found.setdefault(key, Past())
            for position in positions_of(event["at"]).tolist():
                index = grid.index(position)
                past.blocks.append((z + index[0], y + index[1], x + index[2]))
            figures = event["figures"]
            past.figures.update({name: value for name, value in figures.items() if isinstance(value, int | float)})
            past.jobs.append((event["time"], figures["seconds"]))
    return found
