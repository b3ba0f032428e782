"""The kernels of one block, written plainly: dictionaries and loops over voxels. Nothing is shared with the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

Voxel = tuple[int, int, int]
Key = int
Link = tuple[Key, int, int]
AXES = range(3)


def edge_hash(index: int) -> int:
    mask = (1 << 56) - 1
    for shift, factor in ((26, 0xBF58476D1CE4E5B9), (23, 0x94D049BB133111EB)):
        index = (index ^ index >> shift) * factor & mask
    return index ^ index >> 27


def voxel_hash(index: int) -> int:
    mask = (1 << 64) - 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        index = (index ^ index >> shift) * factor & mask
    return index ^ index >> 31


def below(voxel: Voxel, axis: int) -> Voxel:
    z, y, x = (at - (a == axis) for a, at in enumerate(voxel))
    return z, y, x


@dataclass(frozen=True)
class PlainBlock:
    """A block from `start` to `stop` of a region in a volume; `affinities` cover one voxel more where the region does.

    Its voxels are named by their places in the block.
    """

    affinities: np.ndarray
    start: Voxel
    stop: Voxel
    region: tuple[Voxel, Voxel]
    volume: Voxel

    @property
    def shape(self) -> Voxel:
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def voxels(self) -> Iterator[Voxel]:
        return product(*map(range, self.shape))

    def inside(self, voxel: Voxel) -> bool:
        return all(0 <= at < side for at, side in zip(voxel, self.shape, strict=True))

    def in_region(self, voxel: Voxel) -> bool:
        return all(
            low <= at + start < high for at, start, low, high in zip(voxel, self.start, *self.region, strict=True)
        )

    def index(self, voxel: Voxel) -> int:
        """Global linear index."""
        z, y, x = (at + start for at, start in zip(voxel, self.start, strict=True))
        return (z * self.volume[1] + y) * self.volume[2] + x

    def key(self, upper: Voxel, axis: int) -> Key:
        affinity = int(self.affinities[(axis, *upper)])
        return affinity << 56 | edge_hash(3 * self.index(upper) + axis)

    def edges(self) -> Iterator[tuple[Key, Voxel, Voxel]]:
        """Key, upper and lower voxel of all edges that have an end in the block."""
        z, y, x = (side + 1 for side in self.shape)
        for upper in product(range(z), range(y), range(x)):
            for axis in AXES:
                lower = below(upper, axis)
                if self.in_region(upper) and self.in_region(lower) and (self.inside(upper) or self.inside(lower)):
                    yield self.key(upper, axis), upper, lower


class Sets:
    """Sets of items that can be joined."""

    def __init__(self, items: Iterable) -> None:
        self.members = {item: {item} for item in items}

    def join(self, a, b) -> None:
        both = self.members[a] | self.members[b]
        for item in both:
            self.members[item] = both


def plain_picks(block: PlainBlock, low: int) -> set[tuple[Voxel, Voxel]]:
    """Upper and lower voxels of the best edges of the block's voxels, and by the voxel that picked it."""
    best: dict[Voxel, tuple[Key, Voxel, Voxel]] = {}
    for edge in block.edges():
        if edge[0] >= low << 56:
            for voxel in filter(block.inside, edge[1:]):
                best[voxel] = max(edge, best.get(voxel, edge))
    return {(voxel, upper if voxel == lower else lower) for voxel, (_, upper, lower) in best.items()}


EITHER = 2
"""In a high plane: the edge is joined by its strength, whoever picked it."""


@dataclass(frozen=True)
class PlainBasins:
    """As `watershed.Basins`."""

    labels: np.ndarray
    first: list[int]
    sizes: list[int]
    picked: list[tuple[np.ndarray, np.ndarray]]


def plain_watershed(block: PlainBlock, low: int, high: int) -> PlainBasins:
    picks = plain_picks(block, low)
    sets = Sets(voxel for voxel, _ in picks)
    picked = [tuple(np.zeros([n for a, n in enumerate(block.shape) if a != axis]) for _ in (0, 1)) for axis in AXES]
    for key, upper, lower in block.edges():
        strong = key >= high << 56
        axis = next(axis for axis in AXES if upper[axis] != lower[axis])
        across = tuple(at for a, at in enumerate(upper) if a != axis)
        if block.inside(upper) and block.inside(lower):
            if strong or (upper, lower) in picks or (lower, upper) in picks:
                sets.join(upper, lower)
        elif block.inside(upper):
            picked[axis][0][across] = strong or (upper, lower) in picks
        else:
            picked[axis][1][across] = EITHER if strong else (lower, upper) in picks
    labels = np.zeros(block.shape, int)
    first, sizes = [], []
    for position, voxel in enumerate(block.voxels):
        if voxel in sets.members and labels[voxel] == 0:
            first.append(position)
            sizes.append(len(sets.members[voxel]))
            for member in sets.members[voxel]:
                labels[member] = len(first)
    return PlainBasins(labels, first, sizes, picked)


def plain_links(block: PlainBlock, labels: np.ndarray, low: int) -> list[Link]:
    """All edges of at least `low` between different labels."""
    return [
        (key, int(labels[upper]), int(labels[lower]))
        for key, upper, lower in block.edges()
        if key >= low << 56 and block.inside(upper) and block.inside(lower)
        if labels[upper] and labels[lower] and labels[upper] != labels[lower]
    ]


@dataclass
class Part:
    """A fragment in a node: `now` are the voxels that it has at this place in the order."""

    members: list[int]
    start: int
    now: int
    total: int
    open: bool
    gains: list[tuple[Key, int]] = field(default_factory=list)


@dataclass
class PlainSizeRule:
    """The size rule in one node, whose fragments touch faces with region beyond, or do not."""

    parts: dict[int, Part]
    small: int
    kept: list[Link] = field(default_factory=list)

    def join(self, a: int, b: int) -> None:
        """Take the part of `a` into that of `b`, which gives it its start."""
        gone, into = self.parts[a], self.parts[b]
        into.members += gone.members
        into.now, into.total = into.now + gone.now, into.total + gone.total
        into.open |= gone.open
        for member in gone.members:
            self.parts[member] = into

    def run(self, links: list[Link], gains: Sequence[tuple[Key, int, int]], joined: Iterable[tuple[int, int]]) -> None:
        for a, b in joined:
            if self.parts[a] is not self.parts[b]:
                self.parts[b].start += self.parts[a].start
                self.join(a, b)
        for event in sorted([*links, *((key, a, None, voxels) for key, a, voxels in gains)], key=lambda e: -e[0]):
            if len(event) == 4:
                self.gain(*event)
            else:
                self.link(*event)
        # Neither end of a kept link can be taken into another part any more.
        assert all(self.parts[a] is not self.parts[b] for _, a, b in self.kept)

    def gain(self, key: Key, fragment: int, _: None, voxels: int) -> None:
        part = self.parts[fragment]
        part.gains.append((key, voxels))
        part.now += voxels

    def link(self, key: Key, left: int, right: int) -> None:
        ends = self.parts[left], self.parts[right]
        if ends[0] is ends[1] or min(part.now for part in ends) >= self.small:
            return
        certain = [part for part in ends if part.now < self.small and not part.open]
        if not certain:
            self.kept.append((key, left, right))
            return
        gone = certain[0]
        into = ends[1] if gone is ends[0] else ends[0]
        into.gains.append((key, gone.now))
        self.join(gone.members[0], into.members[0])

    def needed_gains(self, part: Part) -> list[tuple[Key, int]]:
        """Those that came while the part was small."""
        before = [sum(voxels for _, voxels in part.gains[:i]) for i in range(len(part.gains))]
        return [gain for gain, had in zip(part.gains, before, strict=True) if part.start + had < self.small]


def plain_size_rule(
    starts: Sequence[int],
    totals: Sequence[int],
    touching: Sequence[bool],
    links: list[Link],
    small: int,
    gains: Sequence[tuple[Key, int, int]] = (),
    joined: Iterable[tuple[int, int]] = (),
) -> PlainSizeRule:
    rows = zip(starts, totals, touching, strict=True)
    rule = PlainSizeRule(
        {i: Part([i], start, start, total, open_) for i, (start, total, open_) in enumerate(rows)}, small
    )
    rule.run(links, gains, joined)
    return rule


def plain_contacts(
    labels: np.ndarray, affinities: np.ndarray, offsets: Sequence[Voxel]
) -> dict[tuple[int, int], list[int]]:
    """The affinities between each two labels."""
    found: dict[tuple[int, int], list[int]] = {}
    for voxel in product(*map(range, labels.shape)):
        for channel, offset in enumerate(offsets):
            other = tuple(at + step for at, step in zip(voxel, offset, strict=True))
            if min(other) >= 0:
                a, b = sorted((int(labels[voxel]), int(labels[other])))
                if a and a != b:
                    found.setdefault((a, b), []).append(int(affinities[(channel, *voxel)]))
    return dict(sorted(found.items()))


def plain_ranks(block: PlainBlock, labels: np.ndarray) -> list[int]:
    hashes: dict[int, list[int]] = {}
    for voxel in block.voxels:
        hashes.setdefault(int(labels[voxel]), []).append(voxel_hash(block.index(voxel)))
    return [max(of_label) for label, of_label in sorted(hashes.items()) if label]


def histogram(values: Iterable[int]) -> list[int]:
    counts = [0] * 256
    for value in values:
        counts[value] += 1
    return counts
