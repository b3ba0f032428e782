"""Whether two volumes hold the same: each block is compared, and what differs is added up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.kernels.differences import (
    SLICE_VALUES,
    SUBTRACTED_BYTES,
    Difference,
    Pairs,
    add_pairs,
    difference,
    label_pairs,
    misfits,
)
from neuroshed.kernels.metrics import SLICE_VOXELS
from neuroshed.stages.base import Done
from neuroshed.stages.evaluate import PAIR_BYTES
from neuroshed.stages.passes import Pass
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node, write_node
from neuroshed.storage.notes import read_note, write_note
from neuroshed.storage.volumes import Volume, open_volume


class Compare(Pass):
    """Differences of two volumes of one shape, block by block, or the pairs of labels that meet."""

    kind: Literal["compare"] = "compare"
    left: Location
    right: Location
    left_identity: dict[str, Any]
    """What the first one was when the comparison was planned."""
    right_identity: dict[str, Any]
    """What the other one was."""
    volume_shape: Vec
    labels: bool
    """Whether labels may have other names in one than in the other."""
    block_shape: Vec

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "left", "right"})

    @classmethod
    def of(cls, run_folder: Location, left: Volume, right: Volume, labels: bool, block_shape: Vec) -> Compare:
        """Plan a comparison of two volumes of one shape, both of integers or both of floats; labels are integers
        without channels.
        """
        return cls(
            run_folder=run_folder,
            left=left.path,
            right=right.path,
            left_identity=volume_identity(left),
            right_identity=volume_identity(right),
            volume_shape=left.shape,
            labels=labels,
            block_shape=block_shape,
        )

    @property
    def grid(self) -> Grid:
        """The blocks of both."""
        return Grid(Box.of_shape(self.volume_shape), self.block_shape)

    @cached_property
    def volumes(self) -> tuple[Volume, Volume]:
        """Both."""
        return open_volume(self.left), open_volume(self.right)

    def run(self, step: str, index: Vec) -> Done:
        """Compare one block."""
        box = self.grid.block_box(index)
        one, other = self.volumes
        with unchanged(one, self.left_identity), unchanged(other, self.right_identity):
            left, right = one.read(box), other.read(box)
        path = self.node_path(step, index)
        if self.labels:
            found = label_pairs(left, right)
            write_node(path, {"pairs": found._asdict() | {"first": self._numbers(found.first, box)}})
        else:
            told = difference(left, right)
            write_note(path, None if told is None else told._replace(first=_moved(told.first, box)))
        return Done(box.size)

    def _numbers(self, places: Any, box: Box) -> Any:
        """Numbers in the volume, in raster order, of places in a block."""
        inside = np.unravel_index(places, box.shape)
        there = tuple(axis + start for axis, start in zip(inside, box.start, strict=True))
        return np.ravel_multi_index(there, self.volume_shape).astype(np.int64)

    def memory_bytes(self, step: str) -> int:
        """Both parts as they are read, and where they differ; or a table with a pair for every 8 voxels."""
        z, y, x = map(min, self.block_shape, self.volume_shape)
        channels = self.volumes[0].channels or 1
        read = sum(volume.read_bytes((z, y, x), channels) for volume in self.volumes)
        voxels = z * y * x
        if self.labels:
            return read + voxels * PAIR_BYTES // 8 + SLICE_VOXELS * PAIR_BYTES
        # Where values differ, and while that is found out where they are NaN.
        return read + 4 * voxels * channels + voxels + SLICE_VALUES * SUBTRACTED_BYTES

    def differences(self) -> Difference | None:
        """Of the whole volumes, when all blocks are done; None if there are none."""
        found = [Difference(*told) for told in map(read_note, self._paths()) if told is not None]
        if not found:
            return None
        # By z, y, x, and there by channel.
        first = min((tuple(told.first) for told in found), key=lambda place: (place[-3:], place))
        known = [told.largest for told in found if told.largest is not None]
        return Difference(sum(told.values for told in found), first, max(known, default=None))

    def renaming(self) -> tuple[Pairs, Difference | None]:
        """The pairs of labels of the whole volumes, when all blocks are done, and the voxels that do not fit any
        renaming (`kernels.differences.misfits`); None if all do.
        """
        pairs = add_pairs(self._pairs())
        wrong = misfits(pairs)
        if not wrong.any():
            return pairs, None
        place = np.unravel_index(int(pairs.first[wrong].min()), self.volume_shape)
        return pairs, Difference(int(pairs.counts[wrong].sum()), tuple(map(int, place)), None)

    def _pairs(self) -> Iterator[Pairs]:
        for path in self._paths():
            (columns,) = read_node(path, "pairs")
            yield Pairs(**columns)

    def _paths(self) -> Iterator[Location]:
        return (self.node_path("", index) for index in self.grid)


def _moved(place: tuple[int, ...], box: Box) -> tuple[int, ...]:
    return (*place[:-3], *(a + b for a, b in zip(place[-3:], box.start, strict=True)))
