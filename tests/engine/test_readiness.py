"""What is ready, counted and droppable, kept up to date in arrays, equals the rule looked up anew for every block."""

from __future__ import annotations

import copy
import gc
import math
import tracemalloc
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.engine import reach, states
from neuroshed.engine.readiness import Key, Positions, Readiness
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Need, Step
from neuroshed.stages.octree import climb, descend
from tests.engine.plain_readiness import Block, PlainReadiness

Steps = list[tuple[str, Step]]
CHAIN: list[Key] = [("a", ""), ("b", ""), ("c", "")]

halos = st.tuples(*[st.sampled_from([0, 0, 1, 2, 5])] * 3)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Grids of different blocks over boxes that overlap, or not."""
    start = draw(st.tuples(*[st.integers(0, 4)] * 3))
    z, y, x = (a + draw(st.integers(1, 6)) for a in start)
    return Grid(Box(start, (z, y, x)), draw(st.tuples(*[st.integers(1, 4)] * 3)))


@st.composite
def flows(draw: st.DrawFn) -> Steps:
    """Flat stages and trees, up or up and down, that read any of the steps before them or of a stage elsewhere; of some
    any blocks are left out.
    """
    steps: Steps = [("s0", Step("", draw(grids())))]
    for number in range(1, draw(st.integers(2, 4))):
        name = f"s{number}"
        sources = draw(st.lists(st.sampled_from([*steps, ("elsewhere", Step("", steps[0][1].grid))]), max_size=2))
        needs = tuple(Need(source, step.name, draw(halos), draw(halos)) for source, step in sources)
        kind = draw(st.sampled_from(["flat", "flat", "climb", "descend"]))
        if kind == "flat":
            steps.append((name, Step("", draw(grids()), needs)))
            continue
        levels = draw(grids()).octree()
        steps += [(name, step) for step in climb(name, levels, needs)]
        if kind == "descend":
            paint = Step("paint", levels[0], (Need(name, "down0", high=(1, 1, 1)), *needs))
            steps += [(name, step) for step in (*descend(name, levels, name), paint)]
    odds = draw(st.sampled_from([0.0, 0.0, 0.3, 0.8, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [
        (name, replace(step, skipped=rng.random(step.grid.counts) < odds)) if odds else (name, step)
        for name, step in steps
    ]


def keys_of(steps: Steps) -> list[Key]:
    return [(fingerprint, step.name) for fingerprint, step in steps]


class Both:
    """Sends every event to both, and compares all that they say after it."""

    def __init__(self, steps: Steps, droppable: frozenset[Key]) -> None:
        self.grids = {key: step.grid for key, (_, step) in zip(keys_of(steps), steps, strict=True)}
        self.fast, self.plain = Readiness(steps, droppable), PlainReadiness(steps, droppable)

    def blocks(self, told: list[tuple[Key, Positions]]) -> list[Block]:
        return [(key, self.grids[key].index(position)) for key, positions in told for position in positions.tolist()]

    def restore(self, key: Key, done: np.ndarray, dropped: np.ndarray | None) -> None:
        self.fast.restore(key, done, dropped)
        self.plain.restore(key, done, dropped)

    def start(self) -> list[tuple[Key, Positions]]:
        told = self.fast.start()
        self._compare(told, self.plain.start())
        return told

    def take(self, key: Key, limit: int) -> Positions:
        expected = self.plain.ready()[key][:limit]
        positions = self.fast.take(key, limit)
        assert [self.grids[key].index(position) for position in positions.tolist()] == expected
        self._compare([], self.plain.set([(key, index) for index in expected], "running"))
        return positions

    def end(self, key: Key, positions: Positions, event: str) -> list[tuple[Key, Positions]]:
        told = getattr(self.fast, event)(key, positions) or []
        state = {"finish": "done", "retry": "waiting", "fail": "failed", "drop": "dropped"}[event]
        self._compare(told, self.plain.set(self.blocks([(key, positions)]), state))
        return told

    def _compare(self, told: list[tuple[Key, Positions]], expected: set[Block]) -> None:
        blocks = self.blocks(told)
        assert len({key for key, _ in told}) == len(told)
        assert len({*blocks}) == len(blocks)
        assert {*blocks} == expected
        ready = self.plain.ready()
        assert self.fast.ready() == [(key, len(indices)) for key, indices in ready.items()]
        aside = copy.deepcopy(self.fast)
        for key, indices in ready.items():
            assert [self.grids[key].index(p) for p in aside.take(key, len(indices) + 1).tolist()] == indices
        counts = self.plain.counts()
        assert self.fast.counts() == counts
        assert self.fast.finished == (not ready and not any(count.running for count in counts.values()))


def play(both: Both, data: st.DataObject) -> None:
    """Take, end and drop blocks in random order and numbers until nothing is left to run."""
    running: list[tuple[Key, int]] = []
    to_drop = both.start()
    while not both.fast.finished:
        ready = [key for key, _ in both.fast.ready()]
        if ready and (not running or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(ready))
            running += [(key, position) for position in both.take(key, data.draw(st.integers(1, 60))).tolist()]
            continue
        key = data.draw(st.sampled_from(running))[0]
        own = [block for block in running if block[0] == key]
        some = data.draw(st.permutations(own))[: data.draw(st.integers(1, len(own)))]
        running = [block for block in running if block not in some]
        event = data.draw(st.sampled_from(["finish", "finish", "finish", "finish", "retry", "fail"]))
        to_drop += both.end(key, np.array([position for _, position in some]), event)
        if to_drop and data.draw(st.booleans()):
            both.end(*to_drop.pop(), "drop")


@given(flows(), st.data(), st.booleans())
def test_equals_the_plain_rule_after_every_event(steps: Steps, data: st.DataObject, pieces: bool) -> None:
    keys = keys_of(steps)
    # Pieces so small that these small grids have many of them, too.
    sizes = (4, 8, 6) if pieces else (states.CHUNK, states.PART, reach.BATCH)
    with mock.patch.multiple(states, CHUNK=sizes[0], PART=sizes[1]), mock.patch.object(reach, "BATCH", sizes[2]):
        both = Both(steps, data.draw(st.frozensets(st.sampled_from(keys))))
        for key in keys:
            odds = data.draw(st.sampled_from([(0.0, 0.0), (0.5, 0.0), (0.3, 0.4), (1.0, 0.0), (0.0, 1.0), (0.9, 0.1)]))
            drawn = np.random.default_rng(data.draw(st.integers(0, 99))).random((2, len(both.grids[key])))
            if max(odds) > 0:
                both.restore(key, drawn[0] < odds[0], drawn[1] < odds[1] if odds[1] else None)
        play(both, data)


@pytest.mark.parametrize("droppable", [True, False])
def test_blocks_that_are_left_out_are_empty_to_readers_and_have_nothing_to_drop(droppable: bool) -> None:
    grid = Grid(Box((0, 0, 0), (1, 1, 4)), (1, 1, 1))
    first = Step("", grid, skipped=np.array([[[False, True, False, True]]]))
    both = Both(
        [("a", first), ("b", Step("", grid, (Need("a", "", (0, 0, 1), (0, 0, 1)),)))],
        frozenset({("a", "")}) if droppable else frozenset(),
    )
    # The last one is there, from before it was left out: it goes only if it is not to be kept.
    both.restore(("a", ""), np.array([False, False, False, True]), None)
    assert [(key, places.tolist()) for key, places in both.start()] == ([(("a", ""), [3])] if droppable else [])
    both.end(("a", ""), both.take(("a", ""), 9), "finish")
    told = both.end(("b", ""), both.take(("b", ""), 9), "finish")
    assert [(key, places.tolist()) for key, places in told] == ([(("a", ""), [0, 2])] if droppable else [])
    assert both.fast.counts()["a"].skipped == 1


@given(grids(), grids(), halos, halos)
def test_reach_along_the_axes_is_what_the_grown_box_touches(grid: Grid, upstream: Grid, low: Vec, high: Vec) -> None:
    forth = reach.reads(grid, upstream, low, high)
    back = reach.turned(forth, upstream.counts)
    pairs = {(index, other) for index in grid for other in upstream.touching(grid.block_box(index).grow(low, high))}
    for own, found in (
        (grid, {(i, other) for i in grid for other in _ranges(forth, grid, i, upstream)}),
        (upstream, {(other, i) for i in upstream for other in _ranges(back, upstream, i, grid)}),
    ):
        assert found == pairs, own
    touched = [sum(index == i for index, _ in pairs) for i in grid]
    assert reach.most(forth) >= max(touched)
    assert reach.box_sums(np.ones(upstream.counts, bool), forth).ravel().tolist() == touched


def _ranges(spans: reach.Reach, grid: Grid, index: Vec, other: Grid) -> list[Vec]:
    own = [i - f for i, f in zip(index, grid.first, strict=True)]
    z, y, x = (range(first[i] + f, stop[i] + f) for (first, stop), i, f in zip(spans, own, other.first, strict=True))
    return [(i, j, k) for i in z for j in y for k in x]


def test_a_block_of_which_nothing_is_left_is_refused() -> None:
    grid = Grid(Box((0, 0, 0), (4, 4, 4)), (2, 2, 2))
    with pytest.raises(ValueError, match="no block of 2 voxels on axis 1 may grow by -1 and -1; use 0 or more"):
        reach.reads(grid, grid, (0, -1, 0), (0, -1, 0))


def chain(shape: Vec, halo: int = 1, block: Vec = (1, 1, 1)) -> Steps:
    """Three stages one after the other over grids of `shape` blocks."""
    grid = Grid(Box((0, 0, 0), tuple(n * side for n, side in zip(shape, block, strict=True))), block)
    around = (halo, halo, halo)
    return [
        ("a", Step("", grid)),
        ("b", Step("", grid, (Need("a", "", around, around),))),
        ("c", Step("", grid, (Need("b", "", around, around),))),
    ]


def test_a_block_may_read_more_others_than_a_byte_counts() -> None:
    steps = chain((9, 9, 9), halo=4)
    readiness = Readiness(steps, CHAIN[:2])
    readiness.start()
    taken = readiness.take(CHAIN[0], 729)
    # The middle block reads all.
    assert readiness.finish(CHAIN[0], taken[taken != 0]) == []
    assert [key for key, _ in readiness.ready()] == CHAIN[1:2]
    assert readiness.ready()[0][1] == 729 - 5**3
    readiness.finish(CHAIN[0], np.array([0]))
    taken = readiness.take(CHAIN[1], 729)
    assert taken.size == 729
    ((key, idle),) = readiness.finish(CHAIN[1], taken[1:])
    assert (key, idle.size) == (CHAIN[0], 729 - 5**3)


@pytest.mark.parametrize("shape", [(6, 2, 3), (2, 6, 3), (3, 2, 6), (6, 6, 2), (2, 6, 6)])
def test_blocks_come_with_the_longest_axis_slowest(shape: Vec) -> None:
    steps = chain(shape)
    readiness = Readiness(steps)
    readiness.start()
    grid, slowest = steps[0][1].grid, shape.index(6)
    indices = [grid.index(position) for position in readiness.take(CHAIN[0], 1000).tolist()]
    assert indices == sorted(grid, key=lambda index: (index[slowest], index))


@pytest.mark.parametrize("shape", [(40, 12, 9), (9, 12, 40)])
def test_what_waits_to_be_read_stays_a_few_cross_sections(shape: Vec) -> None:
    batch = 16
    readiness = Readiness(chain(shape), CHAIN[:2])
    readiness.start()
    kept, most = 0, 0
    while not readiness.finished:
        key, _ = readiness.ready()[0]
        positions = readiness.take(key, batch)
        kept += positions.size if key == CHAIN[0] else 0
        most = max(most, kept)
        for upstream, idle in readiness.finish(key, positions):
            readiness.drop(upstream, idle)
            kept -= idle.size if upstream == CHAIN[0] else 0
    assert kept == 0
    assert all(count.done == count.total for count in readiness.counts().values())
    section = 12 * 9
    row = 9 if shape[0] == 40 else 12
    # The corners of a halo of 1 reach one row and one block beyond the cross-section, on both sides.
    assert 2 * section <= most <= 2 * (section + row + 1) + batch


def test_a_million_blocks_run_through_in_three_bytes_each() -> None:
    shape = (100, 100, 100)
    tracemalloc.start()
    try:
        readiness = Readiness(chain(shape), CHAIN[:2])
        assert readiness.start() == []
        started = tracemalloc.get_traced_memory()[1]
        gc.collect()
        tracemalloc.reset_peak()
        while not readiness.finished:
            key, _ = readiness.ready()[0]
            for upstream, idle in readiness.finish(key, readiness.take(key, 3000)):
                readiness.drop(upstream, idle)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = 3 * math.prod(shape)
    assert all(count.done == count.total for count in readiness.counts().values())
    assert held < 2.8 * blocks
    # What comes on top is temporary, and does not grow with the number of blocks.
    assert peak < 2.8 * blocks + 16e6
    assert started < 2.8 * blocks + 64e6


def test_unwanted_blocks_of_droppable_steps_are_skipped() -> None:
    steps = chain((4, 1, 1))
    readiness = Readiness(steps, CHAIN[:2])
    readiness.restore(CHAIN[2], np.array([True, True, True, False]))
    assert readiness.start() == []
    counts = readiness.counts()
    assert (counts["b"].skipped, counts["b"].waiting) == (2, 2)
    assert (counts["a"].skipped, counts["a"].ready) == (1, 3)


def test_a_dropped_block_is_run_again_if_it_is_wanted_and_counts_as_done_if_not() -> None:
    readiness = Readiness(chain((4, 1, 1), halo=0), CHAIN[:2])
    some = np.array([True, True, False, False])
    for key in CHAIN[:2]:
        readiness.restore(key, np.zeros(4, bool), np.ones(4, bool))
    readiness.restore(CHAIN[2], some)
    assert readiness.counts()["a"].done == 4
    assert readiness.start() == []
    assert readiness.counts()["b"].done == 2
    assert {key: np.concatenate([*parts]).tolist() for key, parts in readiness.dropped()} == {
        key: [0, 1] for key in CHAIN[:2]
    }
    assert readiness.take(CHAIN[0], 9).tolist() == [2, 3]


def test_outputs_left_by_an_earlier_run_are_dropped_at_the_start() -> None:
    readiness = Readiness(chain((4, 1, 1), halo=0), CHAIN[:2])
    for key in CHAIN:
        readiness.restore(key, np.array([True, True, False, True]))
    told = {key: positions.tolist() for key, positions in readiness.start()}
    assert told == {CHAIN[0]: [0, 1, 3], CHAIN[1]: [0, 1, 3]}


@pytest.mark.parametrize(
    ("positions", "event", "message"),
    [
        ([1, 9], "finish", "block 9 is ready; give blocks that are running"),
        ([1, 2], "drop", "block 1 is running; give blocks that are done"),
        ([2, 1, 2], "finish", r"got a block twice among \[2, 1, 2\]; report each once"),
        ([0, 27], "retry", "has 27 blocks, got 0 to 27; give its own"),
        ([-1], "fail", "has 27 blocks, got -1 to -1; give its own"),
    ],
)
def test_events_of_the_wrong_blocks_are_refused_and_change_nothing(
    positions: list[int], event: str, message: str
) -> None:
    readiness = Readiness(chain((3, 3, 3)))
    readiness.start()
    assert readiness.take(CHAIN[0], 4).tolist() == [0, 1, 2, 3]
    before = readiness.counts()
    with pytest.raises(ValueError, match=message):
        getattr(readiness, event)(CHAIN[0], np.array(positions))
    assert readiness.counts() == before


def test_a_batch_without_blocks_changes_nothing() -> None:
    readiness = Readiness(chain((3, 3, 3)), CHAIN[:2])
    readiness.start()
    before = readiness.counts()
    nothing = readiness.take(CHAIN[1], 5)
    assert nothing.size == 0
    for key in CHAIN:
        assert readiness.finish(key, nothing) == []
        readiness.retry(key, nothing)
    assert readiness.counts() == before


def test_states_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="step '' of stage a has 27 blocks, got states of 8; restore its own grid's"):
        Readiness(chain((3, 3, 3))).restore(CHAIN[0], np.ones(8, bool))


def test_steps_out_of_order_are_refused() -> None:
    first, second, third = chain((2, 2, 2))
    with pytest.raises(ValueError, match="step '' of stage b comes before '' of a; list what it needs first"):
        Readiness([second, first])
    with pytest.raises(ValueError, match="step '' of stage a is there twice; list each step once"):
        Readiness([first, second, first, third])
