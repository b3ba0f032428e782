"""A volume of cells with dark walls, and a training small enough for a test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from neuroshed.storage.volumes import create_volume
from neuroshed.training.config import TrainingConfig, parse_config

SHAPE = (24, 32, 32)


def cells(shape: tuple[int, int, int], seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Image and labels of the cells nearest to random points."""
    rng = np.random.default_rng(seed)
    points = np.zeros(shape, np.uint32)
    places = tuple(rng.integers(0, side, 12) for side in shape)
    points[places] = np.arange(1, 13)
    nearest = ndimage.distance_transform_edt(points == 0, return_distances=False, return_indices=True)
    labels = points[tuple(nearest)]
    walls = sum(np.abs(np.diff(labels.astype(int), axis=axis, append=0)) > 0 for axis in range(3)) > 0
    image = np.where(walls, 60, 190) + rng.normal(0, 10, shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


@pytest.fixture
def write_volume(tmp_path: Path) -> Callable[[str, npt.NDArray[Any]], Path]:
    """Writes an array as a volume of 40 x 4 x 4 nm voxels under a name."""

    def write(name: str, array: npt.NDArray[Any]) -> Path:
        z, y, x = array.shape
        volume = create_volume(
            tmp_path / name, shape=(z, y, x), dtype=array.dtype, shard_shape=(16, 16, 16), voxel_size=(40, 4, 4)
        )
        volume.write(volume.box, array)
        return volume.path

    return write


@pytest.fixture
def volumes(write_volume: Callable[[str, npt.NDArray[Any]], Path]) -> tuple[Path, Path]:
    """Image and labels of cells."""
    image, labels = cells(SHAPE, 0)
    return write_volume("image.zarr", image), write_volume("labels.zarr", labels)


@pytest.fixture
def make_config(tmp_path: Path, volumes: tuple[Path, Path]) -> Callable[..., TrainingConfig]:
    """Configurations of a tiny training, with changes."""

    def make(**changes: Any) -> TrainingConfig:
        source = {"image": str(volumes[0]), "labels": str(volumes[1])}
        values = {
            "output": str(tmp_path / "out"),
            "samples": [source | {"box": [[0, 0, 0], [24, 32, 22]]}],
            "validation": [source | {"box": [[0, 0, 22], [24, 32, 32]]}],
            "network": {"features": [8, 16], "kernels": [[3, 3, 3]] * 2, "pools": [[2, 2, 2]], "out_channels": 3},
            "lattice": {"patch": [16, 16, 16], "context": [4, 4, 4]},
            "patch_shape": [8, 12, 12],
            "steps": 12,
            "warmup_steps": 2,
            "decay_steps": 4,
            "log_every": 1,
            "validate_every": 6,
            "checkpoint_every": 4,
        }
        return parse_config(values | changes)

    return make
