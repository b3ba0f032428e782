"""A run: starting it, going on with it, saying how it stands. The run folder holds all that is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from neuroshed.engine.clusters import ClusterConfig
from neuroshed.engine.coordinator import Failure, Progress, Watcher, execute, ordered, restore
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.stages.registry import load_stage, save_stage, stage_digest
from neuroshed.storage.files import make_folder, replace_file
from neuroshed.workflow.config import parse
from neuroshed.workflow.plan import Plan, make_plan

Summary = dict[str, Any]
WORKFLOW_FILE = "workflow.yaml"
PLAN_FILE = "plan.json"


def start(plan: Plan, watch: Watcher = lambda progress: None) -> Summary:
    """Run what is missing of a plan and return the summary, which is also written to `summary.json`.

    Raises `RunFailedError` (with the summary as its `summary`) if blocks failed.
    """
    make_folder(plan.run_folder)
    workflow = plan.workflow.model_dump(mode="json", exclude_none=True)
    # Paths as they are meant from anywhere: `resume` may be called in another folder.
    given = plan.workflow
    workflow |= {
        key: str(path.expanduser().resolve()) for key in ("image", "affinities") if (path := getattr(given, key))
    }
    workflow |= {"output": str(plan.run_folder)}
    replace_file(plan.run_folder / WORKFLOW_FILE, yaml.safe_dump(workflow, sort_keys=False).encode())
    path = save_stage(plan.segment)
    last = {"last": str(path.relative_to(plan.run_folder))}
    replace_file(plan.run_folder / PLAN_FILE, json.dumps(last).encode())
    return run_stages(plan.run_folder, plan.stages, plan.workflow.cluster, watch)


def run_stages(run_folder: Path, stages: Sequence[Stage], cluster: ClusterConfig, watch: Watcher) -> Summary:
    """Execute stages and sum up; raises `RunFailedError` if any block is not done at the end."""
    begin = time.monotonic()
    progress = execute(run_folder, stages, cluster, watch)
    summary = summarise(run_folder, stages, progress) | {"wall_seconds": round(time.monotonic() - begin, 3)}
    replace_file(run_folder / "summary.json", json.dumps(summary, indent=2).encode())
    if summary["status"] != "done":
        error = RunFailedError(_failure_text(run_folder, progress.failures))
        error.summary = summary
        raise error
    return summary


def resume(run_folder: Path, watch: Watcher = lambda progress: None) -> Summary:
    """Go on with a run where it stopped; failed blocks are tried again.

    Raises `WorkflowError` if an input or the model is no longer what the run was planned with.
    """
    file = run_folder / WORKFLOW_FILE
    if not file.is_file():
        raise WorkflowError(f"{run_folder} holds no run ({WORKFLOW_FILE} is missing); start one with `neuroshed run`")
    plan = make_plan(parse(yaml.safe_load(file.read_text()), str(file)))
    changed = [
        difference
        for old, new in zip(planned_stages(run_folder), plan.stages, strict=False)
        if old.fingerprint != new.fingerprint and (difference := _difference(old, new))
    ]
    if changed:
        raise WorkflowError(
            f"run {run_folder} was planned with other inputs: {changed[0]}; put them back, or compute anew with "
            f"`neuroshed run {file}`"
        )
    return start(plan, watch)


def status(run_folder: Path) -> Summary:
    """How a run stands, from its folder alone; never disturbs a coordinator at work."""
    stages = planned_stages(run_folder)
    _, progress = restore(run_folder, stages)
    return summarise(run_folder, stages, progress)


def planned_stages(run_folder: Path) -> list[Stage]:
    """The stages of the newest plan of a run. Raises `InputError` if the folder holds none."""
    file = run_folder / PLAN_FILE
    if not file.is_file():
        raise InputError(f"{run_folder} holds no run ({PLAN_FILE} is missing); check the path")
    return ordered([_load(run_folder.resolve() / json.loads(file.read_text())["last"])])


def _load(path: Path) -> Stage:
    return load_stage(path, stage_digest(path) if path.exists() else None)


def summarise(run_folder: Path, stages: Sequence[Stage], progress: Progress) -> Summary:
    """Blocks by stage, failures, and the paths of outputs."""
    rows: dict[str, Any] = {}
    for stage in stages:
        counts = progress.stages.get(stage.fingerprint)
        if counts is not None:
            rows[stage.kind] = {
                "blocks": counts.total,
                "done": counts.done,
                "failed": counts.failed,
                "seconds": round(progress.seconds.get(stage.fingerprint, 0.0), 3),
            }
    complete = all(row["done"] == row["blocks"] for row in rows.values())
    outputs: dict[str, Any] = {}
    for stage in stages:
        outputs |= stage.report()
    return {
        "run": str(run_folder),
        "status": "done" if complete else "failed" if progress.failures else "unfinished",
        "stages": rows,
        "restored_blocks": progress.restored,
        "failures": [
            {"stage": f.stage, "step": f.step, "block": list(f.index), "error": f.error} for f in progress.failures
        ],
        **outputs,
    }


def _failure_text(run_folder: Path, failures: Sequence[Failure]) -> str:
    if not failures:
        return f"run {run_folder} ended with blocks that could not run; `neuroshed resume {run_folder}` goes on"
    first = failures[0]
    return (
        f"{len(failures)} blocks of run {run_folder} failed, the first of stage {first.stage} at {list(first.index)}: "
        f"{first.error}; mend the cause, then `neuroshed resume {run_folder}`"
    )


def _difference(old: Stage, new: Stage) -> str | None:
    """The first field of a stage itself, not of those it reads, that differs."""
    if type(old) is not type(new):
        return f"stage {old.kind} is now {new.kind}"
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name not in old.unhashed and not isinstance(before, Stage) and before != after:
            if isinstance(before, dict):
                keys = [key for key in before if before[key] != after.get(key)]
                return f"{old.kind}.{name}: {', '.join(keys)} of {before.get('path', 'the input')} changed"
            return f"{old.kind}.{name} was {before}, is {after}"
    return None
