"""Is what stands in a run folder what computing it again gives? A sample of blocks of every step, or all."""

from __future__ import annotations

import random
import uuid
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options, restore
from neuroshed.engine.progress import Watcher
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage, Step
from neuroshed.stages.verify import Verify
from neuroshed.storage.journal import read_ledger
from neuroshed.storage.ledger import Ledger
from neuroshed.storage.locations import Location
from neuroshed.workflow.config import parse, read_yaml
from neuroshed.workflow.folder import WORKFLOW_FILE
from neuroshed.workflow.run import planned_droppable, planned_stages, run_stages
from neuroshed.workflow.summary import Summary


def verify(
    run_folder: Location,
    blocks: int | None = 3,
    seed: int = 0,
    cluster: ClusterConfig | None = None,
    watch: Watcher = lambda progress: None,
) -> Summary:
    """Compute `blocks` blocks of each step of the run again (None: all), picked by `seed`, and compare.

    Stages that are not done are left out and listed as `unfinished`; those of which outputs were dropped, or outputs
    that they read, as `dropped`. Raises `RunFailedError` if any block differs or cannot be computed again,
    `WorkflowError` if nothing is left to verify.
    """
    stages = planned_stages(run_folder)
    ledger = read_ledger(Location.of(run_folder))
    _, progress, _ = restore(ledger, stages, planned_droppable(run_folder, stages))
    dropped = {
        stage.fingerprint
        for stage in stages
        if any(ledger.dropped(stage.fingerprint, step.name, step.grid).any() for step in stage.steps)
    }
    done = [s for s in stages if s.steps and s.fingerprint not in progress.lost and _done(s, ledger)]
    whole = [stage for stage in done if dropped.isdisjoint(read.fingerprint for read in (stage, *stage.upstream))]
    left_out = {
        "unfinished": [stage.title for stage in stages if stage.steps and stage not in done],
        "dropped": [stage.title for stage in done if stage not in whole],
    }
    if not whole:
        raise WorkflowError(_nothing(run_folder, left_out))
    rng = random.Random(seed)
    # In the run folder, since workers must see it.
    scratch = run_folder / f"verify-{uuid.uuid4().hex[:12]}"
    checks = [
        Verify(run_folder=scratch, target=stage, step=step.name, picked=_picked(step, blocks, rng))
        for stage in whole
        for step in stage.steps
    ]
    file = run_folder / WORKFLOW_FILE
    workflow = parse(read_yaml(str(file)), str(file))
    options = Options(cluster=cluster or workflow.cluster, failures=workflow.failures, watch=watch)
    try:
        again = f"`neuroshed verify {run_folder}` checks again"
        summary = run_stages(scratch, checks, options, again=again)
    except RunFailedError as error:
        error.summary = (error.summary or {}) | {"run": str(run_folder), **left_out}
        raise
    finally:
        with suppress(OSError):
            scratch.delete_tree()
    return {
        "run": str(run_folder),
        "status": "equal",
        "stages": summary["stages"],
        **left_out,
        "wall_seconds": summary["wall_seconds"],
    }


def _nothing(run_folder: Location, left_out: dict[str, list[str]]) -> str:
    if left_out["dropped"]:
        return (
            f"run {run_folder} cannot be verified: what {', '.join(left_out['dropped'])} wrote or read was deleted, as "
            "its `keep` says; a run that keeps merges and affinities can"
        )
    return f"run {run_folder} has no finished stage to verify; `neuroshed resume {run_folder}` goes on"


def _done(stage: Stage, ledger: Ledger) -> bool:
    """Whether all blocks are done that masks do not leave out."""

    def gone(step: Step) -> npt.NDArray[np.bool_]:
        asked = stage.fingerprint, step.name, step.grid
        return ledger.done(*asked) | ledger.dropped(*asked) | _left_out(step)

    return all(gone(step).all() for step in stage.steps)


def _left_out(step: Step) -> npt.NDArray[np.bool_]:
    return np.zeros(len(step.grid), np.bool_) if step.skipped is None else step.skipped.ravel()


def _picked(step: Step, blocks: int | None, rng: random.Random) -> tuple[Vec, ...] | None:
    there = np.flatnonzero(~_left_out(step))
    if blocks is None or blocks >= there.size:
        return None
    return tuple(step.grid.index(int(there[place])) for place in sorted(rng.sample(range(there.size), blocks)))
