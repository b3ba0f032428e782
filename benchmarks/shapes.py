"""Inputs of benchmarks: neuron-like labels, seeded or from a data folder, and noisy affinities made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

PINKY = "pinky40_labels_8nm_512x1024x1024.h5"

# Tuned so that the histogram and the number of basins are like those of a trained network: with low 0.1 and high 0.98
# our watershed finds about 20,000 basins a megavoxel on real neuron shapes; on predictions of networks we counted
# 23,000 to 60,000. Affinities are in 0..1 before they are cut off to that range.
BASE = 1.0
"""Inside of neurons: at the upper limit, so that half of the noise is saturated."""
NOISE = 0.08
"""Standard deviation of the fast noise, which each channel has of its own."""
FAST_SIGMA = 1.0
"""Voxels over which the fast noise is correlated."""
BLUR = 1.2
"""Voxels by which membranes are blurred."""
DEPTH = 2.5
"""How far a blurred membrane pulls down: a voxel amid membranes goes to 0."""
WOBBLE = 0.35
"""Standard deviation of the slow noise that makes membranes fainter here and stronger there."""
SLOW_SIGMA = 4.0
"""Voxels over which the slow noise is correlated."""
STEP = 0.35
"""How much lower the edge is that crosses a border itself."""

TRUNCATE = 4.0
"""Standard deviations at which filters end."""
SLAB = 64
"""Planes that are made at once."""


def labels(shape: tuple[int, int, int], data: Path | None, seed: int = 0) -> tuple[np.ndarray, str]:
    """Dense labels, uint32 `(z, y, x)`, and what they are: real neuron shapes from `data`, else synthetic ones.

    Real ones are the middle of the volume, since its corner is almost all one cell body.
    """
    if data is not None and (data / PINKY).exists():
        import h5py

        with h5py.File(data / PINKY) as file:
            dataset = next(file[name] for name in file if file[name].ndim == 3)
            starts = [(have - want) // 2 for have, want in zip(dataset.shape, shape, strict=True)]
            if min(starts) < 0:
                raise SystemExit(f"shape {shape} is larger than the {dataset.shape} of {PINKY}; choose a smaller one")
            box = tuple(slice(start, start + n) for start, n in zip(starts, shape, strict=True))
            return dataset[box].astype(np.uint32, copy=False), PINKY
    rng = np.random.default_rng(seed)
    count = max(int(np.prod(shape) / 40**3), 8)
    seeds = np.zeros(shape, np.uint32)
    seeds[tuple(rng.integers(0, n, count) for n in shape)] = np.arange(1, count + 1)
    # Stretched along z and bent, so that bodies are long and touch many others, as neurites do.
    nearest = ndimage.distance_transform_edt(
        seeds == 0, sampling=(0.4, 1, 1), return_distances=False, return_indices=True
    )
    bend = [ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 12) for _ in range(3)]
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    places = [
        np.clip(g + 10 * b / (b.std() + 1e-9), 0, n - 1).astype(int) for g, b, n in zip(grid, bend, shape, strict=True)
    ]
    return seeds[tuple(nearest)][tuple(places)], "synthetic"


def affinities(truth: np.ndarray, seed: int = 0, out: np.ndarray | None = None, slab: int = SLAB) -> np.ndarray:
    """Noisy affinities of a truth, uint8 `(3, z, y, x)`, channel c at voxel p joining p and p - e_c.

    Written slab by slab into `out` (anything that takes slices, such as a memory map) if that is given, so that memory
    is that of `slab` planes. The result depends on `truth` and `seed` alone: each plane of noise has a generator of its
    own, and filters see as many planes beyond a slab as they reach.
    """
    if out is None:
        out = np.empty((3, *truth.shape), np.uint8)
    for start in range(0, len(truth), slab):
        stop = min(start + slab, len(truth))
        out[:, start:stop] = _slab_affinities(truth, seed, start, stop)
    return out


def _slab_affinities(truth: np.ndarray, seed: int, start: int, stop: int) -> np.ndarray:
    membrane, differs = _membrane(truth, start, stop)
    wobble = _noise(truth.shape[1:], (seed, 3), start, stop, SLOW_SIGMA)
    # In place: these are the largest arrays there are.
    wobble *= WOBBLE
    wobble += 1
    membrane *= wobble
    membrane *= -DEPTH
    membrane += BASE
    slab = np.empty((3, *membrane.shape), np.uint8)
    for axis in range(3):
        value = _noise(truth.shape[1:], (seed, axis), start, stop, FAST_SIGMA)
        value *= NOISE
        value += membrane
        value[differs[axis]] -= STEP
        value *= 255
        slab[axis] = np.clip(value, 0, 255, out=value)
    return slab


def _membrane(truth: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Blurred membrane, 1 deep inside, and which nearest neighbours (z, y, x) differ, of planes `start:stop`."""
    reach = _reach(BLUR)
    # One more plane below, to compare with; beyond the ends the last plane goes on.
    planes = truth[np.clip(np.arange(start - reach - 1, stop + reach), 0, len(truth) - 1)]
    differs = np.zeros((3, len(planes) - 1, *truth.shape[1:]), bool)
    differs[0] = planes[1:] != planes[:-1]
    differs[1, :, 1:] = planes[1:, 1:] != planes[1:, :-1]
    differs[2, :, :, 1:] = planes[1:, :, 1:] != planes[1:, :, :-1]
    inner = slice(reach, reach + stop - start)
    return _blurred(differs.any(0).astype(np.float32), BLUR, inner), differs[:, inner]


def _noise(plane: tuple[int, int], key: tuple[int, int], start: int, stop: int, sigma: float) -> np.ndarray:
    """Gaussian noise of unit variance, correlated over `sigma` voxels, of planes `start:stop` of an endless volume."""
    reach = _reach(sigma)
    white = np.empty((stop - start + 2 * reach, *plane), np.float32)
    for row, z in enumerate(range(start - reach, stop + reach)):
        # Planes below the volume count from 2**32 downwards, since seeds are not negative.
        rng = np.random.default_rng((*key, z % 2**32))
        rng.standard_normal(out=white[row], dtype=np.float32)
    smooth = _blurred(white, sigma, slice(reach, reach + stop - start))
    impulse = np.zeros(2 * reach + 1)
    impulse[reach] = 1
    smooth /= np.float32((ndimage.gaussian_filter1d(impulse, sigma) ** 2).sum() ** 1.5)
    return smooth


def _blurred(values: np.ndarray, sigma: float, inner: slice) -> np.ndarray:
    """Planes `inner` of Gaussian-filtered planes; z first, so that the other axes are filtered only there."""
    values = ndimage.gaussian_filter1d(values, sigma, axis=0, truncate=TRUNCATE)[inner]
    for axis in (1, 2):
        values = ndimage.gaussian_filter1d(values, sigma, axis=axis, truncate=TRUNCATE)
    return values


def _reach(sigma: float) -> int:
    """Voxels that a filter sees to each side."""
    return int(TRUNCATE * sigma + 0.5)
