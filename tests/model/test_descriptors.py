"""Local shape descriptors equal their formula written voxel by voxel."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neuroshed.model.descriptors import COUNT, REACH, local_shape_descriptors
from neuroshed.model.losses import descriptor_loss

SIGMA = (1.0, 1.5, 2.0)


def plain(labels: npt.NDArray[np.int64], voxel: tuple[int, int, int]) -> list[float]:
    """Descriptors of one voxel, by sums over the whole array."""
    kernels = []
    for place, side, sigma in zip(voxel, labels.shape, SIGMA, strict=True):
        radius = int(REACH * sigma + 0.5)
        window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        window /= window.sum()
        far = np.arange(side) - place
        inside = np.abs(far) <= radius
        kernels.append(np.where(inside, window[np.clip(far + radius, 0, 2 * radius)], 0))
    weights = np.einsum("z,y,x->zyx", *kernels) * (labels == labels[voxel])
    share = weights.sum()
    far = [(index - place) / sigma for index, place, sigma in zip(np.indices(labels.shape), voxel, SIGMA, strict=True)]
    means = [(weights * f).sum() / share for f in far]
    spread = {
        (a, b): (weights * far[a] * far[b]).sum() / share - means[a] * means[b]
        for a, b in itertools.product(range(3), repeat=2)
    }
    correlations = [
        spread[a, b] / np.sqrt(max(spread[a, a] * spread[b, b], 1e-3)) for a, b in itertools.combinations(range(3), 2)
    ]
    halved = [[value / 2 + 0.5 for value in values] for values in (means, correlations)]
    return [*halved[0], *(spread[axis, axis] for axis in range(3)), *halved[1], share]


def test_they_equal_the_formula() -> None:
    labels = np.zeros((6, 9, 9), np.int64)
    labels[:, :4, :] = 7
    labels[2:, 4:, 3:] = 9
    described = local_shape_descriptors(labels, SIGMA)
    assert described.shape == (COUNT, *labels.shape)
    assert np.isnan(described[:, labels == 0]).all()
    for voxel in [(0, 0, 0), (3, 3, 4), (2, 4, 3), (5, 8, 8), (4, 6, 5)]:
        np.testing.assert_allclose(described[:, *voxel], np.clip(plain(labels, voxel), 0, 1), atol=2e-4)


def test_the_mean_points_into_the_neuron() -> None:
    labels = np.zeros((5, 5, 9), np.int64)
    labels[..., :4] = 1
    described = local_shape_descriptors(labels, (2.0, 2.0, 2.0))
    z, y, x = described[:3, 2, 2, 3]
    assert (z, y) == pytest.approx((0.5, 0.5), abs=1e-3)
    assert x < 0.4


def test_the_loss_sees_only_labelled_voxels() -> None:
    targets = torch.full((1, COUNT, 1, 1, 2), 0.5)
    targets[..., 1] = torch.nan
    logits = torch.zeros(1, COUNT, 1, 1, 2)
    assert float(descriptor_loss(logits, targets)) == 0
    logits[..., 1] = 9
    assert float(descriptor_loss(logits, targets)) == 0
    logits[..., 0] = 50
    assert float(descriptor_loss(logits, targets)) == pytest.approx(0.25)
    assert float(descriptor_loss(logits, torch.full_like(targets, torch.nan))) == 0
