"""Agglomeration of a region graph that does not fit memory: in windows of falling score, and each in components.

Merges of at least a threshold T come before all others, and no score rises on the way. So they are found without
looking at most of the graph: the edges of at least T make components, what is in different ones does not merge at T or
above, and of a component only the edges inside count. A window is what lies between T and the one before it: components
are taken in batches that fit, merged down to T, and put back with what has become parallel added up. Then T falls. It
falls as far as every component fits.

Weaker edges inside a component are in the window too: parallel ones dilute the means of those that count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.kernels.merging import MAX_ROWS, Edges, Merges, Nodes, add_up, agglomerate
from neuroshed.kernels.relabel import Ids, places
from neuroshed.kernels.scores import TOP_SCORE, Score, integer_scores
from neuroshed.kernels.windows import batches, count_inside, join, roots_of
from neuroshed.storage.spill import EdgeStore

MAX_NODES = (1 << 32) - 1
_STEP_BITS = 14
"""Thresholds are multiples of this power of two, a 16,320th of the range of scores."""
_BUCKET_BITS = 16


class Split(NamedTuple):
    """As `kernels.merging.Outcome`, in pieces: the `merges`, and, only once, the `edges`; at least one of each."""

    merges: Iterable[Merges]
    clusters: Nodes
    owner: npt.NDArray[np.integer[Any]]
    edges: Iterator[Edges]


@dataclass(frozen=True, slots=True)
class _StoredMerges:
    """Merges by rows of `ids`, in a store."""

    ids: Ids
    store: EdgeStore

    def __iter__(self) -> Iterator[Merges]:
        yield Merges(self.ids[:0], self.ids[:0], np.zeros(0, np.int64))
        for piece in self.store:
            yield Merges(self.ids[piece.left], self.ids[piece.right], piece.stats[:, 0])


class _State(NamedTuple):
    """Clusters as they are: each at its smallest member, to which `owner` leads."""

    owner: npt.NDArray[np.uint32]
    clusters: Nodes

    def at(self, rows: npt.NDArray[np.integer[Any]], ids: Ids) -> Nodes:
        """The clusters at these rows, under these ids."""
        now = self.clusters
        return Nodes(ids, now.ranks[rows], now.sizes[rows], now.classes[rows], now.frozen[rows])


class _Rules(NamedTuple):
    score: Score
    lowest: int
    max_size: int
    room: int


class _Window(NamedTuple):
    """What merges at `threshold` or above: the `component` of each node, as a table of unions, and how many edges are
    inside each, int64 by root.
    """

    threshold: int
    component: npt.NDArray[np.uint32]
    inside: npt.NDArray[np.int64]


def agglomerate_split(nodes: Nodes, edges: EdgeStore, score: Score, lowest: int, max_size: int, room: int) -> Split:
    """`kernels.merging.agglomerate` with at most about `room` edges in memory; `edges` are used up.

    Components that cannot be told apart by score are in memory whole, however large. There are fewer nodes than
    `MAX_NODES`. Raises ValueError as that function does, `BlockError` for a component of `MAX_ROWS` edges or more.
    """
    every = np.arange(nodes.ids.size, dtype=np.uint32)
    now = Nodes(nodes.ids, nodes.ranks.copy(), nodes.sizes.copy(), nodes.classes.copy(), nodes.frozen.copy())
    state = _State(every.copy(), now)
    rules = _Rules(score, min(max(lowest, 0), TOP_SCORE + 1), max_size, room)
    settled, merges = EdgeStore(edges.columns, room // 4), EdgeStore(1, room // 4)
    waiting = edges
    while True:
        waiting, counts = _looked_through(state, waiting, settled, rules)
        if not counts.any():
            break
        window = _window(waiting, nodes.ids.size, counts, rules)
        waiting = _merge_window(state, window, waiting, settled, merges, rules)
    waiting.close()
    rows = np.flatnonzero(state.clusters.frozen & (state.owner == every))
    owner = roots_of(state.owner, every)
    rest = _sorted_edges(settled, owner, now.frozen, rows, rules)
    return Split(_StoredMerges(nodes.ids, merges), state.at(rows, nodes.ids[rows]), owner, rest)


def _looked_through(
    state: _State, edges: EdgeStore, settled: EdgeStore, rules: _Rules
) -> tuple[EdgeStore, npt.NDArray[np.int64]]:
    """Edges between the clusters as they are now, and how many there are by score, in steps of `_STEP_BITS`, of those
    that may lead to a merge.

    Edges between frozen clusters go to `settled`, those inside a cluster vanish.
    """
    found = EdgeStore(edges.columns, rules.room // 4)
    counts = np.zeros((TOP_SCORE >> _STEP_BITS) + 1, np.int64)
    for piece in edges:
        left, right = roots_of(state.owner, piece.left), roots_of(state.owner, piece.right)
        frozen = state.clusters.frozen[left] & state.clusters.frozen[right]
        open_ = ~frozen & (left != right)
        for store, chosen in ((settled, frozen), (found, open_)):
            store.append(left[chosen], right[chosen], piece.stats[chosen])
        scores = integer_scores(rules.score, piece.stats[open_])
        counts += np.bincount(scores[scores >= rules.lowest] >> _STEP_BITS, minlength=counts.size)
    edges.close()
    return found, counts


def _window(edges: EdgeStore, nodes: int, counts: npt.NDArray[np.int64], rules: _Rules) -> _Window:
    """The window down to the lowest of the thresholds tried for which no component has more than `room` edges."""
    stronger = np.cumsum(counts[::-1])[::-1]
    strongest = int(np.flatnonzero(counts)[-1])
    step = 0
    while True:
        threshold = max(step << _STEP_BITS, rules.lowest)
        component = np.arange(nodes, dtype=np.uint32)
        for piece in edges:
            join(component, piece.left, piece.right, integer_scores(rules.score, piece.stats) >= threshold)
        inside = np.zeros(nodes, np.int64)
        for piece in edges:
            count_inside(component, piece.left, piece.right, inside)
        if inside.max() <= rules.room or step == strongest:
            return _Window(threshold, component, inside)
        # Half as many edges join, which takes far more apart.
        step = min(int(np.searchsorted(-stronger, -(stronger[step] // 2))), strongest)


def _merge_window(
    state: _State, window: _Window, edges: EdgeStore, settled: EdgeStore, merges: EdgeStore, rules: _Rules
) -> EdgeStore:
    """Merge what is in the window, whose `inside` is used up; returns the edges that may lead to further merges."""
    waiting = EdgeStore(edges.columns, rules.room // 4)
    stores = _stores(edges.columns, batches(window.inside, rules.room), rules)
    for piece in edges:
        roots = roots_of(window.component, piece.left)
        outside = roots != roots_of(window.component, piece.right)
        _put_in([*stores, waiting], piece, np.where(outside, len(stores), window.inside[roots]))
    edges.close()
    done = [_merge_batch(state, store, waiting, settled, rules, window.threshold) for store in stores]
    left, right, scores = (np.concatenate(columns) for columns in zip(*done, strict=True))
    order = np.lexsort((right, -scores))
    merges.append(left[order], right[order], scores[order, None])
    return waiting


def _stores(columns: int, count: int, rules: _Rules) -> list[EdgeStore]:
    return [EdgeStore(columns, rules.room // (4 * count)) for _ in range(count)]


def _put_in(stores: list[EdgeStore], edges: Edges, batch: npt.NDArray[np.int64]) -> None:
    """Put each edge in the store of its batch."""
    for number in np.unique(batch).tolist():
        stores[number].append(*(column[batch == number] for column in edges))


def _merge_batch(
    state: _State, store: EdgeStore, waiting: EdgeStore, settled: EdgeStore, rules: _Rules, threshold: int
) -> Merges:
    """Merge whole components; returns the merges by rows."""
    if store.count >= MAX_ROWS:
        raise BlockError(
            f"{store.count} edges of one score hang together in a tree node, which takes fewer than {MAX_ROWS}; score "
            "by mean, or take a larger fragments.small"
        )
    edges = store.taken()
    rows = np.unique(np.concatenate([edges.left, edges.right]))
    left, right = (places(rows, ends) for ends in (edges.left, edges.right))
    edges = edges._replace(left=left, right=right)
    outcome = agglomerate(
        state.at(rows, rows.astype(np.uint64)), edges, rules.score, threshold, rules.max_size, rest=True
    )
    state.owner[rows] = rows[outcome.owner]
    clusters = outcome.clusters
    names = clusters.ids.astype(np.int64)
    columns: list[tuple[Any, Any]] = list(zip(state.clusters[1:], clusters[1:], strict=True))
    for now, found in columns:
        now[names] = found
    edges = outcome.edges
    final = outcome.refused | (clusters.frozen[edges.left] & clusters.frozen[edges.right])
    for target, chosen in ((settled, final), (waiting, ~final)):
        target.append(names[edges.left[chosen]], names[edges.right[chosen]], edges.stats[chosen])
    return outcome.merges


def _sorted_edges(
    settled: EdgeStore,
    owner: npt.NDArray[np.uint32],
    frozen: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    rules: _Rules,
) -> Iterator[Edges]:
    """Edges between the clusters at `rows`, by places in it: one a pair, `left < right`, sorted."""
    kept = EdgeStore(settled.columns, rules.room // 4)
    shift = max(0, rows.size.bit_length() - _BUCKET_BITS)
    counts = np.zeros((rows.size >> shift) + 1, np.int64)
    for piece in settled:
        ends = owner[piece.left], owner[piece.right]
        # What was refused need not be frozen.
        up = frozen[ends[0]] & frozen[ends[1]]
        low, high = places(rows, np.minimum(*ends)[up]), places(rows, np.maximum(*ends)[up])
        kept.append(low, high, piece.stats[up])
        counts += np.bincount(low >> shift, minlength=counts.size)
    settled.close()
    stores = _stores(kept.columns, batches(counts, rules.room), rules)
    for piece in kept:
        _put_in(stores, piece, counts[piece.left >> np.uint32(shift)])
    kept.close()
    for store in stores:
        yield add_up(store.taken(), rules.score)
