"""A stage whose blocks do nothing: what is left is the engine. Workers import this file as a Dask preload."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Done, Need, Stage, Step
from neuroshed.stages.registry import add_kind


class Empty(Stage):
    """`counts` blocks, each of which needs its neighbours of `before`, as a halo of one voxel does."""

    kind: Literal["empty"] = "empty"
    number: int
    counts: Vec
    before: Empty | None = Field(default=None)

    @property
    def title(self) -> str:
        """Kind and number."""
        return f"empty {self.number}"

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over blocks of 4 voxels a side."""
        z, y, x = (4 * count for count in self.counts)
        needs = (Need(self.before.fingerprint, "", (1, 1, 1), (1, 1, 1)),) if self.before else ()
        return (Step("", Grid(Box((0, 0, 0), (z, y, x)), (4, 4, 4)), needs),)

    def run(self, step: str, index: Vec) -> Done:
        """Nothing."""
        return Done(64)

    def has_tables(self, step: str) -> bool:
        """None, so that no files are looked for."""
        return False

    def memory_bytes(self, step: str) -> int:
        """Nothing."""
        return 0


add_kind(Empty)
