"""Geometry commutes with making targets, intensities stay in range, and each switch does something."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.geometry import Vec
from neuroshed.model.networks import normalise
from neuroshed.model.targets import affinity_targets
from neuroshed.training.augment import AXES, Geometry, change_intensities, draw_edges, draw_geometry
from neuroshed.training.config import Augment

OFF = Augment(flip=(), swap=(), contrast=0, brightness=0, gamma=0, noise=0)


@given(
    st.permutations([0, 1, 2]),
    st.lists(st.sampled_from([0, 1, 2]), unique=True),
    st.tuples(*[st.integers(-3, 3)] * 3),
    st.integers(0, 99),
)
def test_flips_and_swaps_commute_with_targets(order: list[int], flips: list[int], offset: Vec, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (3, 4, 5), np.uint32)
    patch_shape = tuple(labels.shape[axis] for axis in order)
    geometry = Geometry(patch_shape, tuple(order), tuple(flips), np.zeros((patch_shape[0], 2), np.int64))
    # An edge keeps its two voxels under a flip, but its direction turns round.
    turned = tuple(-offset[source] if axis in flips else offset[source] for axis, source in enumerate(order))
    changed_then_made = affinity_targets(geometry.apply(labels), [turned])
    made_then_changed = [geometry.apply(part[0]) for part in affinity_targets(labels, [offset])]
    for got, expected in zip(changed_then_made, made_then_changed, strict=True):
        np.testing.assert_array_equal(got[0], expected)


@given(st.integers(0, 999), st.sets(st.sampled_from("zyx")), st.sets(st.sampled_from("zyx")))
def test_only_allowed_axes_are_touched_and_the_shape_is_what_was_asked(
    seed: int, flip: set[Any], swap: set[Any]
) -> None:
    augment = Augment(flip=tuple(flip), swap=tuple(swap), misaligned=0.5, max_shift=2)
    geometry = draw_geometry(np.random.default_rng(seed), (3, 4, 5), augment)
    assert {axis for axis in range(3) if geometry.order[axis] != axis} <= {AXES[axis] for axis in swap}
    assert set(geometry.flips) <= {AXES[axis] for axis in flip}
    assert geometry.apply(np.zeros(geometry.read_shape)).shape == (3, 4, 5)


def test_all_orders_and_flips_are_drawn() -> None:
    rng = np.random.default_rng(0)
    augment = Augment(flip=("z", "y", "x"), swap=("z", "y", "x"))
    drawn = [draw_geometry(rng, (4, 4, 4), augment) for _ in range(300)]
    assert len({geometry.order for geometry in drawn}) == 6
    assert len({geometry.flips for geometry in drawn}) == 8


def test_misalignments_are_slips_of_one_section_or_shifts_of_all_later_ones() -> None:
    rng = np.random.default_rng(0)
    augment = OFF.model_copy(update={"misaligned": 1.0, "max_shift": 3})
    kinds = set()
    for _ in range(50):
        geometry = draw_geometry(rng, (9, 4, 4), augment)
        moved = np.flatnonzero(geometry.shifts.any(axis=1))
        if len(moved):
            assert (geometry.shifts[moved] == geometry.shifts[moved[0]]).all()
            kinds.add("slip" if len(moved) == 1 and moved[0] < 8 else "shift" if moved[-1] == 8 else "wrong")
        assert np.abs(geometry.shifts).max() <= 3
    assert kinds == {"slip", "shift"}


def test_shifted_sections_take_image_and_labels_along() -> None:
    shifts = np.array([[0, 0], [2, -1]])
    geometry = Geometry((2, 4, 4), (0, 1, 2), (), shifts)
    assert geometry.read_shape == (2, 8, 6)
    image = np.arange(2 * 8 * 6).reshape(geometry.read_shape)
    np.testing.assert_array_equal(geometry.apply(image)[0], image[0, 2:6, 1:5])
    np.testing.assert_array_equal(geometry.apply(image)[1], image[1, 4:8, 0:4])


def change(augment: Augment, seed: int = 0, dtype: type[Any] = np.uint8) -> np.ndarray[Any, Any]:
    image = np.random.default_rng(7).integers(0, np.iinfo(dtype).max, (12, 6, 7), dtype, endpoint=True)
    return change_intensities(
        image, np.random.default_rng(seed), augment, (40.0, 30000.0 if dtype == np.uint16 else 200)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_without_changes_it_is_the_normalisation_of_inference(dtype: type[Any]) -> None:
    image = np.random.default_rng(7).integers(0, np.iinfo(dtype).max, (12, 6, 7), dtype, endpoint=True)
    high = 30000.0 if dtype == np.uint16 else 200.0
    np.testing.assert_array_equal(change(OFF, dtype=dtype), normalise(torch.from_numpy(image), 40, high).numpy())


@pytest.mark.parametrize(
    "switch",
    [
        {"contrast": 0.5},
        {"brightness": 0.3},
        {"gamma": 1.0},
        {"noise": 0.2},
        {"blurred": 1.0},
        {"missing": 1.0},
        {"section_contrast": 0.5},
        {"section_brightness": 0.3},
    ],
)
def test_each_switch_changes_the_image_within_range(switch: dict[str, float]) -> None:
    plain, changed = change(OFF), change(OFF.model_copy(update=switch))
    assert changed.dtype == np.float32
    assert np.abs(changed).max() <= 1
    assert not np.allclose(plain, changed)


def test_missing_sections_are_blank_and_as_frequent_as_asked() -> None:
    many = [change(OFF.model_copy(update={"missing": 0.25}), seed) for seed in range(40)]
    blank = np.mean([np.ptp(section) == 0 for image in many for section in image])
    assert 0.18 < blank < 0.32


def test_every_section_is_changed_by_numbers_of_its_own() -> None:
    plain = change(OFF)
    for switch in ("section_contrast", "section_brightness"):
        changed = change(OFF.model_copy(update={switch: 0.2}))
        # Where nothing is clipped, a section is a line of what it was.
        lines = [
            np.polyfit(before[np.abs(after) < 1], after[np.abs(after) < 1], 1)
            for before, after in zip(plain, changed, strict=True)
        ]
        slopes, heights = np.transpose(lines)
        own, common = (slopes, heights) if switch == "section_contrast" else (heights, slopes)
        assert len({round(number, 5) for number in own}) == len(plain)
        assert np.ptp(common) < 0.1 * np.ptp(own)
        assert np.abs(slopes - 1).max() < 0.2 + 1e-5


def test_jitter_displaces_every_section_by_itself() -> None:
    augment = OFF.model_copy(update={"jitter": 2})
    drawn = np.concatenate([draw_geometry(np.random.default_rng(n), (9, 4, 4), augment).shifts for n in range(20)])
    assert set(drawn.ravel()) == {-2, -1, 0, 1, 2}
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.3


@given(st.integers(0, 2**32))
def test_beyond_a_slab_lies_its_mirror_image(seed: int) -> None:
    shape = (8, 9, 12)
    image = np.random.default_rng(1).random(shape, np.float32)
    valid = np.ones(shape, bool)
    edges = draw_edges(np.random.default_rng(seed), shape, OFF.model_copy(update={"edges": 1.0}))
    seen, counts = edges.apply(image, valid)
    assert edges.stop - edges.start >= shape[edges.axis] // 4
    slab, along = (np.moveaxis(array, edges.axis, 0) for array in (image, seen))
    last = edges.stop - edges.start - 1
    for place in range(shape[edges.axis]):
        period = max(2 * last, 1)
        far = (place - edges.start) % period
        np.testing.assert_array_equal(along[place], slab[edges.start + min(far, period - far) if last else edges.start])
        inside = edges.start <= place < edges.stop
        assert (np.moveaxis(counts, edges.axis, 0)[place] == inside).all()


def test_without_edges_nothing_is_mirrored() -> None:
    image, valid = np.random.default_rng(1).random((4, 5, 6), np.float32), np.ones((4, 5, 6), bool)
    seen, counts = draw_edges(np.random.default_rng(0), (4, 5, 6), OFF).apply(image, valid)
    assert seen is image
    assert counts is valid


def test_the_generator_alone_decides() -> None:
    augment = Augment(blurred=0.5, missing=0.1, misaligned=1.0)
    np.testing.assert_array_equal(change(augment, 3), change(augment, 3))
    assert not np.array_equal(change(augment, 3), change(augment, 4))
