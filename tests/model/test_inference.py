"""Any box equals the crop of the whole volume's prediction, whatever the blocks, shapes and thin edges."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.model.inference import Predictor, patch_bytes, predicted_bytes
from neuroshed.model.lattice import Lattice, read_box, redundancy
from neuroshed.model.networks import UNetNetwork, normalise
from neuroshed.model.unet import Architecture, new_network

NET = new_network(
    Architecture(features=(4, 8), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),), out_channels=5, groups=4), 0
)
LATTICE = Lattice(patch=(8, 12, 8), context=(2, 3, 1))


def predict(image: npt.NDArray[np.uint8], box: Box, net: nn.Module = NET, batch_size: int = 3) -> npt.NDArray[np.uint8]:
    shape = image.shape
    seen = read_box(box, shape, LATTICE)
    network = UNetNetwork(net, (0.0, 255.0))
    return Predictor(network, LATTICE, batch_size).predict(image[seen.slices()], seen, box, shape)


def random_image(seed: int, shape: Vec) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@st.composite
def volumes_and_boxes(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint8], Box]:
    shape = draw(st.tuples(*[st.integers(1, 15)] * 3))
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return random_image(draw(st.integers(0, 99)), shape), Box(start, stop)


@settings(max_examples=40, deadline=None)
@given(volumes_and_boxes())
def test_any_box_equals_the_crop_of_the_whole(case: tuple[npt.NDArray[np.uint8], Box]) -> None:
    image, box = case
    whole = predict(image, Box.of_shape(image.shape))
    assert whole.shape == (3, *image.shape)
    np.testing.assert_array_equal(predict(image, box), whole[:, *box.slices()])


@pytest.mark.parametrize("block_shape", [(4, 6, 6), (8, 12, 12), (5, 7, 9), (3, 20, 2)])
def test_any_blocks_give_the_whole(block_shape: Vec) -> None:
    image = random_image(1, (13, 17, 19))
    whole = predict(image, Box.of_shape(image.shape))
    blocks = np.zeros_like(whole)
    grid = Grid(Box.of_shape(image.shape), block_shape)
    for index in grid:
        box = grid.block_box(index)
        blocks[:, *box.slices()] = predict(image, box)
    np.testing.assert_array_equal(blocks, whole)


def test_one_patch_inside_the_volume_is_what_the_net_says() -> None:
    image = random_image(2, (16, 24, 24))
    box = Box((4, 6, 6), (8, 12, 12))
    patch = torch.from_numpy(image[box.grow((2, 3, 1)).slices()])
    batch = torch.zeros(3, 1, 8, 12, 8)
    batch[0] = normalise(patch, 0, 255)
    with torch.inference_mode():
        expected = (NET(batch)[0, :3, 2:6, 3:9, 1:7].sigmoid() * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(predict(image, box), expected)


class Echo(nn.Module):
    """Answers with the image itself, so that what a patch saw can be read off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-0.999, 0.999).mul(10).expand(-1, 3, -1, -1, -1)


def test_sixteen_bit_images_are_normalised_with_their_own_limits() -> None:
    image = np.array([900, 1000, 1500, 2000, 60000], np.uint16).reshape(1, 1, 5)
    box = Box.of_shape((1, 1, 5))
    got = Predictor(UNetNetwork(Echo(), (1000.0, 2000.0)), LATTICE).predict(image, box, box, (1, 1, 5))
    assert got[0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_an_image_box_that_is_too_small_is_refused() -> None:
    image = random_image(3, (16, 16, 16))
    box = Box((4, 4, 4), (8, 8, 8))
    with pytest.raises(ValueError, match="need the image in"):
        Predictor(UNetNetwork(NET, (0.0, 255.0)), LATTICE).predict(image[box.slices()], box, box, image.shape)


class Full(nn.Module):
    """Fails as torch does."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize(("batch_size", "advice"), [(8, "set batch_size to 4"), (1, "fewer tasks")])
def test_out_of_memory_names_the_batch_size_to_choose(error: Exception, batch_size: int, advice: str) -> None:
    with pytest.raises(BlockError, match=advice):
        predict(random_image(4, (4, 4, 4)), Box.of_shape((4, 4, 4)), Full(error), batch_size)


def test_other_errors_of_the_net_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="weight of size"):
        predict(random_image(4, (4, 4, 4)), Box.of_shape((4, 4, 4)), Full(RuntimeError("weight of size")))


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(0, 3)] * 3))
@settings(max_examples=30)
def test_redundancy_counts_what_blocks_of_a_long_volume_compute(block: Vec, stride: Vec, context: Vec) -> None:
    lattice = Lattice(tuple(s + 2 * c for s, c in zip(stride, context, strict=True)), context)
    ratio = 1.0
    for b, s, p in zip(block, stride, lattice.patch, strict=True):
        blocks = [range(i * b, (i + 1) * b) for i in range(s)]
        ratio *= sum(len({voxel // s for voxel in voxels}) for voxels in blocks) * p / (s * b)
    assert redundancy(lattice, block) == pytest.approx(ratio)


def test_a_lattice_keeps_something_of_each_patch() -> None:
    with pytest.raises(ValueError, match="larger than twice"):
        Lattice((32, 32, 32), (16, 0, 0))


def test_bfloat16_is_close_to_float32() -> None:
    image = random_image(5, (8, 12, 12))
    box = Box.of_shape(image.shape)
    network = UNetNetwork(NET, (0.0, 255.0), precision="bfloat16")
    low = Predictor(network, LATTICE).predict(image, box, box, image.shape)
    high = predict(image, box, batch_size=1)
    assert np.abs(low.astype(int) - high).max() <= 6


def test_predicted_memory_grows_with_batch_and_patch() -> None:
    architecture = NET.architecture
    sizes = [
        predicted_bytes(patch_bytes(architecture, lattice), lattice, (32, 32, 32), batch)
        for lattice, batch in itertools.product((Lattice((side,) * 3, (2, 2, 2)) for side in (16, 32)), (1, 2))
    ]
    assert sizes == sorted(sizes)
    assert sizes[1] - sizes[0] > math.prod((16, 16, 16)) * 4 * architecture.features[0]


class Constant(nn.Module):
    """Says the same of each patch: a number, but for one voxel where the image is darkest."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x == -1, self.value, 0.0).repeat(1, 5, 1, 1, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_no_number_is_refused_by_place(value: float, batch_size: int) -> None:
    image = np.full((13, 17, 19), 9, np.uint8)
    whole = Box.of_shape(image.shape)
    # The zeros of a batch's tail are no part of the image.
    assert (predict(image, whole, Constant(value), batch_size) == 128).all()
    image[5, 7, 7] = 0
    with pytest.raises(BlockError, match=r"gives NaN or infinity in .*; check the model's weights") as caught:
        predict(image, whole, Constant(value), batch_size)
    (cell,) = (cell for cell in LATTICE.cells(whole) if cell.contains(Box((5, 7, 7), (6, 8, 8))))
    assert f"in {cell.intersect(whole)};" in str(caught.value)
    apart = Box((8, 12, 12), (13, 17, 19))
    assert (predict(image, apart, Constant(value), batch_size) == 128).all()
