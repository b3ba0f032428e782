"""What a stage is: parameters that say all, steps whose needs are geometry alone, and a function of one block.

A stage is a frozen pydantic model that holds the stages it reads from. From its parameters, its algorithm's version and
the fingerprints of those stages follows its own fingerprint, and from that the folder its outputs lie in: changed
parameters can never mix with old results. Workers load a stage from the `stage.json` in that folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec, sub
from neuroshed.storage.locations import Location
from neuroshed.storage.many import delete_all, lacking
from neuroshed.storage.volumes import Volume


@dataclass(frozen=True, slots=True)
class Need:
    """A block needs what `step` of the stage `fingerprint` writes to the block's box grown by `low` and `high`
    voxels.
    """

    fingerprint: str
    step: str
    low: Vec = (0, 0, 0)
    high: Vec = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One pass of a stage over one grid. Most stages have one; trees have one a level and direction."""

    name: str
    grid: Grid
    needs: tuple[Need, ...] = ()
    skipped: npt.NDArray[np.bool_] | None = field(default=None, compare=False, repr=False)
    """Blocks that are left out, bool `(z, y, x)` over the grid; None: no one. What reads them takes them for empty."""

    def holds(self, index: Vec) -> bool:
        """Whether there is a block of that index that is not left out."""
        return self.grid.holds(index) and (self.skipped is None or not self.skipped[sub(index, self.grid.first)])

    @property
    def blocks_left(self) -> int:
        """How many blocks are not left out."""
        return len(self.grid) - (0 if self.skipped is None else int(np.count_nonzero(self.skipped)))

    @property
    def voxels_left(self) -> int:
        """Upper bound of the voxels in those blocks."""
        return min(self.grid.box.size, self.blocks_left * math.prod(self.grid.block_shape))


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished block reports: the voxels it wrote and figures for the summary."""

    voxels: int
    figures: Mapping[str, float] = field(default_factory=dict)


class Stage(BaseModel, ABC):
    """Base of all stages. Subclasses set `kind`, `version`, `steps` and `run`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    kind: str
    """Name of the stage, as a user sees it."""
    run_folder: Location
    """The run that the outputs belong to; not part of the fingerprint."""

    _standing: tuple[Location, str] | None = None
    """Where other steps' tables lie than those of the step that is named."""

    version: ClassVar[int] = 1
    """Raised whenever the same parameters would give other bytes."""
    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder"})
    """Fields that do not change any output byte."""

    @property
    def title(self) -> str:
        """The stage's name in summaries; differs between stages of one kind in one run."""
        return self.kind

    @property
    def upstream(self) -> tuple[Stage, ...]:
        """The stages whose outputs this one reads."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(value for value in values if isinstance(value, Stage))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the bytes of the outputs."""
        own = {
            name: value.fingerprint if isinstance(value, Stage) else self.model_dump(mode="json", include={name})[name]
            for name, value in ((name, getattr(self, name)) for name in type(self).model_fields)
            if name not in self.unhashed
        }
        text = json.dumps([type(self).version, own], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder(self) -> Location:
        """Where the outputs lie."""
        return self.run_folder / f"{self.kind}-{self.fingerprint[:12]}"

    @property
    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """The passes of this stage, each after those it needs; none for data that is there already."""

    def prepare(self) -> None:
        """Create what blocks write into. Called once by the coordinator before the first block; may be called again."""
        for step in self.steps:
            if self.has_tables(step.name):
                (self.folder / (step.name or "blocks")).make_folder()
            # Asked for, volumes are there.
            self.written(step.name)

    @abstractmethod
    def run(self, step: str, index: Vec) -> Done:
        """Compute and write one block. Outputs stand whole at their final place, synced to disk, before it returns.

        Raises `BlockError` if the block's data cannot give a result.
        """

    @abstractmethod
    def memory_bytes(self, step: str) -> int:
        """Predicted peak memory of one block's task, in bytes, beyond what an idle worker holds."""

    def resource(self, step: str) -> Literal["cpu", "gpu"]:
        """What kind of worker runs a step."""
        return "cpu"

    @property
    def output_bytes(self) -> int:
        """Bytes of the arrays that the stage writes, before compression; tables are small beside them."""
        return 0

    def shards(self, step: str) -> Vec | None:
        """Sides of the files of the array that a step's blocks write, in the voxels of its grid; None: it writes none,
        or nobody plans how many.
        """
        return None

    @property
    def output_files(self) -> int:
        """Upper bound of the tables and shards that the stage writes; exact if no block is left out."""
        count = 0
        for step in self.steps:
            count += step.blocks_left if self.has_tables(step.name) else 0
            if sides := self.shards(step.name):
                in_block = math.prod(-(-b // s) for b, s in zip(step.grid.block_shape, sides, strict=True))
                count += min(step.blocks_left * in_block, len(Grid(step.grid.box, sides)))
        return count

    def node_path(self, step: str, index: Vec) -> Location:
        """Where a block or tree node keeps its tables."""
        standing, anew = self._standing or (self.folder, step)
        folder = self.folder if step == anew else standing
        return folder / f"{step or 'blocks'}/{'_'.join(map(str, index))}.parquet"

    def elsewhere(self, run_folder: Location, step: str) -> Self:
        """The same stage with its outputs in another run; tables of steps other than `step` are read where they are."""
        # Built anew, not copied: a copy would share what this has opened, and write into it.
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        other = type(self)(**fields | {"run_folder": run_folder})
        other._standing = self.folder, step
        return other

    def has_tables(self, step: str) -> bool:
        """Whether a step's blocks write tables, at `node_path`."""
        return True

    def written(self, step: str) -> tuple[Volume, ...]:
        """The volumes that a step's blocks write, created if they are not there."""
        return ()

    def writes(self, step: str, index: Vec) -> Box:
        """The voxels of the step's volumes that a block writes."""
        return next(found.grid for found in self.steps if found.name == step).block_box(index)

    def outputs(self, step: str, index: Vec) -> tuple[Location, ...]:
        """The files that a block writes: its tables, and the shards of its box in each volume."""
        box = self.writes(step, index)
        tables = [self.node_path(step, index)] if self.has_tables(step) else []
        return (*tables, *(file for volume in self.written(step) for file in volume.files(box)))

    def check_outputs(self, step: str, index: Vec) -> None:
        """Raise `BlockError` naming a file of a finished block that is missing or empty."""
        if (file := lacking(self.outputs(step, index))) is not None:
            raise BlockError(
                f"{file} is missing or empty, though its block is done; see that nothing removes files of the run and "
                "that its disk or store keeps what is written"
            )

    def drop(self, step: str, index: Vec) -> None:
        """Delete the files of a block, if they are there."""
        delete_all(self.outputs(step, index))

    @property
    def marks(self) -> tuple[Location, ...]:
        """What stands as long as the outputs do: if one of these is gone, no block counts as done any more."""
        return (self.folder / "stage.json",)

    def report(self) -> dict[str, Any]:
        """Paths of the outputs, for the summary. Opens and creates nothing."""
        return {}
