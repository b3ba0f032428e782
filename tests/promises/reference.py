"""The whole pipeline from affinities on, written plainly for one small volume in one piece: what every chunking must
equal.

Nothing here is shared with the package: its own hash, its own sets, lists and dictionaries; an edge between fragments
is the list of its affinities.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MASK = (1 << 56) - 1
M64 = (1 << 64) - 1
Vec = tuple[int, int, int]
Merge = tuple[int, int, int]


def edge_hash(index):
    """Of an integer, or of an array of uint64, whose products wrap round."""
    x = index
    x = x ^ x >> 26
    x = x * 0xBF58476D1CE4E5B9 & MASK
    x = x ^ x >> 23
    x = x * 0x94D049BB133111EB & MASK
    return x ^ x >> 27


def voxel_hash(index):
    x = index
    x = x ^ x >> 30
    x = x * 0xBF58476D1CE4E5B9 & M64
    x = x ^ x >> 27
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
    score: str = "mean"
    max_size: int = 0
    smooth: float = 0.0
    bias: int = 0
    further: tuple[Vec, ...] = ()
    """Offsets of the channels after the third, whose affinities count in scores."""


@dataclass(frozen=True)
class Whole:
    """What comes out: ids of fragments, merges as (id, id, score), and ids of segments by threshold."""

    fragments: np.ndarray
    merges: list[Merge]
    segments: dict[str, np.ndarray]


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


def segment_whole(
    affinities: np.ndarray,
    settings: Settings,
    origin: Vec = (0, 0, 0),
    volume_shape: Vec | None = None,
    classes: np.ndarray | None = None,
    allowed: np.ndarray | None = None,
) -> Whole:
    """Fragments, merges and segments of affinities, uint8 `(c, z, y, x)`, that lie at `origin` in a larger volume.

    `classes`: for each voxel one of the classes from 1 on that are kept apart, or 0. `allowed`: for each whether it is
    segmented.
    """
    shape = affinities.shape[1:]
    along = [o + np.arange(n, dtype=np.uint64) for o, n in zip(origin, shape, strict=True)]
    _, ny, nx = volume_shape or shape
    index = (along[0][:, None, None] * ny + along[1][:, None]) * nx + along[2]
    there = np.ones(shape, bool) if allowed is None else allowed
    edges = list(_edges(affinities, index, settings, there))
    fragments = _fragments(edges, index, settings)
    edges += _further_edges(affinities, settings, there)
    merges = _merges(fragments, edges, index, settings, np.zeros(shape, int) if classes is None else classes)
    return Whole(fragments, merges, {t: _joined(fragments, merges, t) for t in settings.thresholds})


def _edges(
    affinities: np.ndarray, index: np.ndarray, settings: Settings, there: np.ndarray
) -> Iterator[tuple[int, int, int, int]]:
    """Every edge inside: affinity, hash, and its two voxels by their place in `index`."""
    place = np.arange(index.size).reshape(index.shape)
    for axis in range(3):
        upper = tuple(slice(int(a == axis), None) for a in range(3))
        lower = tuple(slice(None, -1 if a == axis else None) for a in range(3))
        values = _adjusted(affinities[axis][upper], settings, there[upper] & there[lower])
        columns = values, edge_hash(3 * index[upper] + axis), place[upper], place[lower]
        yield from zip(*(column.ravel().tolist() for column in columns), strict=True)


def _further_edges(
    affinities: np.ndarray, settings: Settings, there: np.ndarray
) -> Iterator[tuple[int, int, int, int]]:
    """The same of the further channels, with no hash."""
    shape = affinities.shape[1:]
    place = np.arange(math.prod(shape)).reshape(shape)
    for channel, offset in enumerate(settings.further, 3):
        upper = tuple(slice(-o, None) for o in offset)
        lower = tuple(slice(None, max(n + o, 0)) for o, n in zip(offset, shape, strict=True))
        values = _adjusted(affinities[channel][upper], settings, there[upper] & there[lower])
        columns = values, np.zeros_like(values), place[upper], place[lower]
        yield from zip(*(column.ravel().tolist() for column in columns), strict=True)


def _adjusted(values: np.ndarray, settings: Settings, there: np.ndarray) -> np.ndarray:
    """Edges that are not there weigh as 0 while others are smoothed, and are 0 after it."""
    smoothed = _smoothed(np.where(there, values, 0), settings.smooth)
    return np.where(there, (smoothed + settings.bias).clip(0, 255), 0)


def _smoothed(values: np.ndarray, smooth: float) -> np.ndarray:
    """Means with Gaussian weights as far as three standard deviations, rounded."""
    reach = math.ceil(3 * smooth)
    weights = [round(1024 * math.exp(-(k * k) / (2 * smooth**2))) if k else 1024 for k in range(reach + 1)]
    total, weight = values.astype(int), np.ones(values.shape, int)
    for axis, n in enumerate(values.shape):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        total, weight = (
            sum(weights[abs(k)] * np.pad(sums, padding).take(range(reach + k, reach + k + n), axis)
                for k in range(-reach, reach + 1))
            for sums in (total, weight)
        )  # fmt: skip
    return (2 * total + weight) // (2 * weight)


def _fragments(edges: list, index: np.ndarray, settings: Settings) -> np.ndarray:
    edges = [edge for edge in edges if edge[0] >= settings.low]
    best: dict = {}
    for edge in edges:
        for end in edge[2:]:
            if end not in best or edge > best[end]:
                best[end] = edge
    sets = Sets(list(best))
    for _, _, p, q in {*best.values(), *(edge for edge in edges if edge[0] >= settings.high)}:
        sets.join(p, q)
    for _, _, p, q in sorted(edges, reverse=True):
        if min(sets.size(p), sets.size(q)) < settings.small:
            sets.join(p, q)
    out = np.zeros(index.size, np.uint64)
    for members in sets.members.values():
        if len(members) >= settings.dust:
            out[members] = 1 + index.ravel()[min(members)]
    return out.reshape(index.shape)


def score_of(affinities: list[int], score: str) -> int:
    """The integer that orders an edge of these affinities."""
    if score == "mean":
        return (sum(affinities) << 20) // len(affinities)
    if score.startswith("quantile_"):
        percent = int(score.removeprefix("quantile_"))
        return sorted(affinities)[max(-(-percent * len(affinities) // 100), 1) - 1] << 20
    return {"max": max, "min": min}[score](affinities) << 20


def contacts_of(fragments: np.ndarray, edges: list) -> dict[int, dict[int, list[int]]]:
    """The affinities between each two fragments, under both."""
    names = fragments.ravel().tolist()
    contacts: dict[int, dict[int, list[int]]] = {name: {} for name in names}
    for affinity, _, p, q in edges:
        a, b = names[p], names[q]
        if a and b and a != b:
            shared = contacts[a].setdefault(b, [])
            contacts[b][a] = shared
            shared.append(affinity)
    return contacts


def _class(votes: list[int]) -> int:
    """The most frequent class, the first of equals, if half of all voxels are of it."""
    best = max(range(1, max(votes) + 1), key=votes.count, default=0)
    return best if 2 * votes.count(best) >= len(votes) else 0


def _merges(
    fragments: np.ndarray, edges: list, index: np.ndarray, settings: Settings, classes: np.ndarray
) -> list[Merge]:
    """The best pair first, again and again: a queue holds every pair as it is now, and some as they were."""
    contacts = contacts_of(fragments, edges)
    ranks, votes = dict.fromkeys(contacts, 0), {name: [] for name in contacts}
    for name, rank, vote in zip(*(a.ravel().tolist() for a in (fragments, voxel_hash(index), classes)), strict=True):
        ranks[name] = max(ranks[name], rank)
        votes[name].append(vote)
    sizes, kinds = ({name: what(found) for name, found in votes.items()} for what in (len, _class))

    def turn(a: int, b: int) -> tuple:
        return -score_of(contacts[a][b], settings.score), *sorted((ranks[a], ranks[b])), min(a, b), max(a, b)

    queue = [turn(a, b) for a in contacts for b in contacts[a] if a < b]
    heapq.heapify(queue)
    merges = []
    while queue and -queue[0][0] >= Fraction(settings.lowest) * 255 * (1 << 20):
        worse, *_, a, b = first = heapq.heappop(queue)
        if a not in contacts or b not in contacts[a] or turn(a, b) != first:
            continue
        if 0 < settings.max_size < sizes[a] + sizes[b] or len({kinds[a], kinds[b]} - {0}) > 1:
            continue
        merges.append((a, b, -worse))
        sizes[a], ranks[a], kinds[a] = sizes[a] + sizes[b], max(ranks[a], ranks[b]), kinds[a] or kinds[b]
        for other, shared in contacts.pop(b).items():
            del contacts[other][b]
            if other != a:
                contacts[a][other] = contacts[other][a] = contacts[a].get(other, []) + shared
        for other in contacts[a]:
            heapq.heappush(queue, turn(a, other))
    return merges


def _joined(fragments: np.ndarray, merges: list[Merge], threshold: str) -> np.ndarray:
    names, places = np.unique(fragments, return_inverse=True)
    sets = Sets(names.tolist())
    for a, b, score in merges:
        if score >= Fraction(threshold) * 255 * (1 << 20):
            sets.join(a, b)
    smallest = {member: min(members) for members in sets.members.values() for member in members}
    return np.array([smallest[name] for name in names.tolist()], np.uint64)[places].reshape(fragments.shape)
