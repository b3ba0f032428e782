"""The whole pipeline from affinities on, written plainly for one small volume in one piece: what every chunking must
equal.

Nothing here is shared with the package: its own hash, its own union-find, lists and dictionaries, quadratic loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np

MASK = (1 << 56) - 1
M64 = (1 << 64) - 1


def edge_hash(index: int) -> int:
    x = index
    x ^= x >> 26
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x ^= x >> 23
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 27


def voxel_hash(index: int) -> int:
    x = index
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 & M64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB & M64
    return x ^ x >> 31


@dataclass(frozen=True)
class Settings:
    low: int = 30
    high: int = 250
    small: int = 12
    dust: int = 6
    lowest: str = "0.2"
    thresholds: tuple[str, ...] = ("0.3", "0.5", "0.7")


class Sets:
    """Sets of items, each with a list of its members."""

    def __init__(self, items) -> None:
        self.members = {item: [item] for item in items}
        self.home = {item: item for item in items}

    def join(self, a, b) -> None:
        a, b = self.home[a], self.home[b]
        if a == b:
            return
        if len(self.members[a]) < len(self.members[b]):
            a, b = b, a
        for item in self.members[b]:
            self.home[item] = a
        self.members[a] += self.members.pop(b)

    def size(self, item) -> int:
        return len(self.members[self.home[item]])


def segment_whole(affinities: np.ndarray, settings: Settings) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fragments and segmentations of affinities, uint8 `(3, z, y, x)`."""
    fragments = _fragments(affinities, settings)
    merges = _merges(fragments, affinities, Fraction(settings.lowest) * 255)
    ids = [int(i) for i in np.unique(fragments) if i]
    out = {}
    for threshold in settings.thresholds:
        sets = Sets(ids)
        for a, b, score in merges:
            # A score is floor(mean * 2**20), so it is at least the threshold if and only if its exact ceiling is
            # reached.
            if score >= Fraction(threshold) * 255 * (1 << 20):
                sets.join(a, b)
        names = {member: min(members) for members in sets.members.values() for member in members}
        out[threshold] = np.vectorize(lambda i, names=names: names.get(int(i), 0), otypes=[np.uint64])(fragments)
    return fragments, out


def _edges(affinities: np.ndarray):
    shape = affinities.shape[1:]
    for axis in range(3):
        for p in product(*map(range, shape)):
            if p[axis] == 0:
                continue
            q = tuple(i - (a == axis) for a, i in enumerate(p))
            index = int(np.ravel_multi_index(p, shape))
            yield int(affinities[(axis, *p)]), edge_hash(3 * index + axis), p, q


def _fragments(affinities: np.ndarray, settings: Settings) -> np.ndarray:
    shape = affinities.shape[1:]
    edges = [edge for edge in _edges(affinities) if edge[0] >= settings.low]
    best: dict = {}
    for edge in edges:
        for end in edge[2:]:
            best[end] = max(best.get(end, edge), edge)
    sets = Sets(list(best))
    for edge in {*best.values(), *(edge for edge in edges if edge[0] >= settings.high)}:
        sets.join(edge[2], edge[3])
    for _, _, p, q in sorted(edges, reverse=True):
        if min(sets.size(p), sets.size(q)) < settings.small:
            sets.join(p, q)
    out = np.zeros(shape, np.uint64)
    for members in sets.members.values():
        if len(members) >= settings.dust:
            name = 1 + min(int(np.ravel_multi_index(p, shape)) for p in members)
            for p in members:
                out[p] = name
    return out


def _merges(fragments: np.ndarray, affinities: np.ndarray, lowest: Fraction) -> list[tuple[int, int, int]]:
    contacts: dict[tuple[int, int], tuple[int, int]] = {}
    for affinity, _, p, q in _edges(affinities):
        a, b = sorted((int(fragments[p]), int(fragments[q])))
        if a and a != b:
            total, count = contacts.get((a, b), (0, 0))
            contacts[a, b] = total + affinity, count + 1
    members = {int(i): [int(i)] for i in np.unique(fragments) if i}
    merges = []
    while contacts:

        def priority(pair):
            total, count = contacts[pair]
            keys = sorted(max(voxel_hash(m) for m in members[end]) for end in pair)
            return -((total << 20) // count), keys

        a, b = min(contacts, key=priority)
        score = -priority((a, b))[0]
        if score < lowest * (1 << 20):
            break
        merges.append((a, b, score))
        del contacts[a, b]
        members[a] += members.pop(b)
        for pair in [pair for pair in contacts if b in pair]:
            total, count = contacts.pop(pair)
            other = pair[0] if pair[1] == b else pair[1]
            new = (min(a, other), max(a, other))
            before = contacts.get(new, (0, 0))
            contacts[new] = before[0] + total, before[1] + count
    return merges
