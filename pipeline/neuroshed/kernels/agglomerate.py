"""Mean-affinity agglomeration of one region graph, in strict order, with frozen nodes.

Scores are integers, `(sum << 20) // count`. Flooring keeps the linkage reducible: a merged cluster never scores
higher with a third than the better of its two parts. Ties go to the edge with the smaller pair of cluster ranks, and
a cluster's rank is the largest of its fragments', so joining only ever makes an edge worse. That is what makes a
decision that was put off (frozen) safe, and the result the same however the volume is cut (reducible linkages:
Bruynooghe 1978; agglomeration in chunks: Lu, Zlateski and Seung 2021, arXiv 2106.10795).
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.kernels.unions import join_pairs

SCALE_BITS = 20


class Edges(NamedTuple):
    """Edges of a region graph: `left, right` uint64 ids, `sums` int64 of affinities (0..255), `counts` int64 of
    voxel faces.
    """

    left: npt.NDArray[np.uint64]
    right: npt.NDArray[np.uint64]
    sums: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


class Nodes(NamedTuple):
    """Clusters: sorted unique `ids` uint64 (smallest fragment), `ranks` uint64, `frozen` bool."""

    ids: npt.NDArray[np.uint64]
    ranks: npt.NDArray[np.uint64]
    frozen: npt.NDArray[np.bool_]


class Merges(NamedTuple):
    """Merges in falling order: `left < right` uint64 ids of the two clusters, `scores` int64."""

    left: npt.NDArray[np.uint64]
    right: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.int64]


def integer_threshold(threshold: Fraction) -> int:
    """The lowest integer score that counts as at least `threshold` (an affinity in 0..1).

    >>> integer_threshold(Fraction("0.5")) / (255 << 20)
    0.5
    """
    return -((-threshold * (255 << SCALE_BITS)) // 1)


def agglomerate(nodes: Nodes, edges: Edges, lowest: int) -> tuple[Merges, Nodes, Edges]:
    """Merge in falling order of scores down to `lowest`, leaving alone what is frozen or meets what is.

    Parallel edges are added up first. Returns the merges, the frozen clusters, and the edges between them: what goes up
    to the parent node, also below `lowest`, since such edges still dilute means there.
    """
    state = _Clusters(nodes, edges)
    merges = state.merge_down_to(lowest)
    left, right, scores = zip(*merges, strict=True) if merges else ((), (), ())
    recorded = Merges(np.array(left, np.uint64), np.array(right, np.uint64), np.array(scores, np.int64))
    return recorded, *state.frozen_part()


class _Clusters:
    """The graph while it shrinks; a cluster is an index into `nodes`, that of its smallest fragment."""

    def __init__(self, nodes: Nodes, edges: Edges) -> None:
        self.nodes = nodes
        self.ranks: list[int] = nodes.ranks.tolist()
        self.frozen: list[bool] = nodes.frozen.tolist()
        self.owner = list(range(nodes.ids.size))
        # For each cluster, its neighbours and the (sum, count) of the edge between them, held on both sides.
        self.neighbours: list[dict[int, tuple[int, int]]] = [{} for _ in self.owner]
        left = np.searchsorted(nodes.ids, edges.left).tolist()
        right = np.searchsorted(nodes.ids, edges.right).tolist()
        for a, b, total, count in zip(left, right, edges.sums.tolist(), edges.counts.tolist(), strict=True):
            before = self.neighbours[a].get(b, (0, 0))
            self.neighbours[a][b] = self.neighbours[b][a] = (before[0] + total, before[1] + count)

    def merge_down_to(self, lowest: int) -> list[tuple[int, int, int]]:
        merges = []
        queue = [self._entry(a, b) for a, near in enumerate(self.neighbours) for b in near if a < b]
        heapq.heapify(queue)
        while queue and -queue[0][0] >= lowest:
            entry = heapq.heappop(queue)
            a, b = self._find(entry[3]), self._find(entry[4])
            if a == b:
                continue
            now = self._entry(a, b)
            if now[:3] != entry[:3]:
                # Joining has made this edge worse since it was queued; it waits for its new turn.
                heapq.heappush(queue, now)
            elif self.frozen[a] or self.frozen[b]:
                self.frozen[a] = self.frozen[b] = True
            else:
                low, high = min(a, b), max(a, b)
                merges.append((int(self.nodes.ids[low]), int(self.nodes.ids[high]), -entry[0]))
                self._merge(low, high)
        return merges

    def _entry(self, a: int, b: int) -> tuple[int, int, int, int, int]:
        total, count = self.neighbours[a][b]
        ranks = self.ranks[a], self.ranks[b]
        return -((total << SCALE_BITS) // count), min(ranks), max(ranks), a, b

    def _find(self, a: int) -> int:
        while self.owner[a] != a:
            self.owner[a] = self.owner[self.owner[a]]
            a = self.owner[a]
        return a

    def _merge(self, into: int, gone: int) -> None:
        self.owner[gone] = into
        self.ranks[into] = max(self.ranks[into], self.ranks[gone])
        del self.neighbours[into][gone]
        few, many = self.neighbours[gone], self.neighbours[into]
        del few[into]
        if len(few) > len(many):
            few, many = many, few
        for other, (total, count) in few.items():
            before = many.get(other, (0, 0))
            many[other] = before[0] + total, before[1] + count
        self.neighbours[into], self.neighbours[gone] = many, {}
        for other in few:
            self.neighbours[other].pop(into, None)
            self.neighbours[other].pop(gone, None)
        for other in many:
            self.neighbours[other].pop(gone, None)
            self.neighbours[other][into] = many[other]

    def frozen_part(self) -> tuple[Nodes, Edges]:
        clusters = [a for a, owner in enumerate(self.owner) if a == owner and self.frozen[a]]
        rows = [
            (a, b, *sums)
            for a in clusters
            for b, sums in sorted(self.neighbours[a].items())
            if a < b and self.frozen[b]
        ]
        left, right, sums, counts = zip(*rows, strict=True) if rows else ((), (), (), ())
        ids = self.nodes.ids
        nodes = Nodes(
            ids[np.array(clusters, np.int64)],
            np.array([self.ranks[a] for a in clusters], np.uint64),
            np.ones(len(clusters), np.bool_),
        )
        edges = Edges(
            ids[np.array(left, np.int64)],
            ids[np.array(right, np.int64)],
            np.array(sums, np.int64),
            np.array(counts, np.int64),
        )
        return nodes, edges


def cut(ids: npt.NDArray[np.uint64], merges: Merges, threshold: int) -> npt.NDArray[np.uint64]:
    """Cluster of each of the sorted `ids` when only merges that score at least `threshold` count: its smallest id,
    uint64.
    """
    strong = merges.scores >= threshold
    left = np.searchsorted(ids, merges.left[strong])
    right = np.searchsorted(ids, merges.right[strong])
    return ids[join_pairs(ids.size, left, right)]
