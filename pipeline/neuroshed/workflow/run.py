"""A run: starting it, going on with it, saying how it stands. The run folder holds all that is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import yaml

from neuroshed.engine.clusters import ClusterConfig
from neuroshed.engine.coordinator import Failure, Progress, Watcher, execute, ordered, restore
from neuroshed.errors import InputError, RunFailedError, StorageFullError, WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.stages.predict import Predict
from neuroshed.stages.registry import parse_stage
from neuroshed.stages.segment import Segment
from neuroshed.storage.files import is_disk_full
from neuroshed.storage.journal import Journal
from neuroshed.storage.locations import Location
from neuroshed.workflow.config import parse, read_yaml
from neuroshed.workflow.plan import Plan, make_plan

Summary = dict[str, Any]
WORKFLOW_FILE = "workflow.yaml"
PLAN_FILE = "plan.json"


def start(plan: Plan, watch: Watcher = lambda progress: None) -> Summary:
    """Run what is missing of a plan and return the summary, which is also written to `summary.json`.

    Raises `RunFailedError` (with the summary as its `summary`) if blocks failed.
    """
    workflow = plan.workflow.model_dump(mode="json", exclude_none=True)
    source = plan.fragments.source
    if isinstance(source, Predict):
        # As it is meant from anywhere: `resume` may be called in another folder.
        workflow |= {"model": source.model}
    files = {
        WORKFLOW_FILE: yaml.safe_dump(workflow, sort_keys=False),
        PLAN_FILE: json.dumps([segment.model_dump(mode="json") for segment in plan.segments], indent=2),
    }
    again = f"`neuroshed resume {plan.run_folder}` goes on"
    return run_stages(plan.run_folder, plan.stages, plan.workflow.cluster, watch, files, again)


def run_stages(
    run_folder: Location,
    stages: Sequence[Stage],
    cluster: ClusterConfig,
    watch: Watcher,
    files: Mapping[str, str] | None = None,
    again: str = "the same command goes on",
) -> Summary:
    """Execute stages and sum up; `files` are put into the run folder before. `again` says how to go on after an error.

    Raises `RunFailedError` if any block is not done at the end, `StorageFullError` if the disk fills up,
    `WorkflowError` if the folder cannot be written or another coordinator works on the run.
    """
    begin = time.monotonic()
    # Nothing is written but by the one who holds the journal.
    with _told(run_folder, again), Journal(run_folder) as journal:
        for name, text in (files or {}).items():
            (run_folder / name).put(text.encode())
        progress = execute(journal, stages, cluster, watch)
        summary = summarise(run_folder, stages, progress) | {"wall_seconds": round(time.monotonic() - begin, 3)}
        (run_folder / "summary.json").put(json.dumps(summary, indent=2).encode())
    if summary["status"] != "done":
        error = RunFailedError(_failure_text(run_folder, progress.failures, again))
        error.summary = summary
        raise error
    return summary


@contextmanager
def _told(run_folder: Location, again: str) -> Iterator[None]:
    """Say in one line what the file system would not do, or that the cluster is gone."""
    try:
        yield
    except StorageFullError as error:
        raise StorageFullError(f"{error}; free some, then {again}") from error
    except OSError as error:
        if is_disk_full(error):
            raise StorageFullError(f"no space left for run {run_folder} ({error}); free some, then {again}") from error
        if error.errno is None:
            # No file has to do with it: Dask's connections end in such errors.
            raise RunFailedError(
                f"run {run_folder} lost its Dask scheduler ({error}); start it, then {again}"
            ) from error
        raise WorkflowError(
            f"run folder {run_folder} cannot be written ({error.strerror}: {error.filename}); "
            "choose another or mend its permissions"
        ) from error


def resume(run_folder: Location, watch: Watcher = lambda progress: None) -> Summary:
    """Go on with a run where it stopped; failed blocks are tried again.

    Raises `WorkflowError` if an input or the model is no longer what the run was planned with.
    """
    file = run_folder / WORKFLOW_FILE
    if not file.exists():
        raise WorkflowError(f"{run_folder} holds no run ({WORKFLOW_FILE} is missing); start one with `neuroshed run`")
    # The folder may have been moved.
    plan = make_plan(parse(read_yaml(str(file)) | {"output": str(run_folder)}, str(file)))
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


def status(run_folder: Location) -> Summary:
    """How a run stands, from its folder alone; never disturbs a coordinator at work."""
    stages = planned_stages(run_folder)
    _, progress = restore(run_folder, stages)
    return summarise(run_folder, stages, progress)


def planned_stages(run_folder: Location) -> list[Stage]:
    """The stages of the newest plan of a run. Raises `InputError` if the folder holds none."""
    file = run_folder / PLAN_FILE
    again = f"`neuroshed run {run_folder / WORKFLOW_FILE}` writes it anew and goes on"
    if not file.exists():
        remedy = again if (run_folder / WORKFLOW_FILE).exists() else "check the path"
        raise InputError(f"{run_folder} holds no run ({PLAN_FILE} is missing); {remedy}")
    try:
        values = json.loads(file.read_bytes())
        if not isinstance(values, list) or not values:
            raise ValueError("it lists no stages")
        values = [_moved(value, str(run_folder)) for value in values]
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); {again}") from error
    return ordered([parse_stage(json.dumps(value), file) for value in values])


def _moved(values: Any, run_folder: str) -> Any:
    """The same stages with their outputs in `run_folder`, which may have been moved since they were planned."""
    if not isinstance(values, dict):
        return values
    moved = {key: _moved(value, run_folder) for key, value in values.items()}
    return moved | {"run_folder": run_folder} if "run_folder" in values else moved


def summarise(run_folder: Location, stages: Sequence[Stage], progress: Progress) -> Summary:
    """Blocks by stage, failures, and the paths of outputs."""
    rows: dict[str, Any] = {}
    for stage in stages:
        counts = progress.stages.get(stage.fingerprint)
        if counts is not None:
            rows[stage.title] = {
                "blocks": counts.total,
                "done": counts.done,
                "failed": sum(failure.stage == stage.title for failure in progress.failures),
                "seconds": round(progress.seconds.get(stage.fingerprint, 0.0), 3),
            }
    complete = all(row["done"] == row["blocks"] for row in rows.values())
    outputs: dict[str, Any] = {}
    for stage in stages:
        for name, found in stage.report().items():
            outputs[name] = outputs.get(name, {}) | found if isinstance(found, dict) else found
    largest, alarms = _largest(stages, progress)
    return {
        "run": str(run_folder),
        "status": "done" if complete else "failed" if progress.failures else "unfinished",
        "stages": rows,
        "restored_blocks": progress.restored,
        "largest_segments": largest,
        "alarms": alarms,
        "failures": [
            {"stage": f.stage, "step": f.step, "block": list(f.index), "error": f.error, "trace": f.trace}
            for f in progress.failures
        ],
        **outputs,
    }


def _largest(stages: Sequence[Stage], progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """The largest segment at each threshold, and a warning for each that holds too much of the region."""
    found, alarms = {}, []
    for stage in stages:
        voxels, segment = progress.largest.get(stage.fingerprint, (0, 0))
        if not isinstance(stage, Segment) or not voxels:
            continue
        share = voxels / stage.agglomerate.fragments.region.size
        found[stage.threshold] = {"segment": segment, "voxels": voxels, "share": round(share, 6)}
        if share > stage.alarm_share:
            alarms.append(
                f"at {stage.threshold} segment {segment} holds {share:.1%} of the region (alarm at "
                f"{stage.alarm_share:.1%}), most likely by a false merge; try a higher threshold, agglomerate.max_size "
                "or semantics"
            )
    return found, alarms


def _failure_text(run_folder: Location, failures: Sequence[Failure], again: str) -> str:
    if not failures:
        return f"run {run_folder} ended with blocks that could not run; {again}"
    first, number = failures[0], len(failures)
    return (
        f"{number} block{'s' if number > 1 else ''} of run {run_folder} failed, the first of stage {first.stage} at "
        f"{list(first.index)}: {first.error}; mend the cause, then {again}"
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
