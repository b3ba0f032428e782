"""The net in the form in which it predicts says what the plain net says, for any shape of net, patch and kept part."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroshed.geometry import Box, Vec
from neuroshed.model.fused import Fused
from neuroshed.model.unet import Architecture, Residual, UNet, new_network

WEIGHTS = Architecture(
    features=(4, 6, 8), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 5)), pools=((1, 2, 2), (2, 2, 2)), norm="weights"
)


def learnt(architecture: Architecture) -> UNet:
    """A net whose gains and biases are not those of a new one."""
    net = new_network(architecture, 3)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.endswith(("gain", "bias")):
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


@st.composite
def parts(draw: st.DrawFn, window: Vec) -> Box:
    start = tuple(draw(st.integers(0, side - 1)) for side in window)
    stop = tuple(draw(st.integers(a + 1, side)) for a, side in zip(start, window, strict=True))
    return Box(start, stop)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([(4, 24, 16), (12, 32, 28)]))
def test_it_says_what_the_plain_net_says(data: st.DataObject, window: Vec) -> None:
    net, kept = learnt(WEIGHTS), data.draw(parts(window))
    image = torch.rand((2, 1, *window), generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.inference_mode():
        expected = net(image)[:, :3, *kept.slices()]
        got = Fused(net)(image, kept)
    assert got.shape == (2, 3, *kept.shape)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_the_net_is_not_changed() -> None:
    net = learnt(WEIGHTS)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.inference_mode():
        Fused(net)(torch.zeros(1, 1, 4, 24, 16), Box((1, 4, 4), (3, 20, 12)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("norm", ["weights", "group"])
def test_a_residual_module_begins_near_its_input(norm: str) -> None:
    module = Residual(8, (3, 3, 3), norm, 4)
    x = torch.randn(1, 8, 4, 4, 4)
    if norm == "weights":
        assert torch.equal(module(x), x)
    else:
        assert module.gain is None


def test_without_activation_norms_far_voxels_do_not_matter() -> None:
    net = learnt(WEIGHTS)
    image = torch.rand(1, 1, 4, 128, 128)
    changed = image.clone()
    changed[..., 120:] = 0
    with torch.inference_mode():
        assert torch.equal(net(image)[..., :40], net(changed)[..., :40])
        assert not torch.equal(net(image)[..., 100:110], net(changed)[..., 100:110])
