"""`neuroshed volume check`: which files of a volume are damaged, and how they come back.

A volume of a run lies in the folder of its stage. Which blocks wrote the damaged files is geometry; that they are to be
computed again is told to the run's journal as if their outputs had been dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage, Step
from neuroshed.stages.check import Check
from neuroshed.stages.registry import parse_stage
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.ledger import runs_of
from neuroshed.storage.locations import Location
from neuroshed.storage.shards import DataFile, Fault
from neuroshed.storage.volumes import Volume, open_volume
from neuroshed.workflow.folder import PLAN_FILE
from neuroshed.workflow.provenance import user
from neuroshed.workflow.run import moved
from neuroshed.workflow.summary import Summary
from neuroshed.workflow.target import PathLike, quiet
from neuroshed.workflow.work import work_on

STAGE_FILE = "stage.json"


@dataclass(frozen=True)
class Writer:
    """The step of a run whose blocks wrote a volume."""

    stage: Stage
    step: Step
    stood: npt.NDArray[np.bool_]
    """What `standing` said when this was found."""

    @classmethod
    def of(cls, stage: Stage, step: Step) -> Writer:
        """What is known of it now."""
        return cls(stage, step, _standing(stage, step))

    def wrote(self, files: Iterable[DataFile]) -> dict[DataFile, list[Vec]]:
        """The blocks that wrote each file. Left out are files of blocks that were not done when this was found, or are
        not any more: the run may have gone on meanwhile.
        """
        stands, grid = self.stood & _standing(self.stage, self.step), self.step.grid
        found = {file: [block for block in grid.touching(file.box) if stands[grid.position(block)]] for file in files}
        return {file: blocks for file, blocks in found.items() if blocks}


def _standing(stage: Stage, step: Step) -> npt.NDArray[np.bool_]:
    """Blocks whose files must be there, in raster order: those that are done and were not dropped since."""
    ledger, key = read_ledger(stage.run_folder), (stage.fingerprint, step.name, step.grid)
    return ledger.done(*key) & ~ledger.dropped(*key)


def volume_check(
    volume: str | os.PathLike[str],
    *,
    redo: bool = False,
    work: PathLike | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Read every file of a Zarr volume: how many `files` it has, how many are `missing` (they read as fill values), and
    those `damaged`: file, `kind` (missing, empty, damaged, unreadable), `reason`, and the `box` and `channels` that it
    holds.

    Files that are missing are damage where all were written: in volumes that `import` and `volume crop` made (`whole`),
    and in those of a run where blocks are done. Of the latter `run` names folder, stage, step, the `blocks` to compute
    again and the `commands` for it. With `redo` these are forgotten, so that `resume` computes them.

    What is found is kept in a folder `work` until all is: broken off, the same call goes on, unless the volume is
    another by then. Of the files that were read, only those that were damaged are looked at again.

    Raises `WorkflowError` for `redo` without a run, or while somebody works on it.
    """
    opened = open_volume(volume)
    writer = find_writer(opened)
    if redo and writer is None:
        raise WorkflowError(
            f"{opened.path} is not of a run, so nothing can compute it again; bring it back from where it came from"
        )
    with work_on("check", work, (opened.path,)) as check:
        stage = Check.of(check.run_folder, opened, list_missing=opened.whole or writer is not None)
        resumed = check.run(stage, cluster, watch, failure_code=2)
        files, missing, broken = stage.found()
        wrote = {} if writer is None else writer.wrote(fault.file for fault in broken)
        if writer is not None:
            broken = [fault for fault in broken if fault.file in wrote]
        if resumed:
            # They may have come back since.
            broken, back = stage.look_again(broken)
            missing -= back
    told = {
        "volume": str(opened.path),
        "files": files,
        "missing": missing,
        "missing_share": round(missing / files, 6),
        "whole": opened.whole,
        "damaged": [_row(fault) for fault in broken],
        "run": None,
    }
    if writer is not None:
        blocks = sorted({block for fault in broken for block in wrote[fault.file]})
        told["run"] = _told_of_run(writer, opened.path, blocks, redo)
        if redo and blocks:
            forget(writer, blocks)
    return told


def find_writer(volume: Volume) -> Writer | None:
    """The step of a run that writes a volume, if its stage's file is in the folder above it; raises `InputError` if
    that file cannot be read.
    """
    for folder in (volume.path.parent, volume.path.parent.parent):
        file = folder / STAGE_FILE
        if volume.path.can_list and file.size() and (folder.parent / PLAN_FILE).exists():
            text = file.read_bytes()
            parse_stage(text, file)
            # The run may have been moved since.
            stage = parse_stage(json.dumps(moved(json.loads(text), str(folder.parent))), file)
            for step in stage.steps:
                if any(volume.path.is_relative_to(found.path) for found in stage.written(step.name)):
                    return Writer.of(stage, step)
    return None


def _told_of_run(writer: Writer, path: Location, blocks: Sequence[Vec], redo: bool) -> Summary:
    run_folder = writer.stage.run_folder
    return {
        "folder": str(run_folder),
        "stage": writer.stage.title,
        "step": writer.step.name,
        "blocks": [list(block) for block in blocks],
        "forgotten": redo,
        "commands": [*([] if redo else [f"neuroshed volume check {path} --redo"]), f"neuroshed resume {run_folder}"],
    }


def forget(writer: Writer, blocks: Sequence[Vec]) -> None:
    """Have the run's next session compute blocks again, as far as they are needed; their files go.

    Raises `WorkflowError` if somebody works on the run.
    """
    stage, step = writer.stage, writer.step
    with Journal(stage.run_folder, user()) as journal:
        part = journal.part(stage.fingerprint, step.name, step.grid)
        places = runs_of([step.grid.position(block) for block in blocks])
        # First nothing is believed of them any more.
        journal.append([{"e": "dropped", "id": part, "at": places}])
        journal.flush()
        for block in blocks:
            stage.drop(step.name, block)


def _row(fault: Fault) -> dict[str, Any]:
    file = fault.file
    return {
        "file": str(file.place),
        "kind": fault.kind,
        "reason": fault.reason,
        "box": [list(file.box.start), list(file.box.stop)],
        "channels": None if file.channels is None else list(file.channels),
    }
