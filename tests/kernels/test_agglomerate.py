from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.kernels.agglomerate import Edges, Nodes, agglomerate, cut, integer_threshold
from neuroshed.kernels.order import voxel_rank

RawEdge = tuple[int, int, int, int]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[RawEdge]]:
    """Ids and edges (left, right, sum, count), many of them parallel and with equal scores."""
    ids = sorted(draw(st.sets(st.integers(1, 1000), min_size=2, max_size=12)))
    ends = st.sampled_from(ids)
    edge = st.tuples(ends, ends, st.sampled_from([0, 100, 200, 255]), st.integers(1, 3))
    rows = draw(st.lists(edge, max_size=30))
    return ids, [(min(a, b), max(a, b), mean * n, n) for a, b, mean, n in rows if a != b]


def arrays(ids: list[int], rows: list[RawEdge], frozen: set[int]) -> tuple[Nodes, Edges]:
    own = np.array(ids, np.uint64)
    nodes = Nodes(own, voxel_rank(own), np.array([i in frozen for i in ids]))
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return nodes, Edges(*(np.array(c, t) for c, t in zip(columns, ("u8", "u8", "i8", "i8"), strict=True)))


def plain(ids: list[int], rows: list[RawEdge], lowest: int, frozen: set[int]) -> tuple[list, set, dict]:
    """The rule word by word: look at all edges each time."""
    rank = dict(zip(ids, voxel_rank(np.array(ids, np.uint64)).tolist(), strict=True))
    frozen = set(frozen)
    edges: dict[tuple[int, int], list[int]] = {}
    for a, b, total, count in rows:
        edge = edges.setdefault((a, b), [0, 0])
        edge[0] += total
        edge[1] += count
    merges = []
    while True:
        movable = {
            pair: (-((total << 20) // count), sorted(rank[end] for end in pair))
            for pair, (total, count) in edges.items()
            if not frozen.issuperset(pair)
        }
        movable = {pair: key for pair, key in movable.items() if -key[0] >= lowest}
        if not movable:
            break
        a, b = min(movable, key=movable.__getitem__)
        if frozen & {a, b}:
            frozen |= {a, b}
            continue
        merges.append((a, b, -movable[a, b][0]))
        del edges[a, b]
        rank[a] = max(rank[a], rank[b])
        for pair in [pair for pair in edges if b in pair]:
            total, count = edges.pop(pair)
            other = pair[0] + pair[1] - b
            edge = edges.setdefault((min(a, other), max(a, other)), [0, 0])
            edge[0] += total
            edge[1] += count
    return merges, frozen, {pair: tuple(e) for pair, e in edges.items() if frozen.issuperset(pair)}


@given(graphs(), st.data())
def test_equals_the_plain_rule(graph: tuple[list[int], list[RawEdge]], data: st.DataObject) -> None:
    ids, rows = graph
    frozen = data.draw(st.sets(st.sampled_from(ids), max_size=4))
    lowest = integer_threshold(Fraction(data.draw(st.sampled_from(["0", "0.3", "0.5", "0.9"]))))
    merges, up, kept = agglomerate(*arrays(ids, rows, frozen), lowest)
    expected_merges, expected_frozen, expected_kept = plain(ids, rows, lowest, frozen)
    found = list(zip(*(column.tolist() for column in merges), strict=True))
    # Merges far from each other may be listed in another order where scores tie.
    assert sorted(found) == sorted(expected_merges)
    assert set(up.ids.tolist()) == expected_frozen & set(up.ids.tolist())
    assert {i for i in expected_frozen if i not in {b for _, b, _ in expected_merges}} == set(up.ids.tolist())
    rows_kept = zip(*(column.tolist() for column in kept), strict=True)
    assert {(a, b): (total, count) for a, b, total, count in rows_kept} == expected_kept


@given(graphs())
def test_cutting_higher_only_splits(graph: tuple[list[int], list[RawEdge]]) -> None:
    ids, rows = graph
    own = np.array(ids, np.uint64)
    merges, _, _ = agglomerate(*arrays(ids, rows, set()), 0)
    clusters = [cut(own, merges, integer_threshold(Fraction(t))) for t in ("0.2", "0.5", "0.9")]
    for coarse, fine in pairwise(clusters):
        assert len(np.unique(np.stack([coarse, fine]), axis=1).T) == len(np.unique(fine))
        assert (coarse <= fine).all()


@pytest.mark.parametrize("text", ["0", "0.1", "0.3", "0.5", "0.7", "0.999", "1"])
def test_thresholds_are_exact(text: str) -> None:
    scaled = Fraction(text) * 255 * 2**20
    assert scaled <= integer_threshold(Fraction(text)) < scaled + 1
