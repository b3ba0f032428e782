"""Average precision equals its definition point by point; validation sees what a run would see."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.errors import InputError
from neuroshed.model.unet import new_network
from neuroshed.training.config import TrainingConfig
from neuroshed.training.samples import open_regions
from neuroshed.training.scores import average_precision, check_held_out, predict_region, validate

MakeConfig = Callable[..., TrainingConfig]
WriteVolume = Callable[[str, np.ndarray[Any, Any]], Path]


def plain_average_precision(scores: list[int], wanted: list[bool]) -> float:
    total, area, recall_before = sum(wanted), 0.0, 0.0
    for threshold in sorted(set(scores)):
        claimed = [w for s, w in zip(scores, wanted, strict=True) if s <= threshold]
        recall = sum(claimed) / total
        area += (recall - recall_before) * sum(claimed) / len(claimed)
        recall_before = recall
    return area


@given(st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1))
def test_average_precision_equals_its_definition(edges: list[tuple[int, bool]]) -> None:
    scores, wanted = (list(column) for column in zip(*edges, strict=True))
    by_score = [np.bincount([s for s, w in edges if w is kind], minlength=256) for kind in (True, False)]
    if any(wanted):
        assert average_precision(*by_score) == pytest.approx(plain_average_precision(scores, wanted))
    else:
        assert np.isnan(average_precision(*by_score))


def test_a_box_without_boundaries_is_refused(make_config: MakeConfig, write_volume: WriteVolume) -> None:
    gap = np.ones((24, 32, 32), np.uint8)
    gap[:, :, 16], gap[:, :, 17:] = 0, 2
    path = write_volume("gap.zarr", gap)
    source = make_config().validation[0].model_copy(update={"labels": path, "box": None})
    with pytest.raises(InputError, match="no two labels that touch"):
        check_held_out(open_regions([source], 0))
    check_held_out(open_regions([source.model_copy(update={"grow": 1})], 0))
    check_held_out([])


def test_a_mask_leaves_voxels_out_of_the_score(make_config: MakeConfig, write_volume: WriteVolume) -> None:
    source = make_config().validation[0]
    left_out = source.model_copy(update={"mask": write_volume("m.zarr", np.zeros((24, 32, 32), np.uint8))})
    with pytest.raises(InputError, match="no two labels that touch"):
        check_held_out(open_regions([left_out], 0))


def test_validation_predicts_the_box_as_part_of_the_whole_volume(make_config: MakeConfig) -> None:
    config = make_config()
    net = new_network(config.network, 0)
    part, whole = open_regions([*config.validation, config.validation[0].model_copy(update={"box": None})], 0)
    np.testing.assert_array_equal(
        predict_region(net, part, config), predict_region(net, whole, config)[:, *part.box.slices()]
    )
    scores = validate(net, [part, whole], config)
    assert scores["loss"] > 0
    assert 0 < scores["boundary_precision"] < 1
