"""Windows of falling score give what one graph in memory gives, whatever the room."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.plain_merging import SCORES
from tests.kernels.test_merging import Case, random_case

from neuroshed.errors import BlockError
from neuroshed.kernels.merging import Edges, Nodes, Outcome
from neuroshed.kernels.scores import Score
from neuroshed.stages import windows
from neuroshed.stages.windows import agglomerate_split
from neuroshed.storage.spill import EdgeStore


def split(case: Case, room: int) -> Outcome:
    nodes, edges = case.arrays()
    store = EdgeStore(case.score.columns, room)
    for k in range(edges.left.size):
        store.append(*(column[k : k + 1] for column in edges))
    found = agglomerate_split(nodes, store, case.score, case.lowest, case.max_size, room)
    merges = [np.concatenate(columns) for columns in zip(*found.merges, strict=True)]
    pieces = [np.concatenate(columns) for columns in zip(*found.edges, strict=True)]
    return Outcome(type(case.outcome().merges)(*merges), found.clusters, found.owner, Edges(*pieces), np.zeros(0))


@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 60), marks=pytest.mark.system)])
@pytest.mark.parametrize("room", [1, 2, 5, 20, 1000])
@pytest.mark.parametrize("name", SCORES)
def test_any_room_gives_the_same(name: str, room: int, seeds: range) -> None:
    for seed in seeds:
        case = random_case(name, seed, most_nodes=40)
        assert_same(split(case, room), case.outcome())


def assert_same(found: Outcome, expected: Outcome) -> None:
    for one, two in (
        (found.merges, expected.merges),
        (found.clusters, expected.clusters),
        (found.edges, expected.edges),
    ):
        for a, b in zip(one, two, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.owner, expected.owner)


def test_what_cannot_be_taken_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MAX_ROWS", 5)
    ring = np.arange(6)
    nodes = Nodes(*(ring.astype(kind) for kind in (np.uint64, np.uint64, np.int64)), ring * 0, ring < 0)
    store = EdgeStore(2, 3)
    store.append(ring, (ring + 1) % 6, np.full((6, 2), [200, 1]))
    with pytest.raises(BlockError, match=r"6 edges of one score hang together.+larger fragments\.small"):
        agglomerate_split(nodes, store, Score("mean"), 0, 0, room=3)
