"""What runs inside a worker: load the stage once, compute the blocks asked for, say how it went."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from neuroshed.geometry import Vec
from neuroshed.stages.registry import load_stage
from neuroshed.storage.files import is_disk_full
from neuroshed.storage.locations import Location


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one block went: `error` is None if its outputs stand whole on disk."""

    index: Vec
    seconds: float
    voxels: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    trace: str = ""
    disk_full: bool = False
    worker_died: bool = False
    """Its process ended while the block was there, perhaps through another block."""


def run_blocks(stage_file: Location, digest: str, step: str, indices: list[Vec]) -> list[Outcome]:
    """Run several blocks of one step; a block that fails says so in its outcome and never stops the others.

    `digest` is that of the stage's file, so that a worker that lives on between runs never uses a stale one.
    """
    return [_run_block(stage_file, digest, step, index) for index in indices]


def _run_block(stage_file: Location, digest: str, step: str, index: Vec) -> Outcome:
    start = time.perf_counter()
    try:
        done = load_stage(stage_file, digest).run(step, index)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        trace, full = traceback.format_exc(), is_disk_full(error)
        return Outcome(index, time.perf_counter() - start, error=text, trace=trace, disk_full=full)
    return Outcome(index, time.perf_counter() - start, done.voxels, done.figures)
