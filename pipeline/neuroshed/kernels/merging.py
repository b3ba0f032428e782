"""Agglomeration of one region graph in strict order, with frozen clusters, a largest size and classes kept apart.

Edges are taken by falling score; ties go to the pair of clusters with the smaller (smaller rank, larger rank), and a
cluster's rank is the largest of its nodes', so joining only ever makes an edge worse. That is what makes a decision
that was put off (frozen) safe, and the result the same however the volume is cut (reducible linkages: Bruynooghe 1978;
agglomeration in chunks: Lu, Zlateski and Seung 2021, arXiv 2106.10795). A merge refused for size or class stays
refused as clusters grow, so it need not be put off.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.contraction import CLUSTER, REFUSED, Graph, contract, drop_edge, new_graph
from neuroshed.kernels.heap import (
    OUT,
    add_owner,
    meld,
    new_queue,
    push,
    remove_owner,
    replace_owner,
    take_ties,
    without_first,
)
from neuroshed.kernels.relabel import row_pairs, rows_of
from neuroshed.kernels.scores import SCALE_BITS, TOP_SCORE, Score, check_stats, combine, compiled, edge_score
from neuroshed.kernels.unions import join_pairs

MAX_ROWS = 1 << 30
"""Nodes and edges have to be fewer: half-edges are numbered in 31 bits."""


class Nodes(NamedTuple):
    """Clusters: sorted unique `ids` uint64 (smallest fragment), `ranks` uint64, unique but for frozen copies of one,
    `sizes` int64 (voxels), `classes` uint8 (0: none), `frozen` bool; each `(n,)`.
    """

    ids: npt.NDArray[np.uint64]
    ranks: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int64]
    classes: npt.NDArray[np.uint8]
    frozen: npt.NDArray[np.bool_]


class Edges(NamedTuple):
    """Edges between different nodes, some parallel: `left, right` `(E,)` indices of nodes, of any type of integers,
    `stats` int64 `(E, k)` as in `neuroshed.kernels.scores`.
    """

    left: npt.NDArray[np.integer[Any]]
    right: npt.NDArray[np.integer[Any]]
    stats: npt.NDArray[np.int64]


class Merges(NamedTuple):
    """Merges by falling score, those of equal scores by `right`: `left < right` uint64 ids of the two clusters (the
    smallest of their nodes'), `scores` int64.
    """

    left: npt.NDArray[np.uint64]
    right: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.int64]


class Outcome(NamedTuple):
    """What agglomeration did and what it left for later.

    `merges`; `clusters`: the frozen ones, or all, sorted by id (largest rank, added sizes, the class of members that
    have one); `owner` int64 `(n,)`: index of the smallest member of each node's cluster; `edges`: those between these
    clusters, one a pair, `left < right` indices into `clusters`, sorted; `refused` bool: which of them are refused for
    size or class, and so for good. Edges below the lowest score are among them, since they still dilute means later.
    """

    merges: Merges
    clusters: Nodes
    owner: npt.NDArray[np.int64]
    edges: Edges
    refused: npt.NDArray[np.bool_]


class _Rules(NamedTuple):
    """The score's code and percent, the lowest score that merges, the largest size (0: any)."""

    code: int
    percent: int
    lowest: int
    max_size: int


class _Record(NamedTuple):
    """Merges as they are done: int32 indices of the smallest members, int32 scores, and int64 (1,) how many."""

    low: npt.NDArray[np.int32]
    high: npt.NDArray[np.int32]
    scores: npt.NDArray[np.int32]
    done: npt.NDArray[np.int64]


def integer_threshold(threshold: Fraction) -> int:
    """The lowest integer score that counts as at least `threshold` (an affinity in 0..1).

    >>> integer_threshold(Fraction("0.5")) / (255 << 20)
    0.5
    """
    return -((-threshold * (255 << SCALE_BITS)) // 1)


def clusters_at(
    count: int,
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    scores: npt.NDArray[np.int64],
    threshold: int,
) -> npt.NDArray[np.int64]:
    """The smallest member, int64 `(count,)`, of each node's cluster when only merges of at least `threshold` count.

    `left, right` int64 are indices of nodes in the merged clusters, `scores` int64.

    >>> clusters_at(3, np.array([0, 1]), np.array([1, 2]), np.array([9, 5]), 6).tolist()
    [0, 0, 2]
    """
    strong = scores >= threshold
    return join_pairs(count, left[strong], right[strong])


def agglomerate(
    nodes: Nodes, edges: Edges, score: Score, lowest: int, max_size: int = 0, *, rest: bool = False
) -> Outcome:
    """Merge in falling order of scores down to `lowest`, leaving alone what is frozen or meets what is.

    Parallel edges are added up first. An edge between clusters of two different classes, or of together more than
    `max_size` voxels (0: no limit), is refused and freezes nothing. Rows may come in any order. With `rest` the outcome
    lists all clusters and the edges between them, not the frozen ones alone. Raises ValueError where ids, ranks, ends
    or statistics are not what `Nodes`, `Edges` and `score` say.
    """
    _check(nodes, edges, score)
    left, right, stats = add_up(edges, score)
    by_rank = np.argsort(nodes.ranks, kind="stable")
    ranks = nodes.ranks[by_rank]
    tied = ranks[1:] == ranks[:-1]
    if (tied & ~(nodes.frozen[by_rank[1:]] & nodes.frozen[by_rank[:-1]])).any():
        raise ValueError("two nodes that may merge have the same rank, which would leave the order of ties open")
    clusters = np.empty(nodes.ids.size, CLUSTER)
    clusters["rank"][by_rank] = clusters["name"] = np.arange(nodes.ids.size)
    clusters["size"], clusters["kind"], clusters["frozen"] = nodes.sizes, nodes.classes, nodes.frozen
    graph = new_graph(clusters, left, right, stats)
    queue = new_queue(graph.edges, nodes.ids.size)
    low, high, scores = np.empty((3, nodes.ids.size), np.int32)
    record = _Record(low, high, scores, np.zeros(1, np.int64))
    rules = _Rules(score.code, score.percent, min(max(lowest, 0), TOP_SCORE + 1), max_size)
    _merge_all(graph, queue, rules, record)
    return _outcome(nodes, graph, ranks, record, rest)


def _check(nodes: Nodes, edges: Edges, score: Score) -> None:
    count = nodes.ids.size
    if max(count, edges.left.size) >= MAX_ROWS:
        raise ValueError(f"{count} nodes and {edges.left.size} edges; a graph takes fewer than {MAX_ROWS} of each")
    if any(column.shape != (count,) for column in nodes) or not (nodes.ids[1:] > nodes.ids[:-1]).all():
        raise ValueError("nodes are columns of one length, and their ids are sorted and unique")
    if not edges.left.shape == edges.right.shape == edges.stats.shape[:1]:
        raise ValueError("left, right and the statistics of edges have different lengths")
    for ends in (edges.left, edges.right):
        if ends.size and (ends.min() < 0 or ends.max() >= count):
            raise ValueError(f"ends of edges run from {ends.min()} to {ends.max()}; there are {count} nodes")
    if (edges.left == edges.right).any():
        raise ValueError("an edge joins a node to itself")
    check_stats(score, edges.stats)


def add_up(edges: Edges, score: Score) -> Edges:
    """One row for each pair of nodes, in the order of pairs: `left < right`, and statistics of its own. Ends are below
    2^32, of any type of integers.
    """
    pairs = row_pairs(edges.left, edges.right)
    if (pairs[1:] > pairs[:-1]).all():
        stats = edges.stats.copy()
    else:
        order = np.argsort(pairs)
        pairs, stats = pairs[order], edges.stats[order]
        starts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        if starts.size < pairs.size:
            pairs, stats = pairs[starts], combine(score, stats, starts)
    return Edges(*rows_of(pairs), np.ascontiguousarray(stats, np.int64))


def _outcome(nodes: Nodes, graph: Graph, ranks: npt.NDArray[np.uint64], record: _Record, rest: bool) -> Outcome:
    low, high, scores = (column[: record.done[0]].astype(np.int64) for column in record[:3])
    owner = join_pairs(nodes.ids.size, low, high)
    order = np.lexsort((high, -scores))
    merges = Merges(nodes.ids[low[order]], nodes.ids[high[order]], scores[order])
    clusters = graph.clusters
    kept = np.flatnonzero((clusters["frozen"] | rest) & (clusters["name"] >= 0))
    kept = kept[np.argsort(clusters["name"][kept])]
    listed = Nodes(
        nodes.ids[clusters["name"][kept]],
        ranks[clusters["rank"][kept]],
        clusters["size"][kept],
        clusters["kind"][kept],
        clusters["frozen"][kept],
    )
    place = np.full(nodes.ids.size + 1, -1, np.int32)
    place[kept] = np.arange(kept.size)
    # The ends of edges that are gone are -1, which reads the -1 after the last node.
    ends = place[graph.edges["ends"]]
    rows = np.flatnonzero((ends >= 0).all(axis=1))
    pairs = row_pairs(*ends[rows].T)
    del ends
    order = np.argsort(pairs)
    rows, pairs = rows[order], pairs[order]
    edges = Edges(*rows_of(pairs), graph.stats[rows])
    return Outcome(merges, listed, owner, edges, graph.edges["score"][rows] == REFUSED)


@compiled
def _merge_all(graph: Any, queue: Any, rules: Any, record: Any) -> Any:
    """Take edges in falling order until none that scores at least `rules.lowest` is left."""
    for row in range(queue.edges.size - 1, -1, -1):
        score = edge_score(graph.stats, row, rules.code, rules.percent)
        if score >= rules.lowest:
            queue.edges[row].score = score
            push(queue, row)
    while True:
        edge = np.int64(take_ties(queue))
        if edge < 0:
            return
        while edge >= 0:
            following = np.int64(queue.edges[edge].link)
            if _still_ties(graph, queue, rules, edge):
                _enter(graph, queue, edge)
            edge = following
        while queue.owners[0] > 0:
            edge = np.int64(queue.owned[queue.owners[1]])
            _leave_first(queue)
            if _still_ties(graph, queue, rules, edge):
                _decide(graph, queue, rules, record, edge)


@compiled
def _still_ties(graph: Any, queue: Any, rules: Any, edge: Any) -> Any:
    """Whether an edge still scores `queue.last`; if it has become worse it waits for its new turn."""
    if queue.edges[edge].score == OUT:
        return False
    score = edge_score(graph.stats, edge, rules.code, rules.percent)
    if score == queue.last[0]:
        return True
    queue.edges[edge].score = score if score >= rules.lowest else OUT
    if score >= rules.lowest:
        push(queue, edge)
    return False


@compiled
def _enter(graph: Any, queue: Any, edge: Any) -> Any:
    """Enter an edge in the heap of the smaller of its two ranks, its owner."""
    a, b = graph.clusters[graph.edges[edge].ends[0]].rank, graph.clusters[graph.edges[edge].ends[1]].rank
    owner = np.int64(min(a, b))
    queue.edges[edge].key = max(a, b)
    queue.edges[edge].child = -1
    if queue.owned[owner] < 0:
        add_owner(queue, owner)
    queue.owned[owner] = meld(queue, np.int64(queue.owned[owner]), edge)


@compiled
def _leave_first(queue: Any) -> Any:
    """Take the first edge of the first owner out of its heap, and out of the queue if it was its last."""
    owner = np.int64(queue.owners[1])
    queue.owned[owner] = without_first(queue, np.int64(queue.owned[owner]))
    if queue.owned[owner] < 0:
        remove_owner(queue)


@compiled
def _decide(graph: Any, queue: Any, rules: Any, record: Any, edge: Any) -> Any:
    """Refuse, freeze or merge along the edge that has left the queue; or let it wait if its larger rank has risen."""
    a, b = np.int64(graph.edges[edge].ends[0]), np.int64(graph.edges[edge].ends[1])
    if graph.clusters[a].rank > graph.clusters[b].rank:
        a, b = b, a
    if graph.clusters[b].rank != queue.edges[edge].key:
        _enter(graph, queue, edge)
        return
    size = graph.clusters[a].size + graph.clusters[b].size
    either, other = graph.clusters[a].kind, graph.clusters[b].kind
    if (either != 0 and other != 0 and either != other) or (rules.max_size > 0 and size > rules.max_size):
        queue.edges[edge].score = REFUSED
    elif graph.clusters[a].frozen or graph.clusters[b].frozen:
        graph.clusters[a].frozen = graph.clusters[b].frozen = True
        queue.edges[edge].score = OUT
    else:
        _pass_on(queue, np.int64(graph.clusters[a].rank), np.int64(graph.clusters[b].rank))
        _merge(graph, queue, rules, record, edge)


@compiled
def _pass_on(queue: Any, owner: Any, heir: Any) -> Any:
    """Give the edges of the first owner to the rank with which it merges: their other ranks are larger than both."""
    if queue.owned[owner] < 0:
        return
    if queue.owned[heir] < 0:
        replace_owner(queue, heir)
    else:
        remove_owner(queue)
    queue.owned[heir] = meld(queue, np.int64(queue.owned[owner]), np.int64(queue.owned[heir]))
    queue.owned[owner] = -1


@compiled
def _merge(graph: Any, queue: Any, rules: Any, record: Any, edge: Any) -> Any:
    """Merge the two clusters of an edge into the one with the longer list of edges."""
    into, gone = np.int64(graph.edges[edge].ends[0]), np.int64(graph.edges[edge].ends[1])
    if graph.clusters[into].length < graph.clusters[gone].length:
        into, gone = gone, into
    drop_edge(graph, edge)
    contract(graph, into, gone, rules.code)
    count = record.done[0]
    record.low[count] = min(graph.clusters[into].name, graph.clusters[gone].name)
    record.high[count] = max(graph.clusters[into].name, graph.clusters[gone].name)
    record.scores[count] = queue.last[0]
    record.done[0] = count + 1
    graph.clusters[into].rank = max(graph.clusters[into].rank, graph.clusters[gone].rank)
    graph.clusters[into].size += graph.clusters[gone].size
    graph.clusters[into].kind = max(graph.clusters[into].kind, graph.clusters[gone].kind)
    graph.clusters[into].name = record.low[count]
    graph.clusters[gone].name = -1
