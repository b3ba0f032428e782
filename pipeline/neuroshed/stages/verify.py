"""Blocks of a finished stage computed once more, and compared with what stands."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.predict import Predict
from neuroshed.stages.pyramid import Pyramid
from neuroshed.stages.segment import Segment
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.nodes import differing_column


class Verify(Stage):
    """Each block of `step` of the target, or those `picked`, is computed again in a folder of its own."""

    kind: Literal["verify"] = "verify"
    target: Annotated[
        Agglomerate | Fragments | MutexFragments | Predict | Pyramid | Segment | WaterzFragments | WaterzScores,
        Field(discriminator="kind"),
    ]
    step: str
    picked: tuple[Vec, ...] | None = None
    """Blocks of the target; None for all."""

    @property
    def title(self) -> str:
        """The stage and step that are verified."""
        return f"verify {self.target.title} {self.step}".rstrip()

    @property
    def _verified(self) -> Step:
        return next(step for step in self.target.steps if step.name == self.step)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over the target's blocks, or over the list of those picked. All that they read is there."""
        if self.picked is None:
            return (Step("", self._verified.grid, skipped=self._verified.skipped),)
        return (Step("", Grid(Box((0, 0, 0), (1, 1, len(self.picked))), (1, 1, 1))),)

    def run(self, step: str, index: Vec) -> Done:
        """Compute a block again; raises `BlockError` naming what differs."""
        block = index if self.picked is None else self.picked[index[2]]
        scratch = self.folder / uuid.uuid4().hex
        again = self.target.elsewhere(scratch, self.step)
        try:
            again.prepare()
            done = again.run(self.step, block)
            self._compare(again, block)
        finally:
            with suppress(OSError):
                scratch.delete_tree()
        return Done(done.voxels)

    def _compare(self, again: Stage, block: Vec) -> None:
        where = f"{self.target.title} {self.step} {list(block)}"
        remedy = f"remove {self.target.folder} and the folders of the stages after it, and run again"
        standing, new = self.target.node_path(self.step, block), again.node_path(self.step, block)
        if new.exists() and (column := differing_column(standing, new)):
            raise BlockError(f"{where}: column {column} of {standing} is not what computing it again gives; {remedy}")
        box = self.target.writes(self.step, block)
        for old, found in zip(self.target.written(self.step), again.written(self.step), strict=True):
            inside = box.intersect(old.box)
            differs = old.read(inside) != found.read(inside)
            if differs.any():
                first = np.argwhere(differs)[0][-3:] + inside.start
                raise BlockError(
                    f"{where}: {np.count_nonzero(differs)} values of {old.path} are not what computing them again "
                    f"gives, the first at voxel {first.tolist()}; {remedy}"
                )

    def memory_bytes(self, step: str) -> int:
        """That of the block, and both results."""
        return self.target.memory_bytes(self.step) + 3 * self.target.output_bytes // max(self._verified.blocks_left, 1)

    def has_tables(self, step: str) -> bool:
        """None that stay."""
        return False
