"""Agglomeration word by word: an edge is the list of its affinities, and every turn looks at all edges.

Nothing here is shared with the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

SCORES = ["mean", "max", "min", "quantile_0", "quantile_1", "quantile_50", "quantile_75", "quantile_100"]


@dataclass
class Cluster:
    rank: int
    size: int = 1
    kind: int = 0
    frozen: bool = False


@dataclass
class PlainGraph:
    """Clusters by their smallest node; edges by pair, and those refused for good."""

    clusters: dict[int, Cluster]
    edges: dict[frozenset[int], list[int]] = field(default_factory=dict)
    refused: set[frozenset[int]] = field(default_factory=set)
    merges: list[tuple[int, int, int]] = field(default_factory=list)
    owner: dict[int, int] = field(default_factory=dict)

    def add(self, a: int, b: int, affinities: list[int]) -> None:
        pair = frozenset((a, b))
        self.edges[pair] = self.edges.get(pair, []) + affinities

    def agglomerate(self, score: str, lowest: int, max_size: int) -> None:
        self.owner = {node: node for node in self.clusters}
        while True:
            turns = [self.turn(pair, score) for pair in self.edges if not self.settled(pair)]
            turns = [turn for turn in turns if -turn[0] >= lowest]
            if not turns:
                return
            worse, _, a, b = min(turns)
            first, second = self.clusters[a], self.clusters[b]
            if len({first.kind, second.kind} - {0}) == 2 or 0 < max_size < first.size + second.size:
                self.refused.add(frozenset((a, b)))
            elif first.frozen or second.frozen:
                first.frozen = second.frozen = True
            else:
                self.merges.append((a, b, -worse))
                self.merge(a, b)

    def settled(self, pair: frozenset[int]) -> bool:
        return pair in self.refused or all(self.clusters[end].frozen for end in pair)

    def turn(self, pair: frozenset[int], score: str) -> tuple[int, list[int], int, int]:
        a, b = sorted(pair)
        ranks = sorted((self.clusters[a].rank, self.clusters[b].rank))
        return -plain_score(score, self.edges[pair]), ranks, a, b

    def merge(self, a: int, b: int) -> None:
        gone = self.clusters.pop(b)
        into = self.clusters[a]
        into.rank, into.size, into.kind = max(into.rank, gone.rank), into.size + gone.size, into.kind or gone.kind
        self.owner = {node: a if name == b else name for node, name in self.owner.items()}
        del self.edges[frozenset((a, b))]
        for pair in [pair for pair in self.edges if b in pair]:
            (other,) = pair - {b}
            self.add(a, other, self.edges.pop(pair))
            if pair in self.refused:
                self.refused.add(frozenset((a, other)))


def plain_score(score: str, affinities: list[int]) -> int:
    if score == "mean":
        return int(Fraction(sum(affinities), len(affinities)) * 2**20)
    if score == "max":
        return max(affinities) * 2**20
    if score == "min":
        return min(affinities) * 2**20
    percent = int(score.split("_")[1])
    # The smallest value with at least this part of all affinities at or below it.
    for value in sorted(affinities):
        if sum(a <= value for a in affinities) * 100 >= percent * len(affinities):
            return value * 2**20
    raise AssertionError


def statistics(score: str, affinities: list[int]) -> list[int]:
    """What an edge of these affinities carries."""
    if score == "mean":
        return [sum(affinities), len(affinities)]
    if score.startswith("quantile"):
        return [affinities.count(value) for value in range(256)]
    return [max(affinities) if score == "max" else min(affinities)]
