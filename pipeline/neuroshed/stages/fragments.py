"""Affinities to pieces: the watershed of each block, and the edges across its faces that it picked."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.kernels import watershed
from neuroshed.kernels.watershed import Place
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.octree import needs
from neuroshed.stages.predict import Predict
from neuroshed.storage.nodes import write_node
from neuroshed.storage.volumes import Volume, create_volume


class Fragments(Stage):
    """Watershed by one best edge. A piece is the part of a basin that lies in one block."""

    kind: Literal["fragments"] = "fragments"
    source: Affinities | Predict = Field(discriminator="kind")
    """Where the affinities come from."""
    region: Box
    """The part of the volume that is segmented."""
    block_shape: Vec
    shard_shape: Vec
    low: int
    """Edges below this affinity (0..255) join nothing."""
    high: int
    """Edges of at least this affinity (0..255) are always picked."""

    @property
    def grid(self) -> Grid:
        """The blocks of the region."""
        return Grid(self.region, self.block_shape)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass; a block reads the affinities of one voxel beyond its high faces."""
        return (Step("", self.grid, needs(self.source, high=(1, 1, 1))),)

    def place(self, box: Box) -> Place:
        """Where a block or tree node lies."""
        return Place(box, self.region, self.source.volume_shape)

    @property
    def path(self) -> Path:
        """Where the pieces are."""
        return self.folder / "pieces.zarr"

    @property
    def marks(self) -> tuple[Path, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.path)

    @cached_property
    def pieces(self) -> Volume:
        """Piece ids, uint64."""
        return self.label_volume(self.path)

    def label_volume(self, path: Path) -> Volume:
        """A volume of uint64 ids on this stage's grid, for this stage and those after it."""
        return create_volume(
            path,
            shape=self.source.volume_shape,
            dtype=np.uint64,
            shard_shape=self.shard_shape,
            voxel_size=self.source.voxel_size,
            offset=self.source.offset,
        )

    def prepare(self) -> None:
        """Create the volume of pieces and the folder of picks."""
        super().prepare()
        _ = self.pieces

    def run(self, step: str, index: Vec) -> Done:
        """Watershed of one block."""
        box = self.grid.block_box(index)
        affinities = self.source.affinities.read(watershed.read_box(box, self.region), channels=3)
        pieces, crossing = watershed.watershed(affinities, self.place(box), self.low, self.high)
        self.pieces.write(box, pieces, self.region)
        write_node(self.node_path(step, index), {"picks": {"key": crossing}})
        return Done(box.size)

    @property
    def output_bytes(self) -> int:
        """Eight bytes a voxel of the region."""
        return 8 * self.region.size

    def memory_bytes(self, step: str) -> int:
        """Affinities as stored and as read, union-find, pieces and their compressed copy."""
        z, y, x = self.block_shape
        return z * y * x * (2 * 3 + 8 + 1 + 3 * 8)
