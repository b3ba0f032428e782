"""A coarse map of an image's intensities: where brightness and contrast drift slowly, each place has its own range.

The volume is divided into cells, whatever the blocks; samples of a cell give its two quantiles, and between the centres
of cells they are interpolated linearly. So a voxel's range follows from its place alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Grid, Vec, add, mul
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.storage.identity import SAMPLE_SIDE, read_sample, sample_boxes
from neuroshed.storage.intensity import Range, spread
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node, write_node
from neuroshed.storage.volumes import Volume, open_volume

TOP = 65535
"""What a levelled image has where a network sees its brightest value; 0 where the darkest."""
FIELD_BYTES = 40
"""Memory for a voxel of an image that is levelled: two float32 fields, and what is computed from them."""
Field = npt.NDArray[np.float32]


class Drift(Stage):
    """Quantiles of the cells that touch a region."""

    kind: Literal["drift"] = "drift"
    image: Location
    image_identity: dict[str, Any]
    """What the image was when the run was planned."""
    volume_shape: Vec
    region: Box
    """The part of the volume whose cells are wanted."""
    cell_shape: Vec
    whole: Range
    """Quantiles of the whole volume: those of a cell that holds one value only."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "region", "image"})

    @property
    def grid(self) -> Grid:
        """Whole cells that touch the region, cut only by the volume."""
        cells = Grid(self.region.intersect(Box.of_shape(self.volume_shape)), self.cell_shape)
        start = mul(cells.first, self.cell_shape)
        whole = Box(start, add(start, mul(cells.counts, self.cell_shape)))
        return Grid(whole.intersect(Box.of_shape(self.volume_shape)), self.cell_shape)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over the image, which is there already."""
        return (Step("", self.grid),)

    @cached_property
    def _image(self) -> Volume:
        return open_volume(self.image)

    def run(self, step: str, index: Vec) -> Done:
        """Sample one cell."""
        cell = self.grid.block_box(index)
        boxes = (Box(add(cell.start, box.start), add(cell.start, box.stop)) for box in sample_boxes(cell.shape))
        low, high = spread(read_sample(self._image, box) for box in boxes)
        if low == high:
            low, high = self.whole
        columns = {"low": np.array([low]), "high": np.array([high])}
        write_node(self.node_path(step, index), {"spread": columns})
        return Done(0)

    def memory_bytes(self, step: str) -> int:
        """Eight samples, and their values once more."""
        return 8 * 8 * SAMPLE_SIDE**3 * 2

    def level(
        self, image: npt.NDArray[np.integer[Any]], box: Box, trained: Range, *, inverted: bool
    ) -> npt.NDArray[np.uint16]:
        """An image `(z, y, x)` of a box in which the quantiles of each place lie where `trained`, in 0..1 of 0..65535,
        says; what lies beyond is clipped.
        """
        low, high = self._fields(box)
        dark, bright = (high, low) if inverted else (low, high)
        unit = (bright - dark) / np.float32(trained[1] - trained[0])
        share = (image.astype(np.float32) - dark) / unit + np.float32(trained[0])
        levelled: npt.NDArray[np.uint16] = np.rint(share.clip(0, 1) * TOP).astype(np.uint16)
        return levelled

    def _fields(self, box: Box) -> tuple[Field, Field]:
        """The quantiles at each voxel of a box, float32 `(z, y, x)`."""
        places = [_between(box, axis, self.cell_shape[axis], self.volume_shape[axis]) for axis in range(3)]
        first = [int(below.min()) for below, _ in places]
        counts = [int(below.max()) + 2 - start for (below, _), start in zip(places, first, strict=True)]
        last = [-(-side // cell) - 1 for side, cell in zip(self.volume_shape, self.cell_shape, strict=True)]
        coarse = np.empty((2, *counts), np.float32)
        for cell in np.ndindex(*counts):
            z, y, x = (min(a + b, end) for a, b, end in zip(first, cell, last, strict=True))
            (columns,) = read_node(self.node_path("", (z, y, x)), "spread")
            coarse[:, *cell] = columns["low"][0], columns["high"][0]
        for axis, ((below, share), start) in enumerate(zip(places, first, strict=True)):
            coarse = _interpolate(coarse, axis + 1, below - start, share)
        return coarse[0], coarse[1]


def _between(box: Box, axis: int, cell: int, side: int) -> tuple[npt.NDArray[np.int64], Field]:
    """For each voxel along an axis the cell whose centre lies before it, and how far it is on the way to the next."""
    place = (np.arange(box.start[axis], box.stop[axis]) + 0.5) / cell - 0.5
    place = place.clip(0, max(-(-side // cell) - 1, 0))
    below = place.astype(np.int64)
    return below, (place - below).astype(np.float32)


def _interpolate(values: Field, axis: int, below: npt.NDArray[np.int64], share: Field) -> Field:
    shape = [1] * values.ndim
    shape[axis] = -1
    part = share.reshape(shape)
    mixed: Field = values.take(below, axis) * (1 - part) + values.take(below + 1, axis) * part
    return mixed
