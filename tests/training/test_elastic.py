"""Bending: smooth, within its margin, the same for image and labels, and as frequent as asked."""

import numpy as np
import pytest

from neuroshed.training.config import Augment
from neuroshed.training.elastic import draw_elastic

SHAPE = (12, 20, 16)
ALWAYS = Augment(elastic=1.0, elastic_spacing=(6, 8, 5), elastic_shift=(2, 3, 0))


def test_without_it_nothing_changes() -> None:
    elastic = draw_elastic(np.random.default_rng(0), SHAPE, Augment())
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert elastic.read_shape == SHAPE
    assert elastic.apply(array) is array


def test_displacements_are_smooth_and_within_the_margin() -> None:
    for seed in range(20):
        elastic = draw_elastic(np.random.default_rng(seed), SHAPE, ALWAYS)
        assert elastic.read_shape == (16, 26, 16)
        assert elastic.field is not None
        largest = np.abs(elastic.field).max((1, 2, 3))
        assert (largest <= (2, 3, 0)).all()
        assert largest[0] > 0.1
        for axis, spacing in enumerate(ALWAYS.elastic_spacing):
            # A raised cosine between points that differ by at most twice the limit.
            steepest = np.pi / 2 * 2 * np.array([2, 3, 0]) / spacing
            assert (np.abs(np.diff(elastic.field, axis=axis + 1)).max((1, 2, 3)) <= steepest + 1e-5).all()


def test_image_and_labels_bend_alike() -> None:
    elastic = draw_elastic(np.random.default_rng(1), SHAPE, ALWAYS)
    ramp = np.indices(elastic.read_shape)
    for axis in range(3):
        exact = elastic.apply(ramp[axis].astype(np.float32))
        nearest = elastic.apply(ramp[axis])
        assert exact.shape == nearest.shape == SHAPE
        assert nearest.dtype == ramp.dtype
        np.testing.assert_array_less(np.abs(exact - nearest), 0.5 + 1e-4)
        assert np.abs(exact - np.indices(SHAPE)[axis] - elastic.margin[axis]).max() == pytest.approx(
            np.abs(elastic.field[axis]).max(), abs=1e-4
        )


def test_it_is_as_frequent_as_asked_and_the_generator_alone_decides() -> None:
    half = ALWAYS.model_copy(update={"elastic": 0.5})
    drawn = [draw_elastic(np.random.default_rng(seed), SHAPE, half).field is not None for seed in range(200)]
    assert 70 < sum(drawn) < 130
    one, other = (draw_elastic(np.random.default_rng(3), SHAPE, ALWAYS).field for _ in range(2))
    np.testing.assert_array_equal(one, other)
