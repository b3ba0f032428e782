"""Views of a volume against what numpy makes of the whole array."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.geometry import Box, Vec
from neuroshed.storage.locations import Location
from neuroshed.storage.views import Grown, Kept, Sections, grow_labels
from neuroshed.storage.volumes import create_volume

SHAPE = (13, 11, 17)


class InMemory:
    """An array behind the interface of a volume."""

    path = Location.of("/nowhere/image.zarr")
    voxel_size = (8.0, 9.0, 10.0)

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self.array, self.dtype = array, array.dtype
        self.shape: Vec = (array.shape[0], array.shape[1], array.shape[2])

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        return self.array[box.slices()]


IMAGE = InMemory(np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8))


def boxes(shape: Vec) -> st.SearchStrategy[Box]:
    """Boxes inside a shape, possibly empty."""
    ends = st.tuples(*(st.lists(st.integers(0, side), min_size=2, max_size=2).map(sorted) for side in shape))
    return ends.map(lambda found: Box(tuple(low for low, _ in found), tuple(high for _, high in found)))


@given(st.integers(0, 2), st.integers(2, 5), st.integers(0, 4), st.data())
def test_sections_are_means_of_the_image_and_middles_of_labels(
    axis: int, thickness: int, phase: int, data: st.DataObject
) -> None:
    phase %= thickness
    turned = np.moveaxis(IMAGE.array, axis, 0)
    count = (len(turned) - phase) // thickness
    pieces = [turned[phase + thickness * s : phase + thickness * (s + 1)].astype(float) for s in range(count)]
    mean = np.array([np.floor(piece.mean(0) + 0.5) for piece in pieces])
    middle = np.array([piece[thickness // 2] for piece in pieces])
    for averaged, expected in ((True, mean), (False, middle)):
        view = Sections(IMAGE, axis, thickness, phase, averaged)
        assert view.shape == expected.shape
        box = data.draw(boxes(view.shape))
        np.testing.assert_array_equal(view.read(box), expected[box.slices()])
        assert view.read(box).dtype == np.uint8


@given(st.integers(0, 2), st.integers(2, 5), st.integers(0, 4), boxes(SHAPE))
def test_sections_of_a_box_are_those_that_lie_inside(axis: int, thickness: int, phase: int, box: Box) -> None:
    phase %= thickness
    inside = Sections(IMAGE, axis, thickness, phase, averaged=True).box_inside(box)
    starts = range(phase, SHAPE[axis] - thickness + 1, thickness)
    expected = [
        number
        for number, start in enumerate(starts)
        if box.start[axis] <= start and start + thickness <= box.stop[axis]
    ]
    assert list(range(inside.start[0], inside.stop[0])) == expected
    others = [own for own in range(3) if own != axis]
    assert [inside.start[1:], inside.stop[1:]] == [tuple(end[own] for own in others) for end in (box.start, box.stop)]


def test_a_section_is_as_thick_as_its_voxels_together() -> None:
    sizes = [Sections(IMAGE, axis, 4, 0, averaged=True).voxel_size for axis in range(3)]
    assert sizes == [(32.0, 9.0, 10.0), (36.0, 8.0, 10.0), (40.0, 8.0, 9.0)]


def test_what_is_kept_is_read_once_and_nothing_else_can_be_read(tmp_path: Path) -> None:
    volume = create_volume(
        tmp_path / "v.zarr", shape=SHAPE, dtype=np.uint8, shard_shape=(16, 16, 16), voxel_size=(8, 9, 10)
    )
    volume.write(volume.box, IMAGE.array)
    box = Box((2, 3, 4), (9, 9, 9))
    kept = Kept.of(volume, box)
    volume.write(volume.box, np.zeros(SHAPE, np.uint8))
    part = Box((3, 3, 4), (9, 5, 6))
    np.testing.assert_array_equal(kept.read(part), IMAGE.array[part.slices()])
    assert (kept.shape, kept.voxel_size, kept.path, kept.dtype) == (SHAPE, (8, 9, 10), volume.path, np.uint8)
    with pytest.raises(ValueError, match="which is in memory"):
        kept.read(Box((1, 3, 4), (9, 5, 6)))


def test_labels_grow_into_boundary_voxels_only_so_far() -> None:
    labels = np.zeros((1, 1, 9), np.uint64)
    labels[0, 0, 0], labels[0, 0, 8] = 5, 2**60
    assert grow_labels(labels, 3).ravel().tolist() == [5, 5, 5, 5, 0, 2**60, 2**60, 2**60, 2**60]
    assert grow_labels(labels, 0) is labels
    assert not grow_labels(np.zeros((2, 2, 2)), 3).any()


def test_labels_grow_before_they_are_cut() -> None:
    drawn = np.zeros((8, 1, 1), np.uint8)
    drawn[0], drawn[7] = 1, 2
    grown = Grown(InMemory(drawn), 3)
    assert grown.read(Box((0, 0, 0), (8, 1, 1))).ravel().tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    # Three voxels, not three sections.
    cut = Sections(grown, 0, 2, 0, averaged=False)
    assert cut.read(Box.of_shape(cut.shape)).ravel().tolist() == [1, 1, 2, 2]
    thin = Sections(Grown(InMemory(drawn), 1), 0, 2, 0, averaged=False)
    assert thin.read(Box.of_shape(thin.shape)).ravel().tolist() == [1, 0, 0, 2]
