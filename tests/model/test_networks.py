"""Flips: a network that knows the truth says the same of every flip, voxel for voxel, and others are averaged."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from neuroshed.geometry import Box
from neuroshed.model.fused import CHANNELS_LAST
from neuroshed.model.networks import Flipped, UNetNetwork
from neuroshed.model.targets import NEAREST, affinity_targets
from neuroshed.model.unet import Architecture, new_network

WINDOW, KEPT = (6, 8, 10), Box((1, 2, 3), (5, 6, 8))
ALL_AXES = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]


class Oracle:
    """Takes the image for labels and gives their true affinities, in patches that it lists."""

    device = "cpu"

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def affinities(self, batch: Tensor, kept: Box) -> Tensor:
        self.asked.append(batch)
        made = [affinity_targets(patch[0].numpy(), NEAREST)[0][:, *kept.slices()] for patch in batch]
        return torch.from_numpy(np.stack(made)).float()


@pytest.mark.parametrize("axes", ALL_AXES)
def test_the_truth_is_the_same_from_all_sides(axes: tuple[int, ...]) -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(1, 3, (2, 1, *WINDOW)))
    oracle = Oracle()
    got = Flipped(oracle, axes).affinities(labels, KEPT)
    assert torch.equal(got, Oracle().affinities(labels, KEPT))
    assert len({patch.numpy().tobytes() for patch in oracle.asked}) == len(oracle.asked) == 2 ** len(axes)


@pytest.mark.parametrize("norm", ["group", "weights"])
def test_flips_of_a_net_are_the_mean_over_flipped_images(norm: str) -> None:
    architecture = Architecture(features=(4, 8), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),), groups=4, norm=norm)
    network = UNetNetwork(new_network(architecture, 0), (0.0, 255.0))
    image = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (1, 1, *WINDOW), np.uint8))
    plain = network.affinities(image, Box((0, 0, 0), WINDOW))
    # Along z: what the net says of the flipped image, turned back, is the edge to the voxel above.
    turned = network.affinities(image.flip(2), Box((0, 0, 0), WINDOW)).flip(2)
    turned[:, 0] = torch.roll(turned[:, 0], 1, 1)
    expected = ((plain + turned) / 2)[:, :, *KEPT.slices()]
    torch.testing.assert_close(Flipped(network, (0,)).affinities(image, KEPT), expected)


def test_memory_format_of_a_batch_does_not_matter() -> None:
    architecture = Architecture(features=(8,), kernels=((3, 3, 3),), pools=(), norm="weights")
    network = UNetNetwork(new_network(architecture, 0), (0.0, 255.0))
    image = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 1, *WINDOW), np.uint8))
    plain = network.affinities(image, KEPT)
    assert torch.equal(network.affinities(image.to(memory_format=CHANNELS_LAST), KEPT), plain)
