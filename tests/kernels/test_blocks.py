from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from neuroshed.kernels.blocks import BlockGraph, Rules, block_graph
from tests.kernels.block_cases import place_of, random_block, random_limits
from tests.kernels.plain_blocks import (
    EITHER,
    Part,
    PlainBasins,
    PlainBlock,
    PlainSizeRule,
    histogram,
    plain_contacts,
    plain_links,
    plain_ranks,
    plain_size_rule,
    plain_watershed,
)

NEAREST = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
FAR = [(0, 0, -2), (-1, -2, -1)]


class Case(NamedTuple):
    block: PlainBlock
    rules: Rules

    def graph(self) -> BlockGraph:
        return block_graph(self.block.affinities, place_of(self.block), self.rules)


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    block, (low, high) = random_block(seed), random_limits(seed)
    return Case(block, Rules(low, high, int(rng.choice([0, 2, 10, 50])), int(rng.choice([0, 2, 20]))))


class PlainGraph:
    """Fragments of a block: `parts`, in the order of their first voxels, and `labels`."""

    def __init__(self, case: Case) -> None:
        block, rules = case.block, case.rules
        self.basins = plain_watershed(block, rules.low, rules.high)
        self.touching = basins_at_faces(self.basins, place_of(block).inner_faces())
        links = [(key, a - 1, b - 1) for key, a, b in plain_links(block, self.basins.labels, rules.low)]
        sizes = self.basins.sizes
        touching = [bool(faces) for faces in self.touching]
        self.rule: PlainSizeRule = plain_size_rule(sizes, sizes, touching, links, rules.small)
        every = {id(part): part for part in self.rule.parts.values()}.values()
        stay = [part for part in every if self.up(part) or part.total >= rules.dust]
        self.parts = sorted(stay, key=lambda part: min(part.members))
        self.row = {member: row for row, part in enumerate(self.parts) for member in part.members}
        names = np.array([0] + [self.row.get(i, -1) + 1 for i in range(len(sizes))])
        self.labels = names[self.basins.labels]

    def up(self, part: Part) -> bool:
        """Whether it goes up: it touches a face, or a link of it is kept."""
        return part.open or any(self.rule.parts[end] is part for _, *ends in self.rule.kept for end in ends)

    def links(self) -> list[tuple[int, int, int]]:
        """Rows of both ends and the best key, sorted."""
        best: dict[tuple[int, ...], int] = {}
        for key, *ends in self.rule.kept:
            pair = tuple(sorted(self.row[end] for end in ends))
            best[pair] = max(key, best.get(pair, 0))
        return [(*pair, key) for pair, key in sorted(best.items())]

    def gains(self) -> list[tuple[int, int, int]]:
        open_parts = [(row, part) for row, part in enumerate(self.parts) if part.open]
        return [(row, *gain) for row, part in open_parts for gain in self.rule.needed_gains(part)]


def basins_at_faces(basins: PlainBasins, inner: np.ndarray) -> list[set[tuple[int, int]]]:
    """The faces with region beyond, as (axis, side), that each basin touches."""
    faces: list[set[tuple[int, int]]] = [set() for _ in basins.sizes]
    for axis, side in np.argwhere(inner).tolist():
        for label in set(basins.labels.take(-side, axis).ravel().tolist()) - {0}:
            faces[label - 1].add((axis, side))
    return faces


@pytest.mark.parametrize("seed", range(120))
def test_block_graphs_equal_the_plain_ones(seed: int) -> None:
    case = random_case(seed)
    found, plain = case.graph(), PlainGraph(case)
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert found.labels.dtype == np.uint32
    voxels = list(case.block.voxels)
    assert found.ids.tolist() == [
        1 + case.block.index(voxels[plain.basins.first[min(part.members)]]) for part in plain.parts
    ]
    assert found.totals.tolist() == [part.total for part in plain.parts]
    assert found.starts.tolist() == [part.start if part.open else part.total for part in plain.parts]
    assert found.ranks.tolist() == plain_ranks(case.block, plain.labels)
    faces = [set.union(*(plain.touching[i] for i in part.members)) for part in plain.parts]
    assert found.above.tolist() == [sum(1 << (3, 1, 0)[axis] for axis, side in at if side) for at in faces]
    assert found.below.tolist() == [any(side == 0 for _, side in at) for at in faces]
    assert found.up.tolist() == [plain.up(part) for part in plain.parts]
    assert list(zip(*(column.tolist() for column in found.links[:3]), strict=True)) == plain.links()
    assert not found.links.joined.any()
    assert list(zip(*(column.tolist() for column in found.gains), strict=True)) == plain.gains()


@pytest.mark.parametrize("seed", range(40))
def test_planes_are_the_faces(seed: int) -> None:
    case = random_case(seed)
    found, picked = case.graph(), plain_watershed(case.block, case.rules.low, case.rules.high).picked
    for axis in range(3):
        for side in range(2):
            plane, expected = found.planes[axis][side], picked[axis][side].ravel()
            assert plane.labels.tolist() == found.labels.take(-side, axis).ravel().tolist()
            if place_of(case.block).inner_faces()[axis, side]:
                assert plane.picked[expected != EITHER].tolist() == expected[expected != EITHER].tolist()
            assert (plane.labels.dtype, plane.picked.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("seed", range(40))
def test_contacts_with_further_channels_and_histograms(seed: int) -> None:
    case = random_case(seed)
    shape = case.block.affinities.shape[1:]
    further = np.random.default_rng(seed).integers(0, 256, (len(FAR), *shape), np.uint8)
    affinities = np.concatenate([case.block.affinities, further])
    found = block_graph(affinities, place_of(case.block), case.rules, FAR, True).contacts
    plain = plain_contacts(case.graph().labels, affinities, NEAREST + FAR)
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == list(plain)
    assert found.sums.tolist() == [sum(values) for values in plain.values()]
    assert found.histograms.tolist() == [histogram(values) for values in plain.values()]


def test_a_block_with_more_edges_than_are_taken_at_a_time() -> None:
    shape = (9, 10, 19)
    affinities = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    block = PlainBlock(affinities, (0, 0, 0), shape, ((0, 0, 0), shape), shape)
    case = Case(block, Rules(20, 250, 40, 10))
    found, plain = case.graph(), PlainGraph(case)
    assert len(plain_links(block, plain.basins.labels, 20)) > found.labels.size
    np.testing.assert_array_equal(found.labels, plain.labels)
    assert not found.up.any()
