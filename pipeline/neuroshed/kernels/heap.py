"""The queue of edges: falling scores, and among equal scores by the ranks of the two clusters.

Nothing that enters scores above what left last (see `neuroshed.kernels.scores`). So edges wait in buckets of three
levels, by the high, middle and low bits of their score, and move at most twice before their turn (multi-level buckets:
Denardo and Fox 1979). What a bucket of the lowest level holds ties.

Ties go by (smaller rank, larger rank), and a cluster's rank rises as it merges. In one heap over all ties, a hub that
rises would have to move all its edges; instead the cluster of the smaller rank owns the edge, and keeps its own edges
in a pairing heap (Fredman et al. 1986) by the larger rank, so that two owners' heaps meld at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.scores import TOP_SCORE, compiled

OUT = -1
"""The score of edges that wait for no turn."""

_LOW_BITS = 9
_HIGH_BITS = 18
_SLOTS = 1 << _LOW_BITS
_DIGIT = _SLOTS - 1
_BELOW_HIGH = (1 << _HIGH_BITS) - 1


# All that a visit to an edge needs lies in one place in memory: visits are what takes time in large graphs.
EDGE = np.dtype(
    [
        ("ends", np.int32, 2),
        ("after", np.int32, 2),
        ("score", np.int32),
        ("link", np.int32),
        ("child", np.int32),
        ("key", np.int32),
    ]
)
"""An edge.

`ends`: its two clusters, -1 if it is gone; `after`: what follows in either end's list of half-edges (see
`neuroshed.kernels.contraction`); `score`: that by which it waits, or OUT; `link`: the edge that follows in a bucket, or
among its siblings in a heap; `child`: its first child there, or -1; `key`: the larger rank, by which it waits there.
"""


class Queue(NamedTuple):
    """Edges that wait; an edge is in at most one bucket or heap.

    `edges` EDGE; `heads` int32: the first edge of each bucket, or -1; `owned` int32 (ranks,): the first edge of each
    rank's heap, or -1; `owners` int32 (1 + ranks,): how many ranks own edges, then a binary heap of them; `last` int64
    (1,): the score that left last.
    """

    edges: npt.NDArray[np.void]
    heads: npt.NDArray[np.int32]
    owned: npt.NDArray[np.int32]
    owners: npt.NDArray[np.int32]
    last: npt.NDArray[np.int64]


def new_queue(edges: npt.NDArray[np.void], ranks: int) -> Queue:
    """An empty queue for these edges (EDGE) and that many ranks."""
    return Queue(
        edges=edges,
        heads=np.full(2 * _SLOTS + (TOP_SCORE >> _HIGH_BITS) + 1, -1, np.int32),
        owned=np.full(ranks, -1, np.int32),
        owners=np.zeros(ranks + 1, np.int32),
        last=np.array([TOP_SCORE], np.int64),
    )


@compiled
def push(queue: Any, edge: Any) -> Any:
    """Let an edge wait by its score, which is at most the last one taken."""
    score = np.int64(queue.edges[edge].score)
    apart = score ^ queue.last[0]
    if apart >> _HIGH_BITS:
        slot = 2 * _SLOTS + (score >> _HIGH_BITS)
    elif apart >> _LOW_BITS:
        slot = _SLOTS + ((score >> _LOW_BITS) & _DIGIT)
    else:
        slot = score & _DIGIT
    queue.edges[edge].link = queue.heads[slot]
    queue.heads[slot] = edge


@compiled
def _first_filled(heads: Any, start: Any, digit: Any) -> Any:
    """The highest digit, from `digit` down, whose bucket of the level at `start` is not empty, or -1."""
    while digit >= 0 and heads[start + digit] < 0:
        digit -= 1
    return digit


@compiled
def _spread(queue: Any, slot: Any) -> Any:
    """Empty a bucket into those of lower levels, leaving out what no longer waits."""
    edge = queue.heads[slot]
    queue.heads[slot] = -1
    while edge >= 0:
        following = queue.edges[edge].link
        if queue.edges[edge].score != OUT:
            push(queue, edge)
        edge = following


@compiled
def take_ties(queue: Any) -> Any:
    """Take all edges of the highest score, which becomes `last`: the first of a list by `link`, or -1 if none wait."""
    heads, last = queue.heads, queue.last
    while True:
        digit = _first_filled(heads, 0, last[0] & _DIGIT)
        if digit >= 0:
            last[0] = (last[0] & ~_DIGIT) | digit
            edge = heads[digit]
            heads[digit] = -1
            return edge
        digit = _first_filled(heads, _SLOTS, (last[0] >> _LOW_BITS) & _DIGIT)
        if digit >= 0:
            last[0] = (last[0] & ~_BELOW_HIGH) | (digit << _LOW_BITS) | _DIGIT
            _spread(queue, _SLOTS + digit)
            continue
        digit = _first_filled(heads, 2 * _SLOTS, last[0] >> _HIGH_BITS)
        if digit < 0:
            return -1
        last[0] = (digit << _HIGH_BITS) | _BELOW_HIGH
        _spread(queue, 2 * _SLOTS + digit)


@compiled
def meld(queue: Any, first: Any, second: Any) -> Any:
    """Join two heaps, given and returned by their first edges (-1: empty)."""
    if first < 0:
        return second
    if second < 0:
        return first
    if queue.edges[second].key < queue.edges[first].key:
        first, second = second, first
    queue.edges[second].link = queue.edges[first].child
    queue.edges[first].child = second
    return first


@compiled
def without_first(queue: Any, first: Any) -> Any:
    """The heap, given and returned by its first edge, after that edge has left."""
    pairs = np.int64(-1)
    edge = np.int64(queue.edges[first].child)
    queue.edges[first].child = -1
    while edge >= 0:
        partner = np.int64(queue.edges[edge].link)
        following = np.int64(queue.edges[partner].link) if partner >= 0 else np.int64(-1)
        joined = np.int64(meld(queue, edge, partner))
        queue.edges[joined].link = pairs
        pairs = joined
        edge = following
    heap = np.int64(-1)
    while pairs >= 0:
        following = np.int64(queue.edges[pairs].link)
        heap = np.int64(meld(queue, heap, pairs))
        pairs = following
    return heap


@compiled
def add_owner(queue: Any, owner: Any) -> Any:
    """Enter an owner in the binary heap of owners."""
    owners = queue.owners
    owners[0] += 1
    at = np.int64(owners[0])
    while at > 1 and owners[at >> 1] > owner:
        owners[at] = owners[at >> 1]
        at >>= 1
    owners[at] = owner


@compiled
def replace_owner(queue: Any, owner: Any) -> Any:
    """Replace the first owner."""
    owners = queue.owners
    count = np.int64(owners[0])
    at = np.int64(1)
    while 2 * at <= count:
        below = 2 * at
        if below < count and owners[below + 1] < owners[below]:
            below += 1
        if owners[below] >= owner:
            break
        owners[at] = owners[below]
        at = below
    owners[at] = owner


@compiled
def remove_owner(queue: Any) -> Any:
    """Remove the first owner."""
    last = queue.owners[queue.owners[0]]
    queue.owners[0] -= 1
    if queue.owners[0] > 0:
        replace_owner(queue, last)
