from __future__ import annotations

import numpy as np
import pytest

from neuroshed.geometry import Box, Vec
from neuroshed.kernels import regions
from neuroshed.kernels.regions import Contacts, edge_count, edges_by_affinity, ranks, region_graph
from neuroshed.kernels.watershed import Place, watershed
from tests.kernels.block_cases import place_of, random_affinities, random_block
from tests.kernels.plain_blocks import PlainBlock, histogram, plain_contacts, plain_links, plain_ranks

NEAREST = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
FAR = [(0, 0, -3), (0, -9, 0), (-2, -1, 0), (-1, -2, -8), (0, 0, -300)]
WEAKEST, STRONGEST = 0, (256 << 56) - 1


def random_labels(rng: np.random.Generator, shape: Vec) -> tuple[np.ndarray, int]:
    """Labels in patches, some of them background, int32, and how many there may be."""
    count = int(rng.integers(1, 9))
    coarse = rng.integers(0, count + 1, [-(-side // 2) for side in shape])
    return np.kron(coarse, np.ones((2, 2, 2), int))[tuple(map(slice, shape))].astype(np.int32), count


def assert_equal(found: Contacts, plain: dict[tuple[int, int], list[int]], histograms: bool) -> None:
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == list(plain)
    assert found.sums.tolist() == [sum(values) for values in plain.values()]
    assert found.counts.tolist() == [len(values) for values in plain.values()]
    assert found.lowest.tolist() == [min(values) for values in plain.values()]
    assert found.highest.tolist() == [max(values) for values in plain.values()]
    assert found.histograms.tolist() == [histogram(values) for values in plain.values() if histograms]
    assert found.histograms.shape == (len(plain) if histograms else 0, 256)
    types = [np.int64] * 4 + [np.uint8] * 2 + [np.int64]
    assert [column.dtype for column in found] == types


@pytest.mark.parametrize("seed", range(60))
def test_contacts_equal_the_plain_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = random_block(seed, most=10)
    labels, count = random_labels(rng, block.shape)
    offsets = [FAR[i] for i in rng.permutation(len(FAR))[: seed % 4]]
    further = rng.integers(0, 256, (len(offsets), *block.affinities.shape[1:]), np.uint8)
    affinities = np.concatenate([block.affinities, further])
    found = region_graph(labels, affinities, count, offsets, histograms=bool(seed % 2))
    assert_equal(found, plain_contacts(labels, affinities, NEAREST + offsets), bool(seed % 2))


@pytest.mark.parametrize("histograms", [False, True])
def test_more_pairs_than_a_table_begins_with(histograms: bool) -> None:
    shape = (13, 12, 14)
    labels = np.arange(1, 1 + np.prod(shape), dtype=np.int32).reshape(shape)
    affinities = random_affinities(np.random.default_rng(3), shape)
    # Told of few labels, so that the table of pairs must grow as well.
    found = region_graph(labels, affinities, 5, histograms=histograms)
    assert found.left.size > regions.ROWS
    assert_equal(found, plain_contacts(labels, affinities, NEAREST), histograms)


@pytest.mark.parametrize("nx", [1 << 14, 1 << 12])
def test_more_than_one_strip_of_a_plane(nx: int) -> None:
    rng = np.random.default_rng(nx)
    shape = (3, 7, nx)
    offsets: list[Vec] = [(-1, -2, -1), (0, -5, 0)]
    labels, count = random_labels(rng, shape)
    affinities = rng.integers(0, 256, (5, *shape), np.uint8)
    found = region_graph(labels, affinities, count, offsets, histograms=True)
    assert_equal(found, plain_contacts(labels, affinities, NEAREST + offsets), True)


@pytest.mark.parametrize("largest", [2**22 - 1, 2**22, 2**31 - 1])
def test_labels_of_more_than_one_digit_in_any_order(largest: int) -> None:
    """Also one that meets all others, which are larger and smaller than it."""
    rng = np.random.default_rng(largest)
    shape = (6, 7, 8)
    labels = rng.permutation(np.linspace(1, largest, np.prod(shape)).astype(np.int32)).reshape(shape)
    labels[:, 3] = largest // 2
    affinities = random_affinities(rng, shape)
    assert_equal(region_graph(labels, affinities, labels.size), plain_contacts(labels, affinities, NEAREST), False)


@pytest.mark.parametrize("kind", ["noise", "weakest", "strongest", "one voxel"])
def test_contacts_of_basins(kind: str) -> None:
    shape = (1, 1, 1) if kind == "one voxel" else (9, 10, 11)
    affinities = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    if kind in ("weakest", "strongest"):
        affinities[:] = 0 if kind == "weakest" else 255
    place = Place(Box.of_shape(shape), Box.of_shape(shape), shape)
    for low, high in ((0, 256), (26, 250)):
        basins = watershed(affinities, place, low, high)
        found = region_graph(basins.labels, affinities, basins.sizes.size)
        assert_equal(found, plain_contacts(basins.labels, affinities, NEAREST), False)


def test_affinities_need_not_be_contiguous() -> None:
    rng = np.random.default_rng(1)
    labels, count = random_labels(rng, (5, 6, 7))
    affinities = rng.integers(0, 256, (7, 6, 5, 3), np.uint8).transpose(3, 2, 1, 0)
    assert_equal(region_graph(labels, affinities, count), plain_contacts(labels, affinities, NEAREST), False)


@pytest.mark.parametrize("offsets", [[(0, 0, -2)] * 2, [(0, 0, 1)], [(0, -1, 1)], [(0, 0, 0)]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[Vec]) -> None:
    with pytest.raises(ValueError, match="at most 0"):
        region_graph(np.ones((2, 2, 2), np.int32), np.ones((4, 2, 2, 2), np.uint8), 1, offsets)


@pytest.mark.parametrize("seed", range(40))
def test_ranks_equal_the_plain_ones(seed: int) -> None:
    block = random_block(seed, most=12)
    labels, _ = random_labels(np.random.default_rng(seed), block.shape)
    _, dense = np.unique(np.concatenate([[0], labels.ravel()]), return_inverse=True)
    labels = dense[1:].reshape(block.shape).astype(np.int32)
    assert ranks(labels, place_of(block), int(labels.max())).tolist() == plain_ranks(block, labels)


@pytest.mark.parametrize("seed", range(60))
def test_edges_equal_the_plain_ones(seed: int) -> None:
    """All of them, and those of a range of keys that begins and ends among edges of one affinity."""
    block = random_block(seed)
    labels, _ = random_labels(np.random.default_rng(seed), block.shape)
    links = sorted(plain_links(block, labels, 0), reverse=True)
    keys = [key for key, _, _ in links]
    assert edges_of(block, labels, WEAKEST, STRONGEST) == links
    if keys:
        least, most = keys[2 * len(keys) // 3], keys[len(keys) // 3]
        assert edges_of(block, labels, least, most) == [link for link in links if least <= link[0] <= most]


def edges_of(block: PlainBlock, labels: np.ndarray, least: int, most: int) -> list[tuple[int, int, int]]:
    """Keys and labels, sorted; `edges_by_affinity` sorts by affinity alone."""
    counts = edge_count(labels, block.affinities, place_of(block), least, most)
    edges = edges_by_affinity(labels, block.affinities, place_of(block), least, most, counts)
    voxels, found = list(block.voxels), []
    for upper, lower, code in zip(*(column.tolist() for column in edges), strict=True):
        found.append((block.key(voxels[code // 3], code % 3), upper, lower))
    strengths = [key >> 56 for key, _, _ in found]
    assert strengths == sorted(strengths, reverse=True)
    assert counts.tolist() == histogram(strengths)
    return sorted(found, reverse=True)


def test_a_block_whose_edges_cannot_be_numbered_is_refused() -> None:
    shape = (2048, 1024, 1024)
    labels = np.broadcast_to(np.int32(0), shape)
    place = Place(Box.of_shape(shape), Box.of_shape(shape), shape)
    with pytest.raises(ValueError, match="smaller"):
        edges_by_affinity(labels, np.empty((3, 0, 0, 0), np.uint8), place, WEAKEST, STRONGEST, np.zeros(256, np.int64))
