"""Affinities to fragments, as far as one block can tell: watershed, size rule, and the contacts between fragments.

What a block cannot tell, the tree (`stages.agglomerate`) finds from its tables: the result is that of the whole volume.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec
from neuroshed.kernels.blocks import BlockGraph, Rules, block_graph
from neuroshed.stages.blocks import BlockStage

# Measured on real neuron shapes with noisy membranes; the rest is what is there whatever the block.
BYTES_PER_VOXEL = 24
ALLOWANCE_BYTES = 8 << 20


class Fragments(BlockStage):
    """Watershed by one best edge and the size rule, within each block."""

    kind: Literal["fragments"] = "fragments"
    version = 3
    high: int
    """Edges of at least this affinity (0..255) are always picked."""

    @property
    def halo(self) -> tuple[Vec, Vec]:
        """One voxel beyond the high faces fixes what the block's own voxels pick (`kernels.watershed.read_box`)."""
        return (0, 0, 0), (1, 1, 1)

    @property
    def joins_across(self) -> int:
        """Edges across faces count like all others."""
        return self.high

    def graph(self, affinities: npt.NDArray[np.uint8], around: Box, index: Vec) -> BlockGraph:
        """Basins that the block's own voxels pick, and what the size rule makes of them."""
        place = self.place(self.grid.block_box(index))
        rules = Rules(self.low, self.high, self.small, self.dust)
        return block_graph(affinities, place, rules, self.further_offsets, self.histograms)

    def memory_bytes(self, step: str) -> int:
        """Affinities as stored and as read, bits, labels and their compressed copy, tables of basins."""
        z, y, x = self.block_shape
        voxels = (z + 1) * (y + 1) * (x + 1)
        # Affinities of wide numbers take more while they are read than all that comes after.
        reading = self.source.read_bytes((z + 1, y + 1, x + 1)) + self.mask_bytes((z + 1, y + 1, x + 1))
        return ALLOWANCE_BYTES + max(voxels * (BYTES_PER_VOXEL + len(self.further_offsets)), reading)
