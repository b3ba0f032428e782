"""A ledger says what a plain dictionary of blocks would say, and its own events add up to it again."""

from __future__ import annotations

import base64
import itertools
import json
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.geometry import Box, Grid, Vec, add
from neuroshed.storage.ledger import SESSIONS_KEPT, Event, Ledger, positions_of, runs_of

STAGES, STEPS = ("a" * 64, "b" * 64), ("up0", "down0")


def part(number: int, stage: str, step: str, first: Vec, counts: Vec) -> Event:
    return {"e": "part", "id": number, "stage": stage, "step": step, "first": list(first), "counts": list(counts)}


def grid_of(first: Vec, counts: Vec) -> Grid:
    """A grid with these blocks."""
    return Grid(Box(first, add(first, counts)), (1, 1, 1))


def ledger_of(events: Iterable[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.apply(json.loads(json.dumps(event)))
    return ledger


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


class PlainLedger:
    """The reference: a dictionary from blocks to what is known of each."""

    def __init__(self) -> None:
        self.parts: dict[int, Event] = {}
        self.states: dict[tuple[str, str, Vec], str] = {}
        self.failures: dict[tuple[str, str, Vec], Any] = {}
        self.figures: dict[str, dict[str, Any]] = {}

    def blocks(self, event: Event) -> list[tuple[str, str, Vec]]:
        named = self.parts[event["id"]]
        every = list(
            itertools.product(*(range(f, f + n) for f, n in zip(named["first"], named["counts"], strict=True)))
        )
        return [(named["stage"], named["step"], every[at]) for at in positions_of(event["at"]).tolist()]

    def apply(self, event: Event) -> None:
        if event["e"] == "part":
            self.parts[event["id"]] = event
        elif event["e"] == "lost":
            self.states = {key: state for key, state in self.states.items() if key[0] != event["stage"]}
            self.failures = {key: said for key, said in self.failures.items() if key[0] != event["stage"]}
            self.figures.pop(event["stage"], None)
        elif event["e"] == "failed":
            for block in self.blocks(event):
                self.failures[block] = event["error"]
                if self.states.get(block) == "done":
                    del self.states[block]
        else:
            blocks = self.blocks(event)
            if event["e"] == "done" and any(block not in self.states for block in blocks):
                self.add(self.parts[event["id"]]["stage"], event["figures"])
            for block in blocks:
                self.states[block] = event["e"]
                self.failures.pop(block, None)

    def add(self, stage: str, figures: dict[str, Any]) -> None:
        sums = self.figures.setdefault(stage, {"voxels": 0, "seconds": 0, "largest": []})
        sums["voxels"] += figures["voxels"]
        sums["seconds"] += figures["seconds"]
        sums["largest"] = sorted([*sums["largest"], figures["largest"]], key=lambda pair: (-pair[0], pair[1]))

    def where(self, state: str, stage: str, step: str, grid: Grid) -> list[bool]:
        return [self.states.get((stage, step, index)) == state for index in grid]


triples = st.tuples(*[st.integers(0, 3)] * 3)
sizes = st.tuples(*[st.integers(1, 4)] * 3)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Parts that overlap at will, and events about their blocks."""
    parts = [
        part(number, draw(st.sampled_from(STAGES)), draw(st.sampled_from(STEPS)), draw(triples), draw(sizes))
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]
    events, declared = [parts[0]], 1
    for _ in range(draw(st.integers(0, 20))):
        kind = draw(st.sampled_from(("part", "done", "done", "done", "dropped", "failed", "lost", "session")))
        if kind == "part":
            events += parts[declared : declared + 1]
            declared = min(declared + 1, len(parts))
        elif kind == "lost":
            events.append({"e": "lost", "stage": draw(st.sampled_from(STAGES))})
        elif kind == "session":
            events.append({"e": "session", "epoch": len(events)})
        else:
            named = draw(st.sampled_from(parts[:declared]))
            size = int(np.prod(named["counts"]))
            event = {"e": kind, "id": named["id"]}
            event["at"] = runs_of(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size)))
            if kind == "failed":
                event |= {"error": draw(st.text(max_size=3)), "attempts": 3}
            if kind == "done":
                largest = [draw(st.integers(1, 5)), draw(st.integers(1, 5))]
                seconds = draw(st.floats(0, 1e6))
                event["figures"] = {"voxels": draw(st.integers(0, 2**40)), "seconds": seconds, "largest": largest}
            events.append(event)
    return events


@given(histories(), triples, sizes)
def test_a_ledger_says_what_plain_dictionaries_say(events: list[Event], first: Vec, counts: Vec) -> None:
    ledger, plain = ledger_of(events), PlainLedger()
    for event in events:
        if event["e"] != "session":
            plain.apply(event)
    grid = grid_of(first, counts)
    for stage, step in itertools.product(STAGES, STEPS):
        assert ledger.done(stage, step, grid).tolist() == plain.where("done", stage, step, grid)
        assert ledger.dropped(stage, step, grid).tolist() == plain.where("dropped", stage, step, grid)
    assert {key: said["error"] for key, said in ledger.failures.items()} == plain.failures
    sums = {stage: sums | {"largest": sums["largest"][0]} for stage, sums in plain.figures.items()}
    assert ledger.figures == sums


@given(histories(), histories())
def test_its_own_events_add_up_to_it_and_go_on_like_it(before: list[Event], after: list[Event]) -> None:
    ledger = ledger_of(before)
    again = ledger_of(ledger.events())
    assert again == ledger
    later = [event | {"id": event["id"] + 10} if "id" in event else event for event in after]
    for event in later:
        ledger.apply(event)
        again.apply(event)
    assert again == ledger
    assert len(list(ledger.events())) <= len(before) + len(after) + 2 * 8 + 2 + len(ledger.failures)


@given(st.lists(st.integers(0, 200)))
def test_runs_are_the_same_positions(positions: list[int]) -> None:
    runs = runs_of(positions)
    assert positions_of(runs).tolist() == sorted(set(positions))
    spans = [run if isinstance(run, list) else [run, 1] for run in runs]
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(spans)), "runs that touch are one"


def test_blocks_of_a_trial_region_are_done_in_the_whole() -> None:
    trial, whole = grid_of((1, 2, 3), (2, 2, 2)), grid_of((0, 0, 0), (4, 5, 6))
    ledger = Ledger()
    ledger.apply(ledger.declaration("a", "s", trial))
    ledger.apply({"e": "done", "id": 1, "at": [[0, 8]], "figures": {"voxels": 8}})
    declared = ledger.declaration("a", "s", whole)
    ledger.apply(declared)
    assert (ledger.part("a", "s", trial), ledger.part("a", "s", whole), declared["id"]) == (1, 2, 2)
    assert ledger.part("a", "other", whole) is None
    assert {index for index, done in zip(whole, ledger.done("a", "s", whole), strict=True) if done} == set(trial)
    # Known under either name, it counts once.
    ledger.apply({"e": "done", "id": 2, "at": [whole.position((1, 2, 3))], "figures": {"voxels": 1}})
    assert ledger.figures == {"a": {"voxels": 8}}


def test_the_lives_of_a_block() -> None:
    ledger, grid = ledger_of([part(1, "a", "s", (0, 0, 0), (1, 1, 2))]), grid_of((0, 0, 0), (1, 1, 2))
    lives = [
        # event, done, dropped, failed, voxels counted
        ("failed", False, False, True, 0),
        ("done", True, False, False, 1),
        ("dropped", False, True, False, 1),
        ("failed", False, True, True, 1),
        ("done", True, False, False, 1),
        ("failed", False, False, True, 1),
        ("done", True, False, False, 2),
        ("done", True, False, False, 2),
        ("dropped", False, True, False, 2),
        ("dropped", False, True, False, 2),
    ]
    for kind, done, dropped, failed, voxels in lives:
        ledger.apply({"e": kind, "id": 1, "at": [1], "figures": {"voxels": 1}})
        assert ledger.done("a", "s", grid).tolist() == [False, done]
        assert ledger.dropped("a", "s", grid).tolist() == [False, dropped]
        assert list(ledger.failures) == [("a", "s", (0, 0, 1))] * failed
        assert ledger.figures.get("a", {}).get("voxels", 0) == voxels
        assert ledger_of(ledger.events()) == ledger


def test_only_the_last_sessions_are_kept() -> None:
    ledger = ledger_of({"e": "session", "number": number} for number in range(SESSIONS_KEPT + 7))
    assert [event["number"] for event in ledger.sessions] == list(range(7, SESSIONS_KEPT + 7))


@pytest.mark.parametrize(
    "event",
    [
        {"e": "done", "id": 2, "at": [0]},
        {"e": "done", "id": 1, "at": [8]},
        {"e": "done", "id": 1, "at": [-1]},
        {"e": "dropped", "id": 1, "at": [[7, 2]]},
        {"e": "dropped", "id": 1, "at": [[7, 0]]},
        {"e": "done", "id": 1, "at": "all"},
        {"e": "bits", "id": 1, "state": "done", "data": "AAAA"},
        {"e": "bits", "id": 1, "state": "done", "data": packed(b"")},
        {"e": "bits", "id": 1, "state": "done", "data": packed(bytes(1 << 24))},
        {"e": "bits", "id": 1, "state": "failed", "data": packed(b"\xff")},
        {"e": "done", "id": 1, "at": [0.5]},
        {"e": "done", "id": [1], "at": [0]},
        {"e": "figures", "stage": "a", "values": [1]},
        part(2, "a", "s", (0, 0, 0), (10**6, 10**6, 10**6)),
        part(2, "a", "s", (0, 0, 0), (10**9, 10**9, 10**9)),
        part(2, "a", "s", (0, 0.5, 0), (2, 2, 2)),
        {"e": "unheard-of"},
        {"e": ["done"]},
        part(1, "a", "s", (0, 0, 0), (2, 2, 2)),
        part(2, "a", "s", (0, 0, 0), (2, 0, 2)),
        {},
    ],
)
def test_events_that_make_no_sense_are_refused(event: Event) -> None:
    ledger = ledger_of([part(1, "a", "s", (0, 0, 0), (2, 2, 2))])
    with pytest.raises(ValueError, match=r".+") as caught:
        ledger.apply(event)
    assert "\n" not in str(caught.value)
    assert not ledger.done("a", "s", grid_of((0, 0, 0), (2, 2, 2))).any()


def test_a_block_costs_a_byte() -> None:
    events = [part(1, "a", "s", (0, 0, 0), (100, 100, 100))]
    events += [{"e": "done", "id": 1, "at": [[at, 64]], "figures": {"voxels": 1}} for at in range(0, 999_936, 64)]
    tracemalloc.start()
    try:
        ledger = ledger_of(events)
        assert ledger.figures["a"]["voxels"] == len(events) - 1
        assert tracemalloc.get_traced_memory()[0] < 1.1e6
    finally:
        tracemalloc.stop()
