"""Inputs of benchmarks: neuron-like labels, seeded or from a data folder, and noisy affinities made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

PINKY = "pinky40_labels_8nm_512x1024x1024.h5"


def labels(shape: tuple[int, int, int], data: Path | None, seed: int = 0) -> tuple[np.ndarray, str]:
    """Dense labels, uint32 `(z, y, x)`, and what they are: real neuron shapes from `data`, else synthetic ones."""
    if data is not None and (data / PINKY).exists():
        import h5py

        with h5py.File(data / PINKY) as file:
            dataset = next(file[name] for name in file if file[name].ndim == 3)
            return dataset[tuple(slice(0, n) for n in shape)].astype(np.uint32), PINKY
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


def affinities(truth: np.ndarray, seed: int = 0) -> np.ndarray:
    """Saturated, noisy affinities of a truth, uint8 `(3, z, y, x)`, channel c at voxel p joining p and p - e_c."""
    rng = np.random.default_rng(seed)
    differs = np.zeros((3, *truth.shape), bool)
    for axis in range(3):
        differs[axis].swapaxes(0, axis)[1:] = np.diff(truth.astype(np.int64).swapaxes(0, axis), axis=0) != 0
    membrane = ndimage.gaussian_filter(differs.any(0).astype(np.float32), 0.8)
    out = np.zeros((3, *truth.shape), np.uint8)
    for axis in range(3):
        noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape).astype(np.float32), 1.0)
        out[axis] = np.clip(255 * (1.3 - 1.6 * membrane - 0.5 * differs[axis]) + 120 * noise, 0, 255)
    return out
