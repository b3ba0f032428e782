"""Promise 1 against other people's code: without the size rule, fragments are connected components; and merges by the
mean affinity are those of waterz.

The reference of the other tests was written for this project; scipy and waterz were not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from itertools import count, islice

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from neuroshed.geometry import Box
from neuroshed.kernels import child
from neuroshed.kernels.waterz import agglomerate
from tests.kernels.plain_merging import Cluster, PlainGraph

from .cases import Case, cells, history, noise, plateaus, run_case
from .reference import Merge, Settings, Whole, edge_hash, voxel_hash

GAP = Fraction(1, 10**5)
"""waterz keeps means as float32: scores nearer to each other, or to a threshold, it may take in another order."""

TIE_FREE = Settings(
    low=20, high=256, small=10, dust=4, lowest="0.1", thresholds=("0.1", "0.25", "0.3", "0.4", "0.5", "0.6", "0.8")
)
Contacts = dict[frozenset[int], list[int]]


def contacts(affinities: np.ndarray, fragments: np.ndarray) -> Contacts:
    """The affinities between each two fragments."""
    found = defaultdict(list)
    for axis in range(3):
        upper, lower = (np.delete(fragments, end, axis).ravel().tolist() for end in (0, -1))
        for a, b, affinity in zip(upper, lower, np.delete(affinities[axis], 0, axis).ravel().tolist(), strict=True):
            if a and b and a != b:
                found[frozenset((a, b))].append(affinity)
    return dict(found)


def components(affinities: np.ndarray, low: int, high: int) -> np.ndarray:
    """What each voxel's best edge and all edges of at least `high` connect, by the place of the first voxel, from 1."""
    shape = affinities.shape[1:]
    index = np.arange(affinities[0].size, dtype=np.uint64).reshape(shape)
    # Each edge by its affinity, then its hash, at both its ends: first at the upper, then at the lower voxel.
    keys = np.zeros((6, *shape), np.uint64)
    for axis in range(3):
        edges = affinities[axis].astype(np.uint64) << 56 | edge_hash(3 * index + axis)
        edges[affinities[axis] < low] = 0
        edges.swapaxes(0, axis)[0] = 0
        keys[axis] = edges
        keys[3 + axis].swapaxes(0, axis)[:-1] = edges.swapaxes(0, axis)[1:]
    picked = (keys > 0) & ((keys == keys.max(axis=0)) | (keys >> 56 >= high))
    way, *voxel = np.nonzero(picked)
    start, steps = np.ravel_multi_index(voxel, shape), np.array([shape[1] * shape[2], shape[2], 1])
    end = start + np.concatenate([-steps, steps])[way]
    graph = coo_array((np.ones(start.size), (start, end)), (index.size, index.size))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return np.where(picked.any(axis=0), first[labels].reshape(shape) + 1, 0).astype(np.uint64)


def greedy_merges(affinities: np.ndarray, fragments: np.ndarray, lowest: Fraction) -> list[Merge]:
    """The best pair first, all pairs looked at for each merge."""
    ranks = voxel_hash(np.arange(fragments.size, dtype=np.uint64)).reshape(fragments.shape)
    names = np.unique(fragments[fragments > 0]).tolist()
    graph = PlainGraph({name: Cluster(int(ranks[fragments == name].max())) for name in names})
    for (a, b), found in ((sorted(pair), found) for pair, found in contacts(affinities, fragments).items()):
        graph.add(a, b, found)
    graph.agglomerate("mean", -int(-lowest * (255 << 20) // 1), max_size=0)
    return graph.merges


@pytest.mark.parametrize("seed", range(8))
def test_without_small_and_dust_fragments_are_components_and_merges_are_greedy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, y, x = rng.integers(4, 7, 3).tolist()
    affinities = (noise, plateaus)[seed % 2](rng, (z, y, x))
    settings = Settings(low=60, high=(256, 240, 100)[seed % 3], small=0, dust=0, lowest="0.1", thresholds=())
    found = run_case(Case("small", affinities, Box((0, 0, 0), (z, y, x)), (3, 2, 3), settings, seed))
    np.testing.assert_array_equal(found.fragments, components(affinities, settings.low, settings.high))
    assert history(found.merges) == history(greedy_merges(affinities, found.fragments, Fraction(settings.lowest)))


def scores_on_the_way(edges: Contacts) -> Iterator[list[Fraction]]:
    """Before each greedy merge by the mean, all scores, falling; in exact arithmetic."""
    while edges:
        ranked = sorted(((Fraction(sum(found), 255 * len(found)), sorted(pair)) for pair, found in edges.items()))[::-1]
        yield [score for score, _ in ranked]
        a, b = ranked[0][1]
        merged = defaultdict(list)
        for pair, found in edges.items():
            if pair != {a, b}:
                merged[frozenset(a if end == b else end for end in pair)] += found
        edges = dict(merged)


def is_clear(edges: Contacts) -> bool:
    """Whether no two scores that compete, nor a score and a threshold, come near each other."""
    best = []
    for first, *others in scores_on_the_way(edges):
        if others and first - others[0] < GAP:
            return False
        best.append(first)
    return len(best) > 3 and all(abs(a - Fraction(t)) > GAP for a in best for t in TIE_FREE.thresholds)


def clear_cases() -> Iterator[tuple[Case, Whole]]:
    """Endless: cases without ties, and what our stages make of them."""
    for seed in count():
        rng = np.random.default_rng(seed)
        z, y, x = rng.integers(8, 11, 3).tolist()
        affinities = (cells, noise)[seed % 2](rng, (z, y, x))
        case = Case("few fragments", affinities, Box((0, 0, 0), (z, y, x)), (4, 4, 4), TIE_FREE, seed)
        found = run_case(case)
        if is_clear(contacts(affinities, found.fragments)):
            yield case, found


@pytest.fixture
def waterz() -> Iterator[None]:
    """Its process ends with the test."""
    pytest.importorskip("waterz")
    yield
    child._threads.child.stop()


@pytest.mark.usefixtures("waterz")
def test_tie_free_means_equal_those_of_waterz() -> None:
    thresholds = [float(threshold) for threshold in TIE_FREE.thresholds]
    numbers = set()
    for case, found in islice(clear_cases(), 12):
        theirs = agglomerate(case.affinities, found.fragments, thresholds)
        for (threshold, ours), other in zip(found.segments.items(), theirs, strict=True):
            np.testing.assert_array_equal(ours, other, err_msg=f"{case} at {threshold}")
            numbers.add(len(np.unique(ours)))
    # The thresholds were not all above, or all below, every score.
    assert len(numbers) > 3
