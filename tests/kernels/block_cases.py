"""Random blocks for the tests of their kernels."""

from __future__ import annotations

import numpy as np

from neuroshed.geometry import Box
from neuroshed.kernels.watershed import Place
from tests.kernels.plain_blocks import PlainBlock, Voxel


def place_of(block: PlainBlock) -> Place:
    return Place(Box(block.start, block.stop), Box(*block.region), block.volume)


def random_affinities(rng: np.random.Generator, shape: Voxel) -> np.ndarray:
    """Noise, few values, one value, or strong regions between weak planes, uint8 `(3, z, y, x)`."""
    kind = rng.integers(5)
    if kind == 0:
        found = rng.integers(0, 256, (3, *shape))
    elif kind == 1:
        found = rng.choice(rng.integers(0, 256, rng.integers(2, 5)), (3, *shape))
    elif kind == 2:
        found = np.full((3, *shape), rng.choice([0, 1, 100, 254, 255]))
    elif kind == 3:
        found = np.where(rng.random((3, *shape)) < 0.3, rng.integers(0, 200, (3, *shape)), 255)
    else:
        weak = [np.flatnonzero(rng.random(side) < 0.3) for side in shape]
        found = rng.integers(180, 256, (3, *shape))
        for axis, planes in enumerate(weak):
            found.swapaxes(1, axis + 1)[:, planes] = rng.integers(0, 100)
    return found.astype(np.uint8)


def random_block(seed: int, most: int = 7) -> PlainBlock:
    """A block anywhere in a region anywhere in a volume; sides may be 1, and faces may be those of the region."""
    rng = np.random.default_rng(seed)
    volume, first, last, start, stop = [], [], [], [], []
    for side in rng.integers(1, most, 3).tolist():
        margins = rng.integers(0, 3, 4) * (rng.random(4) < 0.6)
        ends = np.cumsum([0, margins[0], margins[1], side, margins[2], margins[3]]).tolist()
        for column, end in zip((first, start, stop, last, volume), ends[1:], strict=True):
            column.append(end)
    shape = tuple(b - a + (b < c) for a, b, c in zip(start, stop, last, strict=True))
    affinities = random_affinities(rng, shape)
    return PlainBlock(affinities, tuple(start), tuple(stop), (tuple(first), tuple(last)), tuple(volume))


def random_limits(seed: int) -> tuple[int, int]:
    """`low` and `high`: all edges, none, and some."""
    rng = np.random.default_rng(seed)
    low = int(rng.choice([0, 1, 30, 100, 255]))
    return low, max(low, int(rng.choice([0, 1, 200, 250, 255, 256])))
