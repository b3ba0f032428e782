"""What only a GPU can show: the same uint8 whatever the blocks, close to the CPU, batches queued, memory bounded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid
from neuroshed.model.inference import Predictor
from neuroshed.model.lattice import Lattice, read_box
from neuroshed.model.networks import Flipped, UNetNetwork
from neuroshed.model.words import Precision
from neuroshed.storage.models import load_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; this machine has none")

LATTICE = Lattice((64, 64, 64), (16, 16, 16))
SHAPE = (70, 90, 80)
IMAGE = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
WHOLE = Box.of_shape(SHAPE)


def predictor(device: str = "cuda", precision: Precision = "bfloat16", batch_size: int = 4) -> Predictor:
    return Predictor(UNetNetwork(load_model("fibsem").net, (0.0, 255.0), device, precision), LATTICE, batch_size)


def test_it_is_close_to_the_cpu() -> None:
    expected = predictor("cpu", "float32", 1).predict(IMAGE, WHOLE, WHOLE, SHAPE).astype(int)
    for precision, mean in (("float32", 0.5), ("bfloat16", 2.0)):
        got = predictor(precision=precision).predict(IMAGE, WHOLE, WHOLE, SHAPE)
        assert np.abs(got - expected).mean() < mean


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_blocks_order_and_threads_do_not_matter(flips: tuple[int, ...]) -> None:
    used = predictor()
    if flips:
        used = Predictor(Flipped(used.network, flips), LATTICE, 4)
    whole = used.predict(IMAGE, WHOLE, WHOLE, SHAPE)
    grid = Grid(WHOLE, (32, 50, 27))

    def block(index: tuple[int, int, int]) -> tuple[Box, np.ndarray]:
        box = grid.block_box(index)
        seen = read_box(box, SHAPE, LATTICE)
        return box, used.predict(IMAGE[seen.slices()], seen, box, SHAPE)

    with ThreadPoolExecutor(4) as pool:
        for box, got in pool.map(block, reversed(list(grid))):
            np.testing.assert_array_equal(got, whole[:, *box.slices()])


def test_tasks_that_share_it_have_one_batch_of_activations() -> None:
    used = predictor()
    used.predict(IMAGE, WHOLE, WHOLE, SHAPE)
    torch.cuda.reset_peak_memory_stats()
    used.predict(IMAGE, WHOLE, WHOLE, SHAPE)
    alone = torch.cuda.max_memory_allocated()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: used.predict(IMAGE, WHOLE, WHOLE, SHAPE), range(8)))
    assert torch.cuda.max_memory_allocated() < 1.5 * alone


def test_out_of_memory_names_the_batch_size() -> None:
    large = Predictor(predictor().network, LATTICE, 20_000)
    with pytest.raises(BlockError, match="set batch_size to 10000"):
        large.predict(IMAGE, WHOLE, WHOLE, SHAPE)
