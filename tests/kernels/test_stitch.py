from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from neuroshed.kernels.inside import size_rule_inside
from neuroshed.kernels.regions import ROWS
from neuroshed.kernels.stitch import (
    NO_GAINS,
    Fragments,
    Gains,
    Links,
    SizeRule,
    best_links,
    falling_order,
    size_rule,
)
from neuroshed.kernels.watershed import watershed
from tests.kernels.block_cases import place_of, random_block, random_limits
from tests.kernels.plain_blocks import Link, PlainBlock, PlainSizeRule, plain_links, plain_size_rule


def random_keys(rng: np.random.Generator, count: int) -> list[int]:
    """Keys of few affinities, no two alike."""
    keys = rng.choice(2**16, count, replace=False) << 40 | rng.choice([0, 7, 7, 255], count) << 56
    return [int(key) % 2**64 for key in keys]


def random_links(rng: np.random.Generator, fragments: int, count: int) -> list[Link]:
    return [(key, *map(int, rng.choice(fragments, 2, replace=False))) for key in random_keys(rng, count)]


def as_links(links: list[Link], joined: Iterable[bool] | None = None) -> Links:
    keys, left, right = ([link[i] for link in links] for i in range(3))
    flags = np.zeros(len(links), np.bool_) if joined is None else np.array(list(joined), np.bool_)
    return Links(np.array(left, np.int64), np.array(right, np.int64), np.array(keys, np.uint64), flags)


def as_gains(gains: list[tuple[int, int, int]]) -> Gains:
    keys, who, voxels = ([gain[i] for gain in gains] for i in range(3))
    return Gains(np.array(who, np.int64), np.array(keys, np.uint64), np.array(voxels, np.int64))


def assert_equal(found: SizeRule, plain: PlainSizeRule) -> None:
    """All but `kept`, which is one a link."""
    parts = [plain.parts[i] for i in range(found.roots.size)]
    assert found.roots.tolist() == [min(part.members) for part in parts]
    kept = {id(plain.parts[end]) for link in plain.kept for end in link[1:]}
    for i in np.flatnonzero(found.roots == np.arange(found.roots.size)):
        part = parts[i]
        assert found.totals[i] == part.total
        assert found.starts[i] == (part.start if part.open else part.total)
        assert found.up[i] == (part.open or id(part) in kept)
        gains = found.gains.fragment == i
        expected = plain.needed_gains(part) if part.open else []
        assert list(zip(*(column[gains].tolist() for column in found.gains[1:]), strict=True)) == expected
    assert set(found.gains.fragment.tolist()) <= set(found.roots.tolist())


@pytest.mark.parametrize("seed", range(200))
def test_size_rule_equals_the_plain_one(seed: int) -> None:
    """In a node, with gains from below, some of them of fragments that are closed by now, and joined links."""
    rng = np.random.default_rng(seed)
    count, small = int(rng.integers(2, 25)), int(rng.integers(0, 40))
    starts, touching = rng.integers(1, 15, count), rng.random(count) < rng.choice([0, 0.2, 0.6])
    events = random_links(rng, count, int(rng.integers(0, 60)))
    gains, links = [], []
    for key, left, right in events:
        if rng.random() < 0.15:
            gains.append((key, left, int(rng.integers(1, 9))))
        else:
            links.append((key, left, right))
    joined = rng.random(len(links)) < 0.1
    totals = starts + np.bincount([g[1] for g in gains], [g[2] for g in gains], minlength=count).astype(np.int64)

    found = size_rule(Fragments(starts, totals, touching), as_gains(gains), as_links(links, joined), small)
    before = [link[1:] for link, is_joined in zip(links, joined, strict=True) if is_joined]
    plain = plain_size_rule(starts.tolist(), totals.tolist(), touching.tolist(), links, small, gains, before)
    assert_equal(found, plain)
    assert [link for link, stays in zip(links, found.kept, strict=True) if stays] == [
        link for link in links if link in plain.kept
    ]


class Tree:
    """Fragments spread over four leaves, which meet in two nodes, which meet in a root."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.count, self.small = int(rng.integers(2, 30)), int(rng.integers(1, 30))
        self.leaf = rng.integers(0, 4, self.count) if rng.random() < 0.9 else np.zeros(self.count, int)
        self.sizes = rng.integers(1, 12, self.count)
        self.links = random_links(rng, self.count, int(rng.integers(0, 4 * self.count)))
        # Edges inside a leaf that the watershed picks were joined there.
        self.joined = [rng.random() < 0.1 and self.leaf[a] != self.leaf[b] for _, a, b in self.links]
        self.reaches = rng.choice(3, self.count, p=[0.8, 0.1, 0.1])
        for _, a, b in self.links:
            for end in (a, b):
                self.reaches[end] = max(self.reaches[end], self.meeting(a, b))
        self.final: dict[int, int] = {}

    def meeting(self, a: int, b: int) -> int:
        """The level at which two fragments are in one node."""
        return next(level for level in range(3) if self.leaf[a] >> level == self.leaf[b] >> level)

    def climb(self) -> None:
        """Leave in `final` the size of each fragment's fragment, and in `self.owner` the fragment."""
        self.owner = np.arange(self.count)
        starts, totals = self.sizes.copy(), self.sizes.copy()
        alive, links, gains = np.ones(self.count, np.bool_), [], []
        for level in range(3):
            links += [(*link, joined) for link, joined in zip(self.links, self.joined, strict=True)
                      if self.meeting(*link[1:]) == level]  # fmt: skip
            reaches = np.zeros(self.count, int)
            np.maximum.at(reaches, self.owner, self.reaches)
            up_links, up_gains = [], []
            for node in set((self.leaf >> level).tolist()):
                mine = np.flatnonzero(alive & (self.leaf >> level == node))
                row = {int(fragment): i for i, fragment in enumerate(mine)}
                here = [(k, int(self.owner[a]), int(self.owner[b]), joined) for k, a, b, joined in links
                        if self.leaf[a] >> level == node]  # fmt: skip
                solved = size_rule(
                    Fragments(starts[mine], totals[mine], reaches[mine] > level),
                    as_gains([(k, row[a], voxels) for k, a, voxels in gains if a in row]),
                    as_links([(k, row[a], row[b]) for k, a, b, _ in here], [joined for *_, joined in here]),
                    self.small,
                )
                owners = {int(a): int(mine[root]) for a, root in zip(mine, solved.roots, strict=True)}
                self.owner = np.array([owners.get(int(a), int(a)) for a in self.owner])
                starts[mine], totals[mine], alive[mine] = solved.starts, solved.totals, solved.up
                up_links += [(*link[:3], False) for link, stays in zip(here, solved.kept, strict=True) if stays]
                rows = zip(*(column.tolist() for column in solved.gains), strict=True)
                up_gains += [(k, int(mine[a]), voxels) for a, k, voxels in rows]
            links, gains = up_links, up_gains
        assert not alive.any()
        self.totals = totals


@pytest.mark.parametrize("seed", range(250))
def test_nodes_come_to_what_the_whole_comes_to(seed: int) -> None:
    tree = Tree(np.random.default_rng(seed))
    tree.climb()
    joined = [link[1:] for link, is_joined in zip(tree.links, tree.joined, strict=True) if is_joined]
    closed = [False] * tree.count
    whole = plain_size_rule(tree.sizes.tolist(), tree.sizes.tolist(), closed, tree.links, tree.small, joined=joined)
    assert tree.owner.tolist() == [min(whole.parts[i].members) for i in range(tree.count)]
    assert tree.totals[tree.owner].tolist() == [whole.parts[i].now for i in range(tree.count)]


@pytest.mark.parametrize("seed", range(200))
def test_size_rule_inside_equals_the_plain_one(seed: int) -> None:
    """And that of all edges in a node; it does not depend on how many are taken at a time."""
    rng = np.random.default_rng(seed)
    block, (low, high) = random_block(seed, most=9), random_limits(seed)
    basins = watershed(block.affinities, place_of(block), low, high)
    touching = rng.random(basins.sizes.size) < rng.choice([0, 0.2, 1])
    fragments, small = Fragments(basins.sizes, basins.sizes, touching), int(rng.choice([0, 2, 10, 50, 1000]))
    every = [(key, a - 1, b - 1) for key, a, b in plain_links(block, basins.labels, low)]
    plain = plain_size_rule(basins.sizes.tolist(), basins.sizes.tolist(), touching.tolist(), every, small)
    whole = size_rule(fragments, NO_GAINS, as_links(every), small)
    for room in (1, 7, 10**9):
        args = basins.labels, block.affinities, place_of(block), fragments, low, small, room
        found, links = size_rule_inside(*args)
        assert_equal(found, plain)
        assert found.kept.all()
        assert links.keys.tolist() == sorted((key for key, _, _ in plain.kept), reverse=True)
        ends = {key: {min(plain.parts[end].members) for end in link} for key, *link in plain.kept}
        for key, left, right in zip(links.keys.tolist(), links.left, links.right, strict=True):
            assert {int(found.roots[left]), int(found.roots[right])} == ends[key]
        np.testing.assert_array_equal(found.roots, whole.roots)
        tops = found.roots == np.arange(found.roots.size)
        for one, other in zip(found[1:4], whole[1:4], strict=True):
            np.testing.assert_array_equal(one[tops], other[tops])
            assert one.dtype == other.dtype
        for one, other in zip(found.gains, whole.gains, strict=True):
            np.testing.assert_array_equal(one, other)


def test_more_links_are_kept_than_there_are_fragments() -> None:
    """All fragments are open and small, so nothing joins them."""
    shape = (11, 12, 13)
    affinities = np.random.default_rng(0).integers(1, 256, (3, *shape), np.uint8)
    labels = np.arange(1, 1 + np.prod(shape), dtype=np.int32).reshape(shape)
    block = PlainBlock(affinities, (0, 0, 0), shape, ((0, 0, 0), shape), shape)
    ones = np.ones(labels.size, np.int64)
    fragments = Fragments(ones, ones, ones > 0)
    every = sorted(plain_links(block, labels, 1), reverse=True)
    assert len(every) > ROWS
    for room in (1000, 10**9):
        _, found = size_rule_inside(labels, affinities, place_of(block), fragments, 1, 10, room)
        ends = np.sort(np.stack([found.left, found.right]) + 1, axis=0)
        assert list(zip(found.keys.tolist(), *ends.tolist(), strict=True)) == [
            (key, *sorted(pair)) for key, *pair in every
        ]
        assert [column.dtype for column in found] == [np.int64, np.int64, np.uint64, np.bool_]


@pytest.mark.parametrize("seed", range(30))
def test_best_links(seed: int) -> None:
    rng = np.random.default_rng(seed)
    links = random_links(rng, 6, int(rng.integers(0, 40)))
    joined = rng.random(len(links)) < 0.2
    rows: dict[tuple[int, int], list[tuple[int, bool]]] = {}
    for (key, *ends), is_joined in zip(links, joined.tolist(), strict=True):
        rows.setdefault((min(ends), max(ends)), []).append((key, is_joined))
    found = best_links(as_links(links, joined))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == [
        (*pair, max(key for key, _ in row), any(flag for _, flag in row)) for pair, row in sorted(rows.items())
    ]


def test_falling_order() -> None:
    assert falling_order(np.array([3, 2**63 + 1, 7, 2**63], np.uint64)).tolist() == [1, 3, 2, 0]
