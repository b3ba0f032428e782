"""Affinity targets equal a plain loop over voxels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuroshed.model.targets import NEAREST, affinity_targets

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)
LABELS = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint64, shape, elements=st.sampled_from([0, 1, 2, 2**63])))
OFFSETS = st.lists(st.tuples(*[st.integers(-6, 6)] * 3), min_size=1, max_size=4)


def plain_targets(
    labels: npt.NDArray[np.uint64], offsets: Sequence[tuple[int, int, int]], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    targets = np.zeros((len(offsets), *labels.shape), bool)
    counts = np.zeros_like(targets)
    for channel, offset in enumerate(offsets):
        for here in np.ndindex(labels.shape):
            there = tuple(a + b for a, b in zip(here, offset, strict=True))
            if any(not 0 <= i < n for i, n in zip(there, labels.shape, strict=True)):
                continue
            if all(labels[voxel] != 0 and mask[voxel] for voxel in (here, there)):
                counts[(channel, *here)] = True
                targets[(channel, *here)] = labels[here] == labels[there]
    return targets, counts


@given(LABELS, OFFSETS, st.data())
def test_targets_equal_the_plain_loop(
    labels: npt.NDArray[np.uint64], offsets: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    mask = data.draw(hnp.arrays(bool, labels.shape))
    for got, expected in zip(
        affinity_targets(labels, offsets, mask), plain_targets(labels, offsets, mask), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_without_a_mask_every_voxel_may_count() -> None:
    labels = np.array([[[1, 1], [0, 2]], [[1, 2], [2, 2]]], np.uint32)
    got = affinity_targets(labels, NEAREST)
    expected = plain_targets(labels.astype(np.uint64), NEAREST, np.ones(labels.shape, bool))
    np.testing.assert_array_equal(got, expected)


def test_the_first_channel_joins_a_voxel_to_the_one_below_in_z() -> None:
    labels = np.array([1, 1, 2]).reshape(3, 1, 1)
    targets, counts = affinity_targets(labels, NEAREST)
    assert targets[0].ravel().tolist() == [False, True, False]
    assert counts[0].ravel().tolist() == [False, True, True]
    assert not counts[1:].any()
