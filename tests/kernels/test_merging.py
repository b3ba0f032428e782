from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from neuroshed.kernels.merging import (
    MAX_ROWS,
    Edges,
    Nodes,
    Outcome,
    agglomerate,
    clusters_at,
    integer_threshold,
)
from neuroshed.kernels.scores import Score
from tests.kernels.plain_merging import SCORES, Cluster, PlainGraph, statistics


class Case(NamedTuple):
    """A random graph: rows `(left, right, affinities)`, some parallel, in either direction."""

    nodes: Nodes
    rows: list[tuple[int, int, list[int]]]
    score: Score
    lowest: int
    max_size: int

    def arrays(self) -> tuple[Nodes, Edges]:
        columns = [np.array([row[i] for row in self.rows], np.int64) for i in (0, 1)]
        stats = [statistics(self.score.name, row[2]) for row in self.rows]
        return self.nodes, Edges(*columns, np.array(stats, np.int64).reshape(-1, self.score.columns))

    def outcome(self) -> Outcome:
        return agglomerate(*self.arrays(), self.score, self.lowest, self.max_size)

    def plain(self) -> PlainGraph:
        columns = (column.tolist() for column in self.nodes[1:])
        graph = PlainGraph({i: Cluster(*row) for i, row in enumerate(zip(*columns, strict=True))})
        for a, b, affinities in self.rows:
            graph.add(a, b, affinities)
        graph.agglomerate(self.score.name, self.lowest, self.max_size)
        return graph


def random_case(name: str, seed: int, most_nodes: int = 24) -> Case:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, most_nodes))
    ids = np.sort(rng.choice(np.arange(1, 1000, dtype=np.uint64), n, replace=False))
    nodes = Nodes(
        ids,
        rng.permutation(2 * n)[:n].astype(np.uint64) << np.uint64(50),
        rng.integers(1, 5, n),
        rng.integers(1, 4, n).astype(np.uint8) * (rng.random(n) < rng.choice([0, 0.3])),
        rng.random(n) < rng.choice([0, 0.05, 0.3]),
    )
    values = [range(256), [0, 100, 200, 255], [255]][rng.integers(3)]
    rows = []
    for _ in range(int(rng.integers(0, 4 * n))):
        a, b = rng.integers(0, n, 2).tolist()
        if a != b:
            rows.append((a, b, rng.choice(values, rng.integers(1, 4)).tolist()))
    lowest = integer_threshold(Fraction(["0", "0.3", "0.5", "0.9"][rng.integers(4)]))
    return Case(nodes, rows, Score(name), lowest, int(rng.choice([0, 6, 20])))


def listed(merges: NamedTuple) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in merges), strict=True))


def assert_same(found: Outcome, case: Case, plain: PlainGraph) -> None:
    ids = case.nodes.ids.tolist()
    expected = [(ids[a], ids[b], score) for a, b, score in plain.merges]
    assert listed(found.merges) == sorted(expected, key=lambda merge: (-merge[2], merge[1]))
    frozen = {name: cluster for name, cluster in sorted(plain.clusters.items()) if cluster.frozen}
    assert listed(found.clusters) == [(ids[i], c.rank, c.size, c.kind, True) for i, c in frozen.items()]
    assert found.owner.tolist() == [plain.owner[i] for i in range(len(ids))]
    place = {name: i for i, name in enumerate(frozen)}
    kept = sorted(
        (*sorted(place[end] for end in pair), statistics(case.score.name, affinities))
        for pair, affinities in plain.edges.items()
        if pair <= frozen.keys()
    )
    assert [(*ends, stats) for *ends, stats in listed(found.edges)] == kept


@pytest.mark.parametrize("name", SCORES)
def test_equals_the_plain_rule(name: str) -> None:
    for seed in range(60):
        case = random_case(name, seed)
        assert_same(case.outcome(), case, case.plain())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["mean", "max"])
def test_equals_the_plain_rule_on_larger_graphs(name: str, seed: int) -> None:
    case = random_case(name, 1000 + seed, most_nodes=120)
    assert_same(case.outcome(), case, case.plain())


@pytest.mark.parametrize("name", SCORES)
def test_rows_may_come_in_any_order_and_direction(name: str) -> None:
    for seed in range(30):
        case = random_case(name, seed)
        nodes, edges = case.arrays()
        rng = np.random.default_rng(seed)
        order = rng.permutation(edges.left.size)
        swap = rng.random(order.size) < 0.5
        ends = np.stack([edges.left, edges.right])[:, order]
        ends[:, swap] = ends[::-1, swap]
        shuffled = agglomerate(nodes, Edges(*ends, edges.stats[order]), case.score, case.lowest, case.max_size)
        assert_equal_outcomes(shuffled, case.outcome())


def assert_equal_outcomes(one: Outcome, two: Outcome) -> None:
    for a, b in zip(flat(one), flat(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def flat(outcome: Outcome) -> tuple[np.ndarray, ...]:
    return (*outcome.merges, *outcome.clusters, outcome.owner, *outcome.edges)


@pytest.mark.parametrize("name", ["mean", "min", "quantile_50"])
def test_inputs_stay_as_they_are(name: str) -> None:
    case = random_case(name, 7)
    nodes, edges = case.arrays()
    agglomerate(nodes, edges, case.score, 0)
    for before, after in zip((*case.arrays()[0], *case.arrays()[1]), (*nodes, *edges), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", SCORES)
def test_cutting_higher_only_splits(name: str) -> None:
    for seed in range(20):
        case = random_case(name, seed)
        merges, _, owner, *_ = case.outcome()
        left, right = np.searchsorted(case.nodes.ids, merges.left), np.searchsorted(case.nodes.ids, merges.right)
        cuts = [
            clusters_at(owner.size, left, right, merges.scores, integer_threshold(Fraction(t)))
            for t in ("0", "0.5", "0.9", "1")
        ]
        np.testing.assert_array_equal(cuts[0], owner)
        for coarse, fine in pairwise(cuts):
            assert len(np.unique(np.stack([coarse, fine]), axis=1).T) == len(np.unique(fine))
            assert (coarse <= fine).all()
        assert (np.diff(merges.scores) <= 0).all()


def hub(leaves: int, seed: int) -> tuple[Nodes, np.ndarray]:
    ids = np.arange(1, leaves + 2, dtype=np.uint64)
    ranks = np.random.default_rng(seed).permutation(ids)
    nodes = Nodes(ids, ranks, np.ones(ids.size, np.int64), np.zeros(ids.size, np.uint8), np.zeros(ids.size, np.bool_))
    return nodes, np.arange(1, leaves + 1)


@pytest.mark.parametrize("name", ["mean", "max"])
@pytest.mark.parametrize("ties", [True, False])
def test_a_hub_takes_no_quadratic_time(name: str, ties: bool) -> None:
    # A star whose leaves also form a ring; if all tie, the hub's rank rises with half of its merges.
    nodes, leaves = hub(100_000, seed=3)
    rng = np.random.default_rng(0)
    left = np.concatenate([np.zeros_like(leaves), leaves[:-1]])
    right = np.concatenate([leaves, leaves[1:]])
    values = np.full(left.size, 255) if ties else rng.integers(100, 256, left.size)
    stats = np.stack([values, np.ones_like(values)], axis=1)[:, : Score(name).columns]
    outcome = agglomerate(nodes, Edges(left, right, stats), Score(name), 0)
    assert outcome.merges.left.size == leaves.size
    assert not outcome.owner.any()


def test_a_chain_of_hubs_equals_the_plain_rule() -> None:
    # Stars of tied edges whose centres join late: lists of very different lengths meld.
    rng = np.random.default_rng(1)
    nodes, _ = hub(89, seed=9)
    centres = range(0, 90, 15)
    rows = [(c, c + i, [int(rng.choice([200, 255]))]) for c in centres for i in range(1, 15)]
    rows += [(c, int(i), [150]) for c in centres for i in rng.choice(90, 8, replace=False) if c != i]
    case = Case(nodes, rows, Score("mean"), 0, 0)
    assert_same(case.outcome(), case, case.plain())


def test_refusing_freezes_nothing_and_lasts() -> None:
    # 0 and 1 are of different classes; 2 joins 0, which makes its edge with 1 parallel to the refused one.
    nodes, _ = hub(2, seed=0)
    nodes = nodes._replace(classes=np.array([1, 2, 0], np.uint8))
    edges = Edges(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([[255, 1], [200, 1], [190, 1]]))
    outcome = agglomerate(nodes, edges, Score("mean"), 0)
    assert listed(outcome.merges) == [(1, 3, 200 << 20)]
    frozen = nodes._replace(frozen=np.array([True, False, False]))
    assert agglomerate(frozen, edges, Score("mean"), 250 << 20).clusters.ids.tolist() == [1]
    both = nodes._replace(frozen=np.array([True, True, False]))
    outcome = agglomerate(both, edges, Score("mean"), 250 << 20)
    assert outcome.edges.stats.tolist() == [[255, 1]]


@pytest.mark.parametrize("name", SCORES)
def test_no_nodes_and_no_edges_are_fine(name: str) -> None:
    nodes, _ = hub(2, seed=0)
    none = np.zeros(0, np.int64)
    edges = Edges(none, none, np.zeros((0, Score(name).columns), np.int64))
    assert agglomerate(nodes, edges, Score(name), 0).owner.tolist() == [0, 1, 2]
    assert agglomerate(Nodes(*(column[:0] for column in nodes)), edges, Score(name), 0).owner.size == 0


def test_more_than_all_and_less_than_none_are_thresholds_too() -> None:
    case = random_case("mean", 5)._replace(max_size=0)
    nodes = case.nodes._replace(classes=np.zeros_like(case.nodes.classes))
    case = case._replace(nodes=nodes)
    assert case._replace(lowest=2**80).outcome().merges.left.size == 0
    assert_equal_outcomes(case._replace(lowest=-(2**80)).outcome(), case._replace(lowest=0).outcome())


def test_copies_of_one_cluster_have_its_rank() -> None:
    nodes = Nodes(
        np.array([1, 2, 3], np.uint64),
        np.array([7, 5, 7], np.uint64),
        np.array([4, 4, 0]),
        np.zeros(3, np.uint8),
        np.array([True, False, True]),
    )
    edges = Edges(np.array([0, 1]), np.array([1, 2]), np.array([[200, 1], [200, 1]]))
    outcome = agglomerate(nodes, edges, Score("mean"), 0)
    assert outcome.clusters.ids.tolist() == [1, 2, 3]
    assert outcome.clusters.ranks.tolist() == [7, 5, 7]
    with pytest.raises(ValueError, match="same rank"):
        agglomerate(nodes._replace(frozen=np.array([True, False, False])), edges, Score("mean"), 0)


def test_what_is_no_graph_is_refused() -> None:
    nodes, edges = random_case("mean", 6).arrays()
    ends, stats = np.array([0]), np.array([[5, 1]])
    many = np.broadcast_to(ends, MAX_ROWS)
    for wrong_nodes, wrong_edges, message in [
        (nodes._replace(ids=nodes.ids[::-1]), edges, "sorted and unique"),
        (nodes._replace(sizes=nodes.sizes[1:]), edges, "columns of one length"),
        (nodes._replace(ranks=nodes.ranks * 0), edges, "same rank"),
        (nodes, Edges(many, many, np.broadcast_to(stats, (MAX_ROWS, 2))), "fewer than"),
        (nodes, Edges(ends, ends, stats), "to itself"),
        (nodes, Edges(ends, ends + nodes.ids.size, stats), "there are"),
        (nodes, Edges(ends, ends - 1, stats), "ends of edges"),
        (nodes, Edges(ends, ends + 1, stats * [1000, 1]), "overflow"),
        (nodes, Edges(ends, ends + 1, stats[:0]), "different lengths"),
    ]:
        with pytest.raises(ValueError, match=message):
            agglomerate(wrong_nodes, wrong_edges, Score("mean"), 0)


@pytest.mark.parametrize("text", ["0", "0.1", "0.3", "0.5", "0.7", "0.999", "1"])
def test_thresholds_are_exact(text: str) -> None:
    scaled = Fraction(text) * 255 * 2**20
    assert scaled <= integer_threshold(Fraction(text)) < scaled + 1
