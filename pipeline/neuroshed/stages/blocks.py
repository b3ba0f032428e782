"""What the stages share that make fragments: one block at a time, its labels in a volume and its tables in a file.

Beside the labels, each block writes its part of the region graph, and the planes at its faces from which the tree
(`stages.agglomerate`) finds what crosses them.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from neuroshed.geometry import Box, Grid, Vec, add, as_vec
from neuroshed.kernels import adjust
from neuroshed.kernels.across import WAYS, check_offsets, upper_ends
from neuroshed.kernels.blocks import BlockGraph, Rules, basin_graph
from neuroshed.kernels.conventions import edges_box
from neuroshed.kernels.masking import clear_edges, reached
from neuroshed.kernels.parts import parts
from neuroshed.kernels.watershed import Place
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.masks import Mask, Skipped, allowed, left_out
from neuroshed.stages.octree import needs
from neuroshed.stages.predict import Predict
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, write_node
from neuroshed.storage.volumes import Volume, create_volume

NONE = 256
"""An affinity that no edge reaches."""
PROCESS_BYTES = 100 << 20
"""What a process of its own (`kernels.child`) holds before its first call."""


class BlockStage(Stage):
    """Fragments of each block, as far as the block alone can tell. Subclasses set `halo` and `graph`."""

    source: Affinities | Predict = Field(discriminator="kind")
    """Where the affinities come from."""
    region: Box
    """The part of the volume that is segmented."""
    block_shape: Vec
    shard_shape: Vec
    low: int
    """Edges below this affinity (0..255) join nothing."""
    small: int
    """Fragments of fewer voxels join their best neighbour."""
    dust: int
    """Fragments of fewer voxels that found no neighbour become background."""
    smooth: float = 0.0
    """Standard deviation in voxels of a smoothing of the affinities before all else."""
    bias: int = 0
    """Added to each affinity (0..255) after smoothing."""
    histograms: bool = False
    """Whether contacts carry histograms of their affinities, which quantiles are taken of."""
    long_range: bool = False
    """Whether the source's long-range affinities count in contacts like those of neighbours."""
    masks: tuple[Mask, ...] = ()
    """What they do not all allow has no label, and no edge leads there."""
    skipped: Skipped | None = None
    """Blocks in which they allow nothing."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "skipped"})

    @model_validator(mode="after")
    def _check_offsets(self) -> Self:
        check_offsets(self.further_offsets, self.block_shape)
        return self

    @property
    def further_offsets(self) -> tuple[Vec, ...]:
        """Offsets of the channels after the nearest three that count in contacts."""
        return self.source.offsets[3:] if self.long_range else ()

    @property
    @abstractmethod
    def halo(self) -> tuple[Vec, Vec]:
        """Voxels beyond its low and its high faces that a block's fragments depend on, inside the region."""

    @abstractmethod
    def graph(self, affinities: npt.NDArray[np.uint8], around: Box, index: Vec) -> BlockGraph:
        """Fragments of a block from the affinities over `around`, its box grown by `halo` inside the region."""

    @property
    def joins_across(self) -> int:
        """Fragments are one where an edge across a face has at least this affinity; `NONE`: nowhere."""
        return NONE

    @property
    def grid(self) -> Grid:
        """The blocks of the region."""
        return Grid(self.region, self.block_shape)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One pass; a block reads affinities as far as its fragments depend on them, and what smoothing needs."""
        low, high = (add(side, as_vec(adjust.reach(self.smooth))) for side in self.halo)
        return (Step("", self.grid, needs(self.source, low=low, high=high), left_out(self.skipped)),)

    def is_there(self, index: Vec) -> bool:
        """Whether there is a block of that index that is not left out."""
        return self.steps[0].holds(index)

    def place(self, box: Box) -> Place:
        """Where a block lies."""
        return Place(box, self.region, self.source.volume_shape)

    @property
    def path(self) -> Location:
        """Where the blocks' labels are."""
        return self.folder / "labels.zarr"

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.path)

    @cached_property
    def labels(self) -> Volume:
        """The fragments of each block, numbered from 1 in every block, uint32."""
        return self.label_volume(self.path, np.uint32)

    def label_volume(self, path: Location, dtype: npt.DTypeLike = np.uint64) -> Volume:
        """A volume of labels on this stage's grid, for this stage and those after it."""
        return create_volume(
            path,
            shape=self.source.volume_shape,
            dtype=dtype,
            shard_shape=self.shard_shape,
            voxel_size=self.source.voxel_size,
            offset=self.source.offset,
        )

    def written(self, step: str) -> tuple[Volume, ...]:
        """The labels."""
        return (self.labels,)

    def run(self, step: str, index: Vec) -> Done:
        """Fragments of one block."""
        box = self.grid.block_box(index)
        around = box.grow(*self.halo).intersect(self.region)
        affinities = self.affinities(around)
        found = self.graph(affinities, around, index)
        found = found._replace(above=found.above & self._ways_up(index))
        self.labels.write(box, found.labels, self.region)
        own = affinities[(slice(None), *box.slices(around.start))]
        tables = graph_tables(found, own)
        if self.further_offsets:
            tables["further"] = self._crossing_affinities(own, box)
        write_node(self.node_path(step, index), tables)
        return Done(box.size, {"fragments": float(found.ids.size), "handed_up": float(found.up.sum())})

    def affinities(self, box: Box) -> npt.NDArray[np.uint8]:
        """The affinities of a box, smoothed and biased as asked. Masks apply before that, since what lies under them
        need not be there, and after it.
        """
        around = adjust.read_box(box, self.region, self.smooth)
        offsets = self.source.offsets
        ends = reached(around, offsets, Box.of_shape(self.source.volume_shape))
        mask = allowed(self.masks, ends) if self.masks else None
        given = self.source.read(around)
        if mask is not None:
            clear_edges(given, offsets, around, mask, ends)
        found = adjust.adjust(given, offsets, box, self.region, smooth=self.smooth, bias=self.bias)
        if mask is not None and found is not given:
            clear_edges(found, offsets, box, mask, ends)
        return found

    def _ways_up(self, index: Vec) -> np.uint8:
        """As `BlockGraph.above`: the ways to blocks that are there. Beyond them a fragment has no edges."""
        there = [self.is_there(add(index, way)) for way in WAYS[1:]]
        return np.uint8(sum(1 << bit for bit, found in enumerate(there) if found))

    def mask_bytes(self, shape: Vec) -> int:
        """Peak memory in bytes of applying masks to affinities of a box of `shape`."""
        if not self.masks:
            return 0
        around = Box.of_shape(shape).grow(adjust.reach(self.smooth))
        far = max(abs(component) for offset in self.source.offsets for component in offset)
        ends = reached(around, self.source.offsets, around.grow(far)).shape
        # What one mask says, stretched axis by axis, beside what all those before it do.
        return max(mask.read_bytes(ends) for mask in self.masks) + 4 * Box.of_shape(ends).size

    def upper_ends(self, box: Box, way: Vec) -> list[Box]:
        """For each of `further_offsets` the voxels of a block whose edges cross to the block that is `way` below it, as
        far as the region goes.
        """
        return [upper_ends(box, o, way).intersect(edges_box(self.region, o)) for o in self.further_offsets]

    def _crossing_affinities(self, affinities: npt.NDArray[np.uint8], box: Box) -> Columns:
        """Affinities of the edges of `upper_ends`, by channel and number of the way."""
        return {
            f"{channel}_{number}": affinities[(channel, *ends.slices(box.start))].ravel()
            for number, way in enumerate(WAYS[1:], 1)
            for channel, ends in enumerate(self.upper_ends(box, way), 3)
        }

    def shards(self, step: str) -> Vec:
        """Those of the volume."""
        return self.shard_shape

    @property
    def output_bytes(self) -> int:
        """Four bytes a voxel of the region."""
        return 4 * self.steps[0].voxels_left


class CutStage(BlockStage):
    """Fragments that somebody else's method finds in a block with context, cut at the block's faces.

    Cutting takes fragments apart; each connected part is one of its own, and nothing joins parts across a face but
    agglomeration. So the result depends on the blocks, less so with more context. Subclasses set `segment`.
    """

    version = 2
    context: Vec
    """Voxels around a block that the method sees too, z y x, as far as the region goes."""

    @property
    def halo(self) -> tuple[Vec, Vec]:
        """The context on all sides."""
        return self.context, self.context

    @property
    def grown(self) -> Vec:
        """Sides of a block with its context."""
        return Box.of_shape(self.block_shape).grow(self.context).shape

    @abstractmethod
    def segment(self, affinities: npt.NDArray[np.uint8], around: Box) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Fragments of a box, any unsigned integers `(z, y, x)`, 0 for background. `affinities` is uint8
        `(c, z, y, x)` with the channels of `source.offsets`.
        """

    def graph(self, affinities: npt.NDArray[np.uint8], around: Box, index: Vec) -> BlockGraph:
        """Fragments of the whole box, cut to the block."""
        box = self.grid.block_box(index)
        inside = box.slices(around.start)
        basins = parts(self.segment(affinities, around)[inside])
        rules = Rules(self.low, self.joins_across, self.small, self.dust)
        offsets = self.further_offsets
        own = np.ascontiguousarray(affinities[(slice(3 + len(offsets)), *inside)])
        return basin_graph(basins, own, self.place(box), rules, offsets, self.histograms)


def graph_tables(found: BlockGraph, affinities: npt.NDArray[np.uint8]) -> dict[str, Columns]:
    """Tables `fragments`, `gains`, `links`, `edges` (by row of `fragments`), and `low0` to `high2`, the planes.

    `affinities` uint8 `(3 or more, z, y, x)` over the block.
    """
    contacts = found.contacts
    tables: dict[str, Columns] = {
        "fragments": {
            "id": found.ids,
            "start": found.starts,
            "total": found.totals,
            "rank": found.ranks,
            "above": found.above,
            "below": found.below,
        },
        "gains": {"fragment": found.gains.fragment, "key": found.gains.keys, "voxels": found.gains.voxels},
        "links": {"left": found.links.left, "right": found.links.right, "key": found.links.keys},
        "edges": {
            "left": contacts.left - 1,
            "right": contacts.right - 1,
            "sum": contacts.sums,
            "count": contacts.counts,
            "lowest": contacts.lowest,
            "highest": contacts.highest,
        },
    }
    if len(contacts.histograms) == contacts.left.size:
        tables["edges"]["histogram"] = contacts.histograms
    for axis, (low, high) in enumerate(found.planes):
        tables[f"low{axis}"] = {
            "label": low.labels.astype(np.uint32),
            "picked": low.picked,
            "affinity": affinities[axis].take(0, axis).ravel(),
        }
        tables[f"high{axis}"] = {"label": high.labels.astype(np.uint32), "picked": high.picked}
    return tables
