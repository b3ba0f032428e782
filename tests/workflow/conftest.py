"""A tiny network and small volumes: what a workflow needs, in moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from neuroshed.geometry import Box, Vec
from neuroshed.storage.volumes import create_volume


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network with patches of a few voxels."""
    from neuroshed.model.lattice import Lattice
    from neuroshed.model.targets import NEAREST
    from neuroshed.model.unet import Architecture, new_network
    from neuroshed.storage.models import ModelCard, save_model

    architecture = Architecture(features=(4, 8), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),), groups=4)
    card = ModelCard(
        architecture=architecture,
        offsets=NEAREST,
        lattice=Lattice((12, 12, 12), (2, 2, 2)),
        normalisation=(0.0, 255.0),
        voxel_size=(10.0, 10.0, 10.0),
    )
    weights = new_network(architecture, 5).state_dict()
    # Affinities over the whole range, mostly weak, so that noise falls into many pieces.
    weights["head.weight"] *= 4
    weights["head.bias"] -= 4
    return save_model(tmp_path_factory.mktemp("model") / "tiny", card, weights)


@pytest.fixture
def write_image(tmp_path: Path) -> Callable[..., Path]:
    """Writes an array `(z, y, x)` as a volume of the given name."""

    def write(name: str, data: npt.NDArray[np.generic], shard_shape: Vec | None = None) -> Path:
        shape = data.shape[-3:]
        volume = create_volume(
            tmp_path / name,
            shape=shape,
            dtype=data.dtype,
            shard_shape=shard_shape or shape,
            voxel_size=(10, 10, 10),
            voxel_offsets=[(-1, 0, 0), (0, -1, 0), (0, 0, -1)][: len(data)] if data.ndim == 4 else None,
        )
        volume.write(Box.of_shape(shape), data)
        return tmp_path / name

    return write


@pytest.fixture
def image(write_image: Callable[..., Path]) -> Path:
    """Noise, uint8, 24 x 30 x 20."""
    return write_image("image.zarr", np.random.default_rng(3).integers(0, 256, (24, 30, 20), np.uint8))
