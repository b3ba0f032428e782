"""What runs inside a worker: load the stage once, compute the blocks asked for, say how it went."""

from __future__ import annotations

import functools
import os
import socket
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from neuroshed.engine.capture import kept_lines
from neuroshed.engine.failures import bounded_trace, error_line, is_device_fault
from neuroshed.engine.watchdog import limit
from neuroshed.geometry import Grid
from neuroshed.stages.base import Done, Stage
from neuroshed.stages.registry import load_stage
from neuroshed.storage.files import is_disk_full
from neuroshed.storage.locations import Location
from neuroshed.storage.readback import reading_back


@dataclass(frozen=True, slots=True)
class Job:
    """Blocks of one step that travel together.

    `digest` is that of the stage's file, so that a worker that lives on between runs never uses a stale one.
    """

    stage_file: str
    digest: str
    step: str
    positions: tuple[int, ...]
    """Places of the blocks in raster order of the step's grid."""
    seconds: float | None = None
    """Time limit of each block."""
    verify: bool = False
    """Whether what a block writes is read back and compared."""
    check: bool = False
    """Whether the outputs of a block are opened and checked after it."""
    own_process: bool = False
    """Whether the worker is a process that can be started again when its GPU has failed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A block that raised an error."""

    position: int
    error: str
    """Type and first line of the text."""
    trace: str
    log: tuple[str, ...]
    """The last lines that were logged while it ran."""
    disk_full: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """How a job went. Blocks that are neither done nor failed were not tried."""

    done: tuple[int, ...]
    """Blocks whose outputs stand whole at their final place."""
    seconds: float
    """Spent in those blocks."""
    figures: dict[str, Any]
    """What they say of themselves, added up; under `largest` the largest segment: its voxels and id."""
    failed: tuple[Failed, ...]
    host: str
    worker: str
    busy: float
    """Seconds that the whole job took."""
    device_fault: Failed | None = None
    """The block at which the GPU failed, after which nothing can be computed in this process."""


def run_job(job: Job) -> Report:
    """Run the blocks of a job one after another. A block that fails says so in the report and never stops the others,
    unless the disk is full or the GPU has failed, which ends the job.
    """
    start = time.perf_counter()
    done, seconds, failed = [], 0.0, []
    figures: dict[str, Any] = {"voxels": 0}
    fault = None
    with kept_lines() as lines:
        for position in job.positions:
            lines.clear()
            begin = time.perf_counter()
            try:
                result = _run_block(job, position)
            except (KeyboardInterrupt, SystemExit):
                raise
            # Libraries written in Rust panic with errors that are no `Exception`.
            except BaseException as error:
                failed.append(_failed(position, error, tuple(lines), time.perf_counter() - begin))
                if job.own_process and is_device_fault(error):
                    fault = failed.pop()
                    break
                if failed[-1].disk_full:
                    break
                continue
            seconds += time.perf_counter() - begin
            done.append(position)
            _add(figures, result)
    busy = time.perf_counter() - start
    return Report(tuple(done), seconds, figures, tuple(failed), socket.gethostname(), _worker_name(), busy, fault)


def _run_block(job: Job, position: int) -> Done:
    stage, grid = _load(job.stage_file, job.digest, job.step)
    index = grid.index(position)
    with limit(job.seconds, f"{stage.title} {job.step or 'blocks'} {list(index)}"):
        with reading_back() if job.verify else nullcontext():
            done = stage.run(job.step, index)
        if job.check:
            stage.check_outputs(job.step, index)
    return done


@functools.lru_cache(maxsize=64)
def _load(stage_file: str, digest: str, step: str) -> tuple[Stage, Grid]:
    stage = load_stage(Location.of(stage_file), digest)
    return stage, {known.name: known.grid for known in stage.steps}[step]


def _failed(position: int, error: BaseException, log: tuple[str, ...], seconds: float) -> Failed:
    text = error_line(f"{type(error).__name__}: {error}")
    trace = bounded_trace("".join(traceback.format_exception(error)))
    return Failed(position, text, trace, log, is_disk_full(error), seconds)


def _add(figures: dict[str, Any], done: Done) -> None:
    """Take in the figures of a block."""
    figures["voxels"] += done.voxels
    values = dict(done.figures)
    if "largest_voxels" in values:
        found = [int(values.pop("largest_voxels")), int(values.pop("largest_segment"))]
        # Of equals the one with the smaller id, whatever the order in which blocks end.
        figures["largest"] = max(figures.get("largest", found), found, key=lambda size: (size[0], -size[1]))
    for name, value in values.items():
        figures[name] = figures.get(name, 0) + value


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return f"process {os.getpid()}"
