"""Formats of journals: the one that is written, and reading of the one before.

Format 1 (`000001.log`, ...) has one event a block, with the block's index and no grid, and no line that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from neuroshed.errors import InputError
from neuroshed.version import __version__

Event = dict[str, Any]

FORMAT = 2
# What an event of format 1 says of itself; the rest are figures.
_NO_FIGURES = ("stage", "step", "block", "state", "time", "error", "trace", "largest_voxels", "largest_segment")


def format_event() -> Event:
    """The first event of a segment."""
    return {"e": "format", "format": FORMAT, "version": __version__}


def refuse_newer(place: object, event: Event) -> None:
    """Raise `InputError` if a segment is of a format that this version does not know."""
    found, version = event.get("format"), event.get("version", "of another time")
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{place} is in journal format {found} of neuroshed {version}; this is neuroshed {__version__}, which "
            f"knows formats up to {FORMAT}: install version {version} or newer"
        )


def events_of_format_1(events: Callable[[], Iterable[Event]]) -> Iterator[Event]:
    """The same in events of a ledger; `events` is called twice. Parts reach as far as blocks were seen."""
    extents: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for event in events():
        if event["state"] != "lost":
            block = event["block"]
            low, high = extents.setdefault((event["stage"], event["step"]), (block, block))
            extents[event["stage"], event["step"]] = [*map(min, low, block)], [*map(max, high, block)]
    parts = {}
    for number, ((stage, step), (first, last)) in enumerate(extents.items(), 1):
        counts = [b - a + 1 for a, b in zip(first, last, strict=True)]
        parts[stage, step] = number, first, counts
        yield {"e": "part", "id": number, "stage": stage, "step": step, "first": first, "counts": counts}
    for event in events():
        if event["state"] == "lost":
            yield {"e": "lost", "stage": event["stage"]}
            continue
        number, first, (_, ny, nx) = parts[event["stage"], event["step"]]
        z, y, x = (i - f for i, f in zip(event["block"], first, strict=True))
        yield _converted(event) | {"id": number, "at": [(z * ny + y) * nx + x]}


def _converted(event: Event) -> Event:
    if event["state"] == "failed":
        return {"e": "failed", "error": event["error"], "trace": event["trace"], "time": event["time"]}
    figures = {name: value for name, value in event.items() if name not in _NO_FIGURES}
    if "largest_voxels" in event:
        figures["largest"] = [event["largest_voxels"], event["largest_segment"]]
    return {"e": "done", "figures": figures, "time": event["time"]}
