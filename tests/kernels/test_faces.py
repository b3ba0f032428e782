from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from neuroshed.kernels.faces import Plane, crossings
from tests.kernels.block_cases import place_of, random_affinities, random_block
from tests.kernels.plain_blocks import edge_hash, histogram


@pytest.mark.parametrize("seed", range(90))
@pytest.mark.parametrize("histograms", [False, True])
def test_crossings_equal_the_plain_ones(seed: int, histograms: bool) -> None:
    rng = np.random.default_rng(seed)
    block, axis = random_block(seed, most=12), seed % 3
    low, high = int(rng.choice([0, 30, 255])), int(rng.choice([200, 255, 256]))
    sides = [1 if a == axis else side for a, side in enumerate(block.shape)]
    planes = [Plane(rng.integers(0, 4, np.prod(sides)), rng.random(np.prod(sides)) < 0.3) for _ in range(2)]
    affinities = random_affinities(rng, block.shape)[axis].take(0, axis).ravel()

    rows: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
    for position, voxel in enumerate(product(*map(range, sides))):
        pair = int(planes[0].labels[position]), int(planes[1].labels[position])
        affinity = int(affinities[position])
        key = affinity << 56 | edge_hash(3 * block.index(voxel) + axis)
        joined = affinity >= high or any(plane.picked[position] for plane in planes)
        if all(pair):
            rows.setdefault(pair, []).append((affinity, key if affinity >= low else 0, joined))
    plain = sorted(rows.items())

    found = crossings(*planes, affinities, place_of(block), axis, low, high, histograms)
    assert list(zip(found.upper.tolist(), found.lower.tolist(), strict=True)) == [pair for pair, _ in plain]
    values = [[affinity for affinity, _, _ in edges] for _, edges in plain]
    assert found.sums.tolist() == list(map(sum, values))
    assert found.counts.tolist() == list(map(len, values))
    assert found.lowest.tolist() == list(map(min, values))
    assert found.highest.tolist() == list(map(max, values))
    assert found.keys.tolist() == [max(key for _, key, _ in edges) for _, edges in plain]
    assert found.joined.tolist() == [any(joined for _, _, joined in edges) for _, edges in plain]
    assert found.histograms.tolist() == (list(map(histogram, values)) if histograms else [])
    assert found.histograms.shape == (len(plain) if histograms else 0, 256)


def test_nothing_crosses_background() -> None:
    block = random_block(0)
    nothing = Plane(np.zeros(4, np.int64), np.zeros(4, np.bool_))
    found = crossings(nothing, nothing, np.zeros(4, np.uint8), place_of(block), 0, 0, 256, histograms=True)
    assert [len(column) for column in found] == [0] * len(found)
    assert found.histograms.shape == (0, 256)
