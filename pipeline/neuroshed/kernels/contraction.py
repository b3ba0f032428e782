"""A graph that shrinks: clusters as lists of half-edges, and a hash table that finds the edge between two clusters.

Edge e has the half-edges 2e and 2e + 1. The cluster with the shorter list moves its half-edges to the other, so that an
edge moves a logarithmic number of times, also where hubs meet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.heap import EDGE, OUT
from neuroshed.kernels.scores import add_edge, compiled

REFUSED = 1 << 30
"""The score of edges refused for good: above all others, so that a parallel edge cannot bring one back."""

# Odd multipliers of the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S29, _S32 = np.uint64(29), np.uint64(32)
_LOW_HALF, _HIGH_HALF = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


CLUSTER = np.dtype(
    [
        ("first", np.int32),
        ("length", np.int32),
        ("rank", np.int32),
        ("name", np.int32),
        ("size", np.int64),
        ("kind", np.uint8),
        ("frozen", np.bool_),
    ],
    align=True,
)
"""A cluster, at the index of the node whose list of half-edges it kept.

`first` of the list, or -1; its `length`, with half-edges of edges that are gone; `rank`, as a place in the order of
ranks; `name`, the smallest member, or -1 if the cluster is gone; `size`, class (`kind`) and `frozen` as in
`neuroshed.kernels.merging.Nodes`.
"""


class Graph(NamedTuple):
    """Live clusters and the edges between them, no two parallel.

    `clusters` CLUSTER; `edges` EDGE; `stats` int64 (edges, k); `table` uint64: slots of half a hash and an edge + 1, or
    0; `filled` int64 (1,): slots in use. What a slot holds is checked against the ends of its edge, so slots of ends
    that are gone may stay.
    """

    clusters: npt.NDArray[np.void]
    edges: npt.NDArray[np.void]
    stats: npt.NDArray[np.int64]
    table: npt.NDArray[np.uint64]
    filled: npt.NDArray[np.int64]


def new_graph(
    clusters: npt.NDArray[np.void],
    left: npt.NDArray[np.integer[Any]],
    right: npt.NDArray[np.integer[Any]],
    stats: npt.NDArray[np.int64],
) -> Graph:
    """The graph of these clusters (CLUSTER, without lists) and edges without parallels; `clusters` and `stats` will
    change in place.
    """
    # Half full at most if all edges are entered anew, and a contraction enters at most half of them: there is always
    # an empty slot, where a search ends.
    slots = 1 << max(3, (2 * left.size - 1).bit_length())
    graph = Graph(clusters, np.empty(left.size, EDGE), stats, np.zeros(slots, np.uint64), np.zeros(1, np.int64))
    graph.clusters["first"], graph.clusters["length"] = -1, 0
    graph.edges["ends"][:, 0], graph.edges["ends"][:, 1] = left, right
    graph.edges["score"] = OUT
    _link_all(graph)
    return graph


@compiled
def _link_all(graph: Any) -> Any:
    for half in range(2 * graph.edges.size - 1, -1, -1):
        _link(graph, half, graph.edges[half >> 1].ends[half & 1])
    _fill_table(graph)


@compiled
def _link(graph: Any, half: Any, cluster: Any) -> Any:
    """Enter a half-edge in the list of its cluster."""
    graph.edges[half >> 1].ends[half & 1] = cluster
    graph.edges[half >> 1].after[half & 1] = graph.clusters[cluster].first
    graph.clusters[cluster].first = half
    graph.clusters[cluster].length += 1


@compiled
def _fill_table(graph: Any) -> Any:
    """Enter all live edges in the empty table."""
    graph.table[:] = _ZERO
    graph.filled[0] = 0
    for edge in range(graph.edges.size):
        if graph.edges[edge].ends[0] >= 0:
            slot, mark = _find_slot(graph, graph.edges[edge].ends[0], graph.edges[edge].ends[1])
            graph.table[slot] = mark | np.uint64(edge + 1)
            graph.filled[0] += 1


@compiled
def _find_slot(graph: Any, a: Any, b: Any) -> Any:
    """Slot of the live edge between two clusters, or the empty one where it would stand; and its half of the hash."""
    x = (np.uint64(min(a, b)) << _S32) | np.uint64(max(a, b))
    x *= _M1
    x ^= x >> _S32
    x *= _M2
    x ^= x >> _S29
    mark = x & _HIGH_HALF
    mask = np.uint64(graph.table.size - 1)
    slot = x & mask
    while graph.table[slot] != _ZERO:
        if (graph.table[slot] & _HIGH_HALF) == mark:
            edge = np.int64(graph.table[slot] & _LOW_HALF) - 1
            p, q = graph.edges[edge].ends[0], graph.edges[edge].ends[1]
            if (p == a and q == b) or (p == b and q == a):
                break
        slot = (slot + _ONE) & mask
    return slot, mark


@compiled
def contract(graph: Any, into: Any, gone: Any, code: Any) -> Any:
    """Move the edges of cluster `gone`, whose list is no longer than that of `into`, to `into`, and add up what becomes
    parallel.

    Of two parallel edges the one that waits by the higher score stays, as its turn comes first. The edge between the
    two clusters must be gone (see `drop_edge`).
    """
    if 4 * (graph.filled[0] + graph.clusters[gone].length) > 3 * graph.table.size:
        _fill_table(graph)
    half = np.int64(graph.clusters[gone].first)
    while half >= 0:
        following = np.int64(graph.edges[half >> 1].after[half & 1])
        if graph.edges[half >> 1].ends[0] >= 0:
            _move(graph, half, into, code)
        half = following
    graph.clusters[gone].first = -1
    graph.clusters[gone].length = 0


@compiled
def _move(graph: Any, half: Any, into: Any, code: Any) -> Any:
    """Move one live half-edge to cluster `into`."""
    edge = half >> 1
    slot, mark = _find_slot(graph, into, graph.edges[edge].ends[1 - (half & 1)])
    if graph.table[slot] == _ZERO:
        graph.filled[0] += 1
    else:
        parallel = np.int64(graph.table[slot] & _LOW_HALF) - 1
        if graph.edges[parallel].score >= graph.edges[edge].score:
            add_edge(graph.stats, parallel, edge, code)
            drop_edge(graph, edge)
            return
        add_edge(graph.stats, edge, parallel, code)
        drop_edge(graph, parallel)
    graph.table[slot] = mark | np.uint64(edge + 1)
    _link(graph, half, into)


@compiled
def drop_edge(graph: Any, edge: Any) -> Any:
    """Take an edge out; lists, queue and table find out when they come across it."""
    graph.edges[edge].ends[0] = graph.edges[edge].ends[1] = -1
    graph.edges[edge].score = OUT
