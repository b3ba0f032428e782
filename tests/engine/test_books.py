"""What is sent to workers never lets more intermediate data pile up than a plan counts on."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from neuroshed.engine.attempts import FailureOptions
from neuroshed.engine.books import Books, Work
from neuroshed.engine.progress import Progress
from neuroshed.engine.readiness import Key, Positions, Readiness
from neuroshed.engine.worker import Report
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Need, Step
from neuroshed.workflow.footprint import frontier_blocks

THREADS, WINDOW = 4, 8


def stage(fingerprint: str, step: Step) -> Any:
    return SimpleNamespace(
        fingerprint=fingerprint, steps=(step,), resource=lambda name: "cpu", memory_bytes=lambda name: 0
    )


def report(work: Work, seconds: float) -> Report:
    return Report(work.positions, seconds * len(work.positions), {}, (), "host", "worker", 0.0)


@pytest.mark.parametrize("seconds", [0.001, 0.2, 5.0])
@pytest.mark.parametrize("shape", [(40, 12, 9), (9, 12, 40), (3, 30, 3)])
def test_however_quick_blocks_are_what_waits_to_be_read_stays_as_planned(shape: Vec, seconds: float) -> None:
    grid = Grid(Box.of_shape(shape), (1, 1, 1))
    first = Step("", grid)
    second = Step("", grid, (Need("a", "", (1, 1, 1), (1, 1, 1)),))
    readiness = Readiness([("a", first), ("b", second)], [("a", "")])
    readiness.start()
    held, most = 0, 0

    def discard(key: Key, positions: Positions) -> None:
        nonlocal held
        held -= positions.size

    stages = [stage("a", first), stage("b", second)]
    books = Books(mock.Mock(), stages, readiness, Progress({}, {"a": "a", "b": "b"}), FailureOptions(), discard)
    sent: deque[Work] = deque()
    while not books.idle:
        while found := books.next_work(lambda demand, alone: "w" if len(sent) < WINDOW else None, THREADS):
            sent.append(found[0])
        work = sent.popleft()
        if work.key[0] == "a":
            held += len(work.positions)
            most = max(most, held)
        books.report([(work, report(work, seconds))])
    assert held == 0
    assert most <= frontier_blocks(shape)
