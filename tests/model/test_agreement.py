"""Lags of affinities against an image tell the neighbour, the axis, shifts and inversion."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from neuroshed.model.agreement import agreements
from neuroshed.model.targets import NEAREST, affinity_targets

SHAPE = (48, 48, 48)


def tissue(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Affinities and image of cells with dark membranes, both with noise."""
    rng = np.random.default_rng(seed)
    points = np.zeros(SHAPE, np.uint32)
    points[tuple(rng.integers(0, side, 60) for side in SHAPE)] = np.arange(1, 61)
    nearest = ndimage.distance_transform_edt(points == 0, return_distances=False, return_indices=True)
    labels = points[tuple(nearest)]
    walls = np.zeros(SHAPE, bool)
    for axis in range(3):
        a, b = np.moveaxis(labels, axis, 0), np.moveaxis(walls, axis, 0)
        differs = a[1:] != a[:-1]
        b[1:] |= differs
        b[:-1] |= differs
    image = ndimage.gaussian_filter(np.where(walls, 60.0, 180.0), 0.7) + rng.normal(0, 15, SHAPE)
    targets, _ = affinity_targets(labels, NEAREST)
    affinities = [ndimage.gaussian_filter(target * 255.0, 0.8) + rng.normal(0, 8, SHAPE) for target in targets]
    return np.clip(affinities, 0, 255).astype(np.uint8), np.clip(image, 0, 255).astype(np.uint8)


def neighbours(affinities: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8]) -> list[str]:
    return [channel.found for channel in agreements(affinities, image).channels]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_right_is_found_right(seed: int) -> None:
    affinities, image = tissue(seed)
    found = agreements(affinities, image)
    assert [channel.found for channel in found.channels] == ["-z", "-y", "-x"]
    assert all(channel.right for channel in found.channels)
    assert found.shift == (0, 0, 0)
    assert not found.bright
    for axis, channel in enumerate(found.channels):
        assert channel.lag[axis] == pytest.approx(0.5, abs=0.3)


def test_swapped_channels_and_opposite_neighbours() -> None:
    affinities, image = tissue(1)
    assert neighbours(affinities[[2, 1, 0]], image) == ["-x", "-y", "-z"]
    opposite = np.stack([np.roll(channel, -1, axis) for axis, channel in enumerate(affinities)])
    assert neighbours(opposite, image) == ["+z", "+y", "+x"]
    affinities[1] = opposite[1]
    assert neighbours(affinities, image) == ["-z", "+y", "-x"]


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("step", [-1, 1])
def test_a_shift_by_one_voxel(axis: int, step: int) -> None:
    affinities, image = tissue(2)
    found = agreements(np.roll(affinities, step, axis + 1), image)
    assert found.shift == tuple(step if own == axis else 0 for own in range(3))
    assert [channel.found for channel in found.channels] == ["-z", "-y", "-x"]


def test_inverted_affinities_and_images() -> None:
    affinities, image = tissue(0)
    assert agreements(255 - affinities, image).bright
    assert agreements(affinities, 255 - image).bright
    assert not agreements(affinities, 255 - image, membranes_dark=False).bright


def test_noise_is_told_as_such() -> None:
    _, image = tissue(0)
    noise = np.random.default_rng(5).integers(0, 256, (3, *SHAPE), np.uint8)
    assert neighbours(noise, image) == ["", "", ""]


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 voxels"):
        agreements(np.zeros((3, 15, 20, 20), np.uint8), np.zeros((15, 20, 20), np.uint8))
