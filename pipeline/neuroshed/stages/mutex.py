"""Affinities to fragments by the mutex watershed, block by block: for networks that predict long-range affinities."""

from __future__ import annotations

import math
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from neuroshed.geometry import Box
from neuroshed.kernels.mutex import mutex_watershed
from neuroshed.stages.blocks import PROCESS_BYTES, CutStage


class MutexFragments(CutStage):
    """Mutex watershed (Wolf et al. 2018) of each block with context, then the size rule.

    Exclusions spread along whole segments, so a fragment may depend on any edge however far away: unlike that of
    `Fragments`, the result depends on the blocks. Fragments are cut at the faces of blocks; what crosses a face is
    joined only by agglomeration, by the mean (or what the score is) of the affinities of the face.
    """

    kind: Literal["mutex_fragments"] = "mutex_fragments"
    biases: tuple[float, ...]
    """One a channel: affinities (0..1) above it attract, others repel, the more so the further away from it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.biases) != len(self.source.offsets):
            raise ValueError(
                f"{len(self.biases)} biases for {len(self.source.offsets)} channels; there must be one each"
            )
        return self

    def segment(self, affinities: npt.NDArray[np.uint8], around: Box) -> npt.NDArray[np.uint64]:
        """The mutex watershed as it is."""
        return mutex_watershed(affinities, self.source.offsets, self.biases, self.low / 255)

    def memory_bytes(self, step: str) -> int:
        """About 100 bytes an edge of the block with its context, in the process of mwatershed."""
        return PROCESS_BYTES + max(100 * len(self.biases) * math.prod(self.grown), self.mask_bytes(self.grown))
