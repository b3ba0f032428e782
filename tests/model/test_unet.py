"""The network's shapes, its description, and that what is in a batch does not matter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from neuroshed.model.unet import Architecture, new_network, parameter_count

SIDE = st.integers(1, 3)
POOL = st.tuples(SIDE, SIDE, SIDE)
KERNEL = st.tuples(*[st.sampled_from((1, 3))] * 3)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    levels = draw(st.integers(1, 3))
    return Architecture(
        features=tuple(2 * draw(st.integers(1, 3)) for _ in range(levels)),
        kernels=tuple(draw(KERNEL) for _ in range(levels)),
        pools=tuple(draw(POOL) for _ in range(levels - 1)),
        out_channels=draw(st.integers(1, 4)),
        groups=2,
    )


@given(architectures())
def test_any_architecture_round_trips_and_keeps_the_size_of_its_input(architecture: Architecture) -> None:
    again = Architecture.model_validate_json(architecture.model_dump_json())
    assert again == architecture
    shape = tuple(2 * m for m in architecture.multiple)
    with torch.inference_mode():
        logits = new_network(again, 0)(torch.zeros(2, 1, *shape))
    assert logits.shape == (2, architecture.out_channels, *shape)


def test_a_kernel_of_one_section_keeps_sections_apart() -> None:
    architecture = Architecture(features=(4, 4), kernels=((1, 3, 3), (1, 3, 3)), pools=((1, 2, 2),), groups=4)
    net = new_network(architecture, 0)
    for module in net.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # the one thing that sees the whole patch
    image = torch.randn(1, 1, 3, 8, 8)
    changed = image.clone()
    changed[:, :, 1] += 1
    with torch.inference_mode():
        difference = (net(image) - net(changed)).abs().amax((0, 1, 3, 4))
    assert difference[0] == difference[2] == 0
    assert difference[1] > 0


def test_a_patch_does_not_notice_its_neighbours_in_the_batch() -> None:
    net = new_network(Architecture(features=(8, 16), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),)), 0)
    patch, one, other = torch.randn(3, 1, 1, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(net(torch.cat([patch, one]))[0], net(torch.cat([patch, other]))[0])


def test_weights_depend_on_the_seed_alone_and_leave_torch_as_it_was() -> None:
    architecture = Architecture(features=(8,), kernels=((3, 3, 3),), pools=())
    before = torch.get_rng_state()
    one, same, other = (new_network(architecture, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_parameters_are_counted() -> None:
    net = new_network(Architecture(features=(8,), kernels=((3, 3, 3),), pools=()), 0)
    stem, residual, norm, head = 27 * 8, 2 * (27 * 8 * 8 + 16), 16, 8 * 3 + 3
    assert parameter_count(net) == stem + residual + norm + head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": ((3, 3, 3),)}, "as many kernels"),
        ({"kernels": ((2, 3, 3), (3, 3, 3))}, "odd"),
        ({"pools": ((0, 2, 2),)}, "at least 1"),
        ({"features": (8, 12)}, "multiples of groups"),
        ({"widths": (8, 16)}, "Extra inputs"),
    ],
)
def test_descriptions_that_make_no_network_are_refused(change: dict[str, object], message: str) -> None:
    good = {"features": (8, 16), "kernels": ((3, 3, 3), (3, 3, 3)), "pools": ((2, 2, 2),)}
    with pytest.raises(ValidationError, match=message):
        Architecture.model_validate(good | change)
