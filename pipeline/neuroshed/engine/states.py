"""States of the blocks of one step: one byte a block, and what it takes to find the ready ones in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.engine.sweep import Places, Positions, Sweep

WAITING, READY, RUNNING, DONE, FAILED, DROPPED, SKIPPED = range(7)
NAMES = ("waiting", "ready", "running", "done", "failed", "dropped", "skipped")

CHUNK = 4096
"""Blocks that share one number of ready ones."""
PART = 256 * CHUNK
"""Blocks that are looked at in one pass over all of them."""

Counter = npt.NDArray[np.unsignedinteger[Any]]


class States:
    """States of `size` blocks, all waiting at first; `places` are in sweep order."""

    def __init__(self, name: str, sweep: Sweep) -> None:
        """`name` says in errors which step it is."""
        self.sweep = sweep
        self.size = int(np.prod(sweep.counts))
        self.states = np.zeros(self.size, np.uint8)
        self.tally = [self.size, 0, 0, 0, 0, 0, 0]
        self._name = name
        self._ready = np.zeros(-(-self.size // CHUNK), np.uint16)
        self._first_ready = 0

    def parts(self) -> Iterator[slice]:
        """All places, in slices small enough for temporary arrays."""
        for begin in range(0, self.size, PART):
            yield slice(begin, min(begin + PART, self.size))

    def restore(self, rows: npt.NDArray[np.bool_], state: int) -> None:
        """Set the blocks that are true in `rows`, one a block in raster order.

        Raises `ValueError` if the number of rows is not that of the blocks.
        """
        if rows.size != self.size:
            raise ValueError(f"{self._name} has {self.size} blocks, got states of {rows.size}; restore its own grid's")
        np.copyto(self.sweep.volume(self.states), np.uint8(state), where=rows.reshape(self.sweep.counts))
        self.count()

    def swept(self, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """A value for each block, in raster order, turned to sweep order."""
        values = np.empty(self.size, np.bool_)
        self.sweep.volume(values)[...] = rows.reshape(self.sweep.counts)
        return values

    def where(self, state: int) -> Iterator[Positions]:
        """The blocks in a state, in raster order, layer by layer."""
        for z, layer in enumerate(self.sweep.volume(self.states)):
            if (found := np.flatnonzero(layer.ravel() == state)).size:
                yield found + z * layer.size

    def count(self) -> None:
        """Count everything anew, after states were set in bulk."""
        tally = np.zeros(len(NAMES), np.int64)
        for part in self.parts():
            states = self.states[part]
            tally += np.bincount(states, minlength=len(NAMES))
            starts = np.arange(0, states.size, CHUNK)
            chunks = slice(part.start // CHUNK, part.start // CHUNK + starts.size)
            self._ready[chunks] = np.add.reduceat(states == READY, starts, dtype=np.uint16)
        self.tally = tally.tolist()
        self._first_ready = 0

    def take(self, limit: int) -> Places:
        """The first ready blocks, at most `limit`; they are running now."""
        found = []
        left = min(limit, self.tally[READY])
        while left > 0:
            chunk = self._first_ready + int((self._ready[self._first_ready :] != 0).argmax())
            places = np.flatnonzero(self.states[chunk * CHUNK : (chunk + 1) * CHUNK] == READY)[:left] + chunk * CHUNK
            self.states[places] = RUNNING
            self._ready[chunk] -= places.size
            self._first_ready = chunk
            found.append(places)
            left -= places.size
        taken = np.concatenate(found) if found else np.zeros(0, np.int64)
        self.tally[READY] -= taken.size
        self.tally[RUNNING] += taken.size
        return taken

    def move(self, positions: Positions, before: int, after: int) -> Places:
        """Change the state of blocks given in raster order; returns their places.

        Raises `ValueError`, and changes nothing, if one is in another state than `before` or is given twice.
        """
        ordered = np.sort(positions)
        if ordered.size and (ordered[0] < 0 or ordered[-1] >= self.size):
            raise ValueError(f"{self._name} has {self.size} blocks, got {ordered[0]} to {ordered[-1]}; give its own")
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError(f"{self._name}: got a block twice among {positions.tolist()}; report each once")
        places = self.sweep.places(positions)
        wrong = self.states[places] != before
        if wrong.any():
            state = NAMES[self.states[places[wrong][0]]]
            raise ValueError(
                f"{self._name}: block {positions[wrong][0]} is {state}; give blocks that are {NAMES[before]}"
            )
        self.set(places, before, after)
        return places

    def set(self, places: Places, before: int, after: int) -> None:
        """Change the state of blocks, all different and all in state `before`."""
        self.states[places] = after
        self.tally[before] -= places.size
        self.tally[after] += places.size
        if before == READY:
            np.subtract.at(self._ready, places // CHUNK, np.uint16(1))
        if after == READY and places.size:
            chunks = places // CHUNK
            np.add.at(self._ready, chunks, np.uint16(1))
            self._first_ready = min(self._first_ready, int(chunks.min()))


def count_down(counter: Counter, places: Places) -> Places:
    """Take 1 from `counter` for each of `places`, which may repeat; returns those that are at 0 now, each once."""
    # A number of the same type: numpy is thirty times slower with one that it must cast.
    np.subtract.at(counter, places, counter.dtype.type(1))
    return np.unique(places[counter[places] == 0])


def counter_of(size: int, highest: int) -> Counter:
    """Zeros of the smallest unsigned type that holds `highest`."""
    return np.zeros(size, np.min_scalar_type(highest))
