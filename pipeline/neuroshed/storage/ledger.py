"""What the events of a journal add up to: which blocks are done, what failed, and figures. Pure: no file, no clock.

A block is named by a part (a grid of blocks that was declared) and its place in raster order over it.
"""

from __future__ import annotations

import base64
import operator
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Grid, Vec, add, sub

Event = dict[str, Any]
Runs = list[int | list[int]]
Bitmap = npt.NDArray[np.bool_]

# States of a block are bits of one byte. Done excludes the two others.
DONE, DROPPED, FAILED = 1, 2, 4
SESSIONS_KEPT = 100
# What events of somebody else's making may lead to.
_NONSENSE = (KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError, zlib.error)


def runs_of(positions: npt.ArrayLike) -> Runs:
    """Positions as single numbers and [start, count] of those that follow each other; sorted, each once.

    >>> runs_of([7, 3, 4, 5, 9])
    [[3, 3], 7, 9]
    """
    ordered = np.unique(np.asarray(positions, np.int64))
    if not ordered.size:
        return []
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 2) != 1)
    counts = np.diff(starts, append=ordered.size)
    pairs = zip(ordered[starts].tolist(), counts.tolist(), strict=True)
    return [[start, count] if count > 1 else start for start, count in pairs]


def positions_of(runs: Runs) -> npt.NDArray[np.int64]:
    """The positions that `runs_of` was given, sorted.

    >>> positions_of([[3, 3], 7, 9]).tolist()
    [3, 4, 5, 7, 9]
    """
    spans = np.array([run if isinstance(run, list) else (run, 1) for run in runs], np.int64).reshape(-1, 2)
    starts, counts = spans.T
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


def _each(runs: Runs) -> Iterator[int]:
    """As `positions_of`; quicker for few."""
    for run in runs:
        if isinstance(run, list):
            yield from range(run[0], run[0] + run[1])
        else:
            yield run


@dataclass(slots=True, eq=False)
class _Part:
    """A declared grid of blocks and the state of each, one byte, in raster order."""

    number: int
    stage: str
    step: str
    box: Box
    """Of block indices."""
    states: bytearray
    overlapping: list[_Part] = field(default_factory=list)
    """Other parts of the same step that share blocks with this one."""

    @property
    def volume(self) -> npt.NDArray[np.uint8]:
        """The states as an array over the box."""
        return np.frombuffer(self.states, np.uint8).reshape(self.box.shape)

    def shared(self, other: _Part) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Views of the blocks that both parts hold, here and there."""
        common = self.box.intersect(other.box)
        return self.volume[common.slices(self.box.start)], other.volume[common.slices(other.box.start)]

    def index(self, position: int) -> Vec:
        """Index of the block at a place."""
        _, ny, nx = self.box.shape
        z, rest = divmod(position, ny * nx)
        return add(self.box.start, (z, *divmod(rest, nx)))

    def position(self, index: Vec) -> int:
        """Place of a block."""
        z, y, x = sub(index, self.box.start)
        _, ny, nx = self.box.shape
        return (z * ny + y) * nx + x

    def there(self, runs: Runs, other: _Part) -> Runs:
        """Those of the blocks at `runs` that `other` holds, as places in it."""
        index = np.stack(np.unravel_index(positions_of(runs), self.box.shape), 1) + np.array(self.box.start)
        index -= other.box.start
        inside = ((index >= 0) & (index < other.box.shape)).all(1)
        return runs_of(np.ravel_multi_index(tuple(index[inside].T), other.box.shape))


class Ledger:
    """The state that events add up to; all of it follows from the events, in their order.

    Costs a byte of memory a block of each part, and what failures and the last sessions say.
    """

    def __init__(self) -> None:
        self.failures: dict[tuple[str, str, Vec], Event] = {}
        """Last failure of each block that was not done since, by stage, step and index."""
        self.figures: dict[str, dict[str, Any]] = {}
        """By stage: sums of what blocks said of themselves, and under `largest` the largest [voxels, id]. Blocks done
        again do not count again, but an event counts as a whole if any of its blocks is new.
        """
        self.sessions: deque[Event] = deque(maxlen=SESSIONS_KEPT)
        """The last events that say who wrote, and how it ended."""
        self._parts: dict[int, _Part] = {}
        self._parts_of: dict[tuple[str, str], list[_Part]] = {}
        self._handlers: dict[str, Callable[[Event], None]] = {
            "part": self._declare,
            "done": self._done,
            "dropped": self._dropped,
            "failed": self._failed,
            "lost": self._lost,
            "bits": self._bits,
            "figures": lambda event: self._count(event["stage"], event["values"]),
            "session": self.sessions.append,
            "end": self.sessions.append,
        }

    def apply(self, event: Event) -> None:
        """Take in the next event. Raises `ValueError` if it makes no sense after those before."""
        try:
            self._handlers[event["e"]](event)
        except _NONSENSE as error:
            raise ValueError(
                f"event {str(event)[:200]} makes no sense here ({type(error).__name__}: {error})"
            ) from error

    def done(self, fingerprint: str, step: str, grid: Grid) -> Bitmap:
        """Which blocks of `grid` are done, in raster order."""
        return self._where(DONE, fingerprint, step, grid)

    def dropped(self, fingerprint: str, step: str, grid: Grid) -> Bitmap:
        """Which blocks of `grid` were done and had their outputs deleted since, in raster order."""
        return self._where(DROPPED, fingerprint, step, grid)

    def part(self, fingerprint: str, step: str, grid: Grid) -> int | None:
        """The id under which this grid was declared; None if it was not."""
        box = _index_box(grid.first, grid.counts)
        return next((part.number for part in self._parts_of.get((fingerprint, step), ()) if part.box == box), None)

    def declaration(self, fingerprint: str, step: str, grid: Grid) -> Event:
        """The event that declares a grid, with an id that is free."""
        number = max(self._parts, default=0) + 1
        first, counts = list(grid.first), list(grid.counts)
        return {"e": "part", "id": number, "stage": fingerprint, "step": step, "first": first, "counts": counts}

    def events(self) -> Iterator[Event]:
        """Few events that add up to an equal ledger."""
        yield from self.sessions
        for part in self._parts.values():
            place = {"stage": part.stage, "step": part.step, "first": [*part.box.start], "counts": [*part.box.shape]}
            yield {"e": "part", "id": part.number, **place}
            states = np.frombuffer(part.states, np.uint8)
            for name, bit in (("done", DONE), ("dropped", DROPPED)):
                chosen = states & bit != 0
                if chosen.any():
                    packed = base64.b64encode(zlib.compress(np.packbits(chosen).tobytes()))
                    yield {"e": "bits", "id": part.number, "state": name, "data": packed.decode()}
        for (stage, step, index), failure in self.failures.items():
            part = next(p for p in self._parts_of[stage, step] if p.box.contains(_index_box(index, (1, 1, 1))))
            yield {"e": "failed", "id": part.number, "at": [part.position(index)], **failure}
        for stage, values in self.figures.items():
            yield {"e": "figures", "stage": stage, "values": values}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and self._state() == other._state()

    def _state(self) -> tuple[Any, ...]:
        parts = [(p.number, p.stage, p.step, p.box, bytes(p.states)) for p in self._parts.values()]
        return parts, self.failures, self.figures, list(self.sessions)

    def _where(self, state: int, fingerprint: str, step: str, grid: Grid) -> Bitmap:
        asked = _index_box(grid.first, grid.counts)
        out = np.zeros(asked.shape, np.bool_)
        for part in self._parts_of.get((fingerprint, step), ()):
            common = part.box.intersect(asked)
            if not common.empty:
                out[common.slices(asked.start)] |= part.volume[common.slices(part.box.start)] & state != 0
        return out.reshape(-1)

    def _declare(self, event: Event) -> None:
        number, (nz, ny, nx) = event["id"], event["counts"]
        if number in self._parts or min(nz, ny, nx) < 1:
            raise ValueError(f"part {number} of {nz} x {ny} x {nx} blocks is declared twice, or empty")
        box = _index_box(event["first"], (nz, ny, nx))
        part = _Part(number, event["stage"], event["step"], box, bytearray(nz * ny * nx))
        fellows = self._parts_of.setdefault((part.stage, part.step), [])
        for other in fellows:
            if not other.box.intersect(box).empty:
                here, there = part.shared(other)
                here[:] = there
                part.overlapping.append(other)
                other.overlapping.append(part)
        fellows.append(part)
        self._parts[number] = part

    def _done(self, event: Event) -> None:
        part, runs = self._named(event)
        if self._set(part, runs, DONE):
            self._count(part.stage, event.get("figures", {}))

    def _dropped(self, event: Event) -> None:
        part, runs = self._named(event)
        self._set(part, runs, DROPPED)

    def _failed(self, event: Event) -> None:
        part, runs = self._named(event)
        self._mark_failed(part, runs)
        said = {key: value for key, value in event.items() if key not in ("e", "id", "at")}
        # Very many may fail, on few workers.
        said |= {key: sys.intern(said[key]) for key in ("worker", "host", "like") if key in said}
        for position in _each(runs):
            self.failures[part.stage, part.step, part.index(position)] = said

    def _lost(self, event: Event) -> None:
        stage = event["stage"]
        for part in self._parts.values():
            if part.stage == stage:
                part.states[:] = bytes(len(part.states))
        self.failures = {key: failure for key, failure in self.failures.items() if key[0] != stage}
        self.figures.pop(stage, None)

    def _bits(self, event: Event) -> None:
        part, state = self._parts[event["id"]], {"done": DONE, "dropped": DROPPED}[event["state"]]
        size = -(-len(part.states) // 8)
        # However much is packed into it, no more than this is taken out.
        packed = zlib.decompressobj().decompress(base64.b64decode(event["data"]), size + 1)
        if len(packed) != size:
            raise ValueError(f"part {part.number} has {len(part.states)} blocks, and not {len(packed)} bytes of bits")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=len(part.states))
        chosen = bits.view(np.bool_).reshape(part.box.shape)
        # Parts that share blocks with this one have bits of their own.
        part.volume[chosen] = state

    def _named(self, event: Event) -> tuple[_Part, Runs]:
        """The part and the places that an event speaks of, after a check that they are within it."""
        part, runs = self._parts[event["id"]], event["at"]
        size = len(part.states)
        for run in runs:
            start, count = run if isinstance(run, list) else (run, 1)
            if start < 0 or not 0 < count <= size - start:
                raise ValueError(f"block {run} is not of part {part.number}, which has {size}")
        return part, runs

    def _set(self, part: _Part, runs: Runs, state: int) -> bool:
        """Put blocks into a state, in all parts that hold them; whether any was neither done nor dropped before."""
        fresh = self._set_here(part, runs, state)
        for other in part.overlapping:
            self._set_here(other, part.there(runs, other), state)
        return fresh

    def _set_here(self, part: _Part, runs: Runs, state: int) -> bool:
        states, fresh = part.states, False
        # Plain Python: a batch has few runs, and slices of a bytearray are quicker than small numpy arrays.
        for run in runs:
            if not isinstance(run, list) and not states[run]:
                states[run], fresh = state, True
                continue
            start, count = run if isinstance(run, list) else (run, 1)
            before = states[start : start + count]
            if before.count(DONE) + before.count(DROPPED) < count:
                fresh = fresh or bool(before.count(0) or before.count(FAILED))
                self._forget_failures(part, start, before)
            states[start : start + count] = bytes((state,)) * count
        return fresh

    def _forget_failures(self, part: _Part, start: int, before: bytearray) -> None:
        if before.count(0) < len(before):
            for place, state in enumerate(before):
                if state & FAILED:
                    self.failures.pop((part.stage, part.step, part.index(start + place)), None)

    def _mark_failed(self, part: _Part, runs: Runs) -> None:
        """A block that failed is not done, but may have been dropped before."""
        for target, places in ((part, runs), *((other, part.there(runs, other)) for other in part.overlapping)):
            for place in _each(places):
                target.states[place] = target.states[place] & DROPPED | FAILED

    def _count(self, stage: str, figures: dict[str, Any]) -> None:
        sums = self.figures.setdefault(stage, {})
        for name, value in figures.items():
            if name == "largest":
                # Of equals the one with the smaller id, whatever the order in which blocks end.
                sums[name] = max(sums.get(name, [0, 0]), list(value), key=lambda pair: (pair[0], -pair[1]))
            else:
                sums[name] = sums.get(name, 0) + value


def _index_box(first: Sequence[int], counts: Iterable[int]) -> Box:
    z, y, x = map(operator.index, first)
    nz, ny, nx = map(operator.index, counts)
    return Box((z, y, x), (z + nz, y + ny, x + nx))
