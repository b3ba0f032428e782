"""Which blocks may run: the one geometric rule, kept up to date event by event. Pure: no store, no Dask, no clock.

A block may run when every upstream block that its read boxes touch is done. Each block counts the upstream blocks that
it still misses; a block that ends counts down those that read it. Blocks of droppable steps (outputs that are not kept)
also count the readers to come: without any they are not run, and after the last one their outputs may go.

What is held is 2 bytes a block, 3 of a droppable step, as long as no block touches more than 255 others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from neuroshed.engine.reach import Reach, Table, box_sums, most, reads, slabs, turned
from neuroshed.engine.states import (
    DONE,
    DROPPED,
    FAILED,
    READY,
    RUNNING,
    SKIPPED,
    WAITING,
    Counter,
    States,
    count_down,
    counter_of,
)
from neuroshed.engine.sweep import Coordinates, Places, Positions, Sweep
from neuroshed.stages.base import Need, Step

__all__ = ["Counts", "Key", "Positions", "Readiness"]

Key = tuple[str, str]
"""Fingerprint of a stage and name of one of its steps."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many blocks of a stage are in which state; those done may have been dropped since."""

    total: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    ready: int = 0
    waiting: int = 0
    skipped: int = 0


@dataclass(slots=True, eq=False)
class _Node:
    """A step in the flow: its blocks, what they still miss, and, if it is droppable, the readers to come."""

    key: Key
    depth: int
    step: Step
    blocks: States
    droppable: bool
    upstream: list[_Link] = field(default_factory=list)
    readers: list[_Link] = field(default_factory=list)
    missing: Counter = field(default_factory=lambda: counter_of(0, 0))
    unread: Counter = field(default_factory=lambda: counter_of(0, 0))


class _Link:
    """What the blocks of one step touch in another, for one need, upstream or downstream."""

    def __init__(self, reach: Reach, source: _Node, target: _Node) -> None:
        self.reach = reach
        self.source, self.target = source, target
        self._table = Table(reach, target.blocks.sweep)

    def count_down(self, counter: Counter, coordinates: Coordinates) -> Places:
        """Take 1 from the target's `counter` for each pair of a block at `coordinates` and one it touches; returns the
        places that came to 0.
        """
        zeros = [count_down(counter, places) for places in self._table.touched(coordinates)]
        return np.concatenate(zeros) if len(zeros) != 1 else zeros[0]

    def add_waiting(self, counter: Counter) -> None:
        """Add to each block's `counter` in the source how many waiting blocks it touches."""
        source, target = self.source.blocks.sweep, self.target.blocks
        sums, states = source.volume(counter), target.sweep.volume(target.states)
        for own, touched, reach in slabs(self.reach, source, target.sweep):
            region = np.moveaxis(states, source.axis, 0)[touched]
            waiting = np.moveaxis(region == WAITING, 0, source.axis)
            slab = np.moveaxis(sums, source.axis, 0)[own]
            np.add(slab, np.moveaxis(box_sums(waiting, reach), source.axis, 0), out=slab, casting="unsafe")


class Readiness:
    """States of all blocks of a run. Blocks are given and told by step and place, in raster order, in its grid."""

    def __init__(self, steps: Sequence[tuple[str, Step]], droppable: Collection[Key] = ()) -> None:
        """`steps` are (fingerprint of the stage, step), upstream before downstream. What they need of stages that are
        not among them counts as done. Blocks of `droppable` steps are only a means.

        Raises `ValueError` if a step is there twice, or before one that it needs.
        """
        self._nodes: dict[Key, _Node] = {}
        later = [(fingerprint, step.name) for fingerprint, step in reversed(steps)]
        for depth, (_, step) in enumerate(steps):
            key = later.pop()
            name = f"step {step.name!r} of stage {key[0]}"
            if key in later:
                raise ValueError(f"{name} is there twice; list each step once")
            node = _Node(key, depth, step, States(name, Sweep(step.grid.counts)), key in droppable)
            for need in step.needs:
                source = self._nodes.get((need.fingerprint, need.step))
                if source is not None:
                    self._link(node, source, need)
                elif (need.fingerprint, need.step) in [key, *later]:
                    raise ValueError(
                        f"{name} comes before {need.step!r} of {need.fingerprint}; list what it needs first"
                    )
            self._nodes[key] = node
        self._ordered = list(self._nodes.values())
        self._with_ready: set[int] = set()
        self._running = 0

    def restore(self, key: Key, done: npt.NDArray[np.bool_], dropped: npt.NDArray[np.bool_] | None = None) -> None:
        """Before `start`: which blocks are done, and whose outputs were `dropped` after they were done; bool, one a
        block in raster order. `dropped` counts where both are true.

        Raises `ValueError` if there are not as many as blocks.
        """
        blocks = self._nodes[key].blocks
        blocks.restore(done, DONE)
        if dropped is not None:
            blocks.restore(dropped, DROPPED)

    def start(self) -> list[tuple[Key, Positions]]:
        """Find out which blocks are wanted and which of them may run now; returns the blocks to drop, as `finish`.

        All blocks of steps that are kept are wanted, and those of droppable steps that a wanted block reads that is
        not done, but none that a step leaves out. Wanted blocks that were dropped run again.
        """
        idle = []
        for node in reversed(self._ordered):
            if node.droppable:
                node.unread = counter_of(node.blocks.size, sum(most(link.reach) for link in node.readers))
                for link in node.readers:
                    link.add_waiting(node.unread)
            idle.append((node.key, _demand(node)))
        for node in self._ordered:
            node.missing = counter_of(node.blocks.size, sum(most(link.reach) for link in node.upstream))
            for link in node.upstream:
                # What a wanted block reads is wanted, too: it waits or is done.
                link.add_waiting(node.missing)
        for node in self._ordered:
            _find_ready(node)
            self._note(node)
        return [(key, positions) for key, positions in idle if positions.size]

    def ready(self) -> list[tuple[Key, int]]:
        """Steps with ready blocks and how many, furthest down the flow first: old work is finished before new."""
        nodes = (self._ordered[depth] for depth in sorted(self._with_ready, reverse=True))
        return [(node.key, node.blocks.tally[READY]) for node in nodes]

    def take(self, key: Key, limit: int) -> Positions:
        """The first `limit` ready blocks of a step in sweep order, or as many as there are; they are running now."""
        node = self._nodes[key]
        places = node.blocks.take(limit)
        self._running += places.size
        self._note(node)
        return node.blocks.sweep.positions(places)

    def finish(self, key: Key, positions: Positions) -> list[tuple[Key, Positions]]:
        """Running blocks are done: look again at those that read them. Returns blocks of droppable steps that are done
        and whose last reader is done now: theirs to `drop`.

        Raises `ValueError` if a block is not running.
        """
        node = self._nodes[key]
        self._move(node, positions, RUNNING, DONE)
        coordinates = node.blocks.sweep.coordinates(positions)
        for link in node.readers:
            reader = link.target
            freed = link.count_down(reader.missing, coordinates)
            reader.blocks.set(freed[reader.blocks.states[freed] == WAITING], WAITING, READY)
            self._note(reader)
        idle: dict[Key, list[Positions]] = {}
        for link in node.upstream:
            if not link.target.droppable:
                continue
            unread = link.target.blocks.sweep.positions(link.count_down(link.target.unread, coordinates))
            if (skipped := link.target.step.skipped) is not None:
                # What was left out has nothing to drop, or was told at the start.
                unread = unread[~skipped.reshape(-1)[unread]]
            if unread.size:
                idle.setdefault(link.target.key, []).append(unread)
        return [(upstream, np.concatenate(parts)) for upstream, parts in idle.items()]

    def drop(self, key: Key, positions: Positions) -> None:
        """The outputs of blocks that are done are deleted. Raises `ValueError` if a block is not done."""
        self._move(self._nodes[key], positions, DONE, DROPPED)

    def passes(self, key: Key) -> bool:
        """Whether outputs of a step, or some that it reads, are dropped as the sweep goes on: one step reads them."""
        node = self._nodes[key]
        found = (node, *(link.target for link in node.upstream))
        return any(step.droppable and len(step.readers) == 1 for step in found)

    def dropped(self) -> list[tuple[Key, Iterator[Positions]]]:
        """The blocks whose outputs are deleted or about to be, and not computed again, some at a time."""
        return [(node.key, node.blocks.where(DROPPED)) for node in self._ordered if node.blocks.tally[DROPPED]]

    def retry(self, key: Key, positions: Positions) -> None:
        """Put running blocks back among the ready ones. Raises `ValueError` if a block is not running."""
        self._move(self._nodes[key], positions, RUNNING, READY)

    def fail(self, key: Key, positions: Positions) -> None:
        """Set running blocks aside; what reads them waits for ever. Raises `ValueError` if a block is not running."""
        self._move(self._nodes[key], positions, RUNNING, FAILED)

    def set_aside(self, key: Key, positions: Positions) -> None:
        """Blocks that are not to be tried, though they are not done: what reads them waits for ever. Of those that run
        or are done already, nothing changes.
        """
        node = self._nodes[key]
        places = node.blocks.sweep.places(positions)
        for state in (WAITING, READY):
            node.blocks.set(places[node.blocks.states[places] == state], state, FAILED)
        self._note(node)

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing ready."""
        return not self._running and not self._with_ready

    def counts(self) -> dict[str, Counts]:
        """Blocks by stage fingerprint."""
        tallies: dict[str, list[list[int]]] = {}
        for (fingerprint, _), node in self._nodes.items():
            tallies.setdefault(fingerprint, []).append(node.blocks.tally)
        return {fingerprint: _counts(several) for fingerprint, several in tallies.items()}

    def counts_by_step(self) -> dict[Key, Counts]:
        """Blocks by step."""
        return {key: _counts([node.blocks.tally]) for key, node in self._nodes.items()}

    @staticmethod
    def _link(node: _Node, source: _Node, need: Need) -> None:
        reach = reads(node.step.grid, source.step.grid, need.low, need.high)
        node.upstream.append(_Link(reach, node, source))
        source.readers.append(_Link(turned(reach, source.step.grid.counts), source, node))

    def _move(self, node: _Node, positions: Positions, before: int, after: int) -> None:
        node.blocks.move(positions, before, after)
        if before == RUNNING:
            self._running -= positions.size
        self._note(node)

    def _note(self, node: _Node) -> None:
        if node.blocks.tally[READY]:
            self._with_ready.add(node.depth)
        else:
            self._with_ready.discard(node.depth)


def _demand(node: _Node) -> Positions:
    """Set apart what is wanted and what not; returns the blocks whose outputs nobody will read any more."""
    idle = [np.zeros(0, np.int64)]
    blocks = node.blocks
    left_out = blocks.swept(node.step.skipped) if node.step.skipped is not None else None
    for part in blocks.parts():
        states = blocks.states[part]
        wanted: npt.NDArray[np.bool_] = node.unread[part] > 0 if node.droppable else np.ones(states.size, np.bool_)
        if left_out is not None:
            wanted &= ~left_out[part]
        if node.droppable:
            idle.append(np.flatnonzero((states == DONE) & ~wanted) + part.start)
        states[(states == DROPPED) & wanted] = WAITING
        states[(states == WAITING) & ~wanted] = SKIPPED
    return blocks.sweep.positions(np.concatenate(idle))


def _find_ready(node: _Node) -> None:
    blocks = node.blocks
    for part in blocks.parts():
        states = blocks.states[part]
        states[(states == WAITING) & (node.missing[part] == 0)] = READY
    blocks.count()


def _counts(tallies: Iterable[Sequence[int]]) -> Counts:
    waiting, ready, running, done, failed, dropped, skipped = (sum(states) for states in zip(*tallies, strict=True))
    return Counts(
        total=waiting + ready + running + done + failed + dropped + skipped,
        done=done + dropped,
        running=running,
        failed=failed,
        ready=ready,
        waiting=waiting,
        skipped=skipped,
    )
