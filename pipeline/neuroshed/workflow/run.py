"""A run: starting it, going on with it, trying again what failed. The run folder holds all that is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import yaml

from neuroshed.engine.control import Wish
from neuroshed.engine.coordinator import Options, execute, ordered, restore
from neuroshed.engine.progress import Failure, Progress
from neuroshed.engine.readiness import Key
from neuroshed.errors import InputError, RunFailedError, RunStoppedError, StorageFullError, WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.predict import Predict
from neuroshed.stages.registry import parse_stage
from neuroshed.storage.coarse import Coarse
from neuroshed.storage.files import is_disk_full
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.locations import Location
from neuroshed.storage.networks import open_model
from neuroshed.workflow.config import parse, read_yaml
from neuroshed.workflow.folder import MODEL_CARD_FILE, PLAN_FILE, SUMMARY_FILE, WORKFLOW_FILE
from neuroshed.workflow.monitor import MonitorOptions
from neuroshed.workflow.plan import Plan, droppable_steps, make_plan
from neuroshed.workflow.provenance import user
from neuroshed.workflow.sessions import attended
from neuroshed.workflow.summary import Summary, failure_text, stopped_text, summarise


def start(plan: Plan, options: Options | None = None) -> Summary:
    """Run what is missing of a plan and return the summary, which is also written to `summary.json`.

    Cluster, failures and what may be dropped are those of the plan. Raises `RunFailedError` (with the summary as its
    `summary`) if blocks failed, `RunStoppedError` if somebody asked for it.
    """
    workflow = plan.workflow.model_dump(mode="json", exclude_none=True)
    source = plan.fragments.source
    if isinstance(source, Predict):
        # As it is meant from anywhere: `resume` may be called in another folder.
        model = source.model
        workflow |= {"model": model if isinstance(model, str) else model.model_dump(mode="json", exclude_none=True)}
    files = {
        WORKFLOW_FILE: yaml.safe_dump(workflow, sort_keys=False),
        PLAN_FILE: json.dumps([stage.model_dump(mode="json") for stage in plan.last], indent=2),
    }
    if isinstance(source, Predict):
        files[MODEL_CARD_FILE] = open_model(source.model).describe()
    again = f"`neuroshed resume {plan.run_folder}` goes on"
    given = plan.workflow
    used = replace(
        options or Options(), cluster=given.cluster, failures=given.failures, droppable=frozenset(plan.droppable)
    )
    return run_stages(plan.run_folder, plan.stages, used, files, again, given.monitor)


def run_stages(
    run_folder: Location,
    stages: Sequence[Stage],
    options: Options,
    files: Mapping[str, str] | None = None,
    again: str = "the same command goes on",
    monitor: MonitorOptions | None = None,
) -> Summary:
    """Execute stages and sum up; `files` are put into the run folder before. `again` says how to go on after an error.

    Raises `RunFailedError` if any block is not done at the end, `RunStoppedError` if that was asked for,
    `StorageFullError` if the disk or store fills up, `WorkflowError` if the folder cannot be written or another
    coordinator works on the run.
    """
    begin = time.monotonic()
    # Nothing is written but by the one who holds the journal.
    with (
        _told(run_folder, again),
        Journal(run_folder, user()) as journal,
        attended(journal, stages, options, monitor) as used,
    ):
        for name, text in (files or {}).items():
            (run_folder / name).put(text.encode())
        progress = execute(journal, stages, used)
        summary = summarise(run_folder, stages, progress, used.droppable)
        summary |= {"wall_seconds": round(time.monotonic() - begin, 3)}
        (run_folder / SUMMARY_FILE).put(json.dumps(summary, indent=2).encode())
        if summary["status"] != "done":
            raise _not_done(run_folder, progress, options, summary, again)
    return summary


def _not_done(
    run_folder: Location, progress: Progress, options: Options, summary: Summary, again: str
) -> RunFailedError | RunStoppedError:
    error: RunFailedError | RunStoppedError
    if options.control.wish != Wish.RUN:
        error = RunStoppedError(stopped_text(run_folder, progress.failures, options.control.reason, again))
    else:
        error = RunFailedError(failure_text(run_folder, progress.failures, again))
    error.summary = summary
    return error


@contextmanager
def _told(run_folder: Location, again: str) -> Iterator[None]:
    """Say in one line what the file system would not do, or that the cluster is gone."""
    try:
        yield
    except StorageFullError as error:
        raise StorageFullError(f"{error}; free some, then {again}") from error
    except RunFailedError as error:
        # With a summary it says so already.
        if hasattr(error, "summary"):
            raise
        raise RunFailedError(f"{error}; then {again}") from error
    except (OSError, WorkflowError) as error:
        if is_disk_full(error):
            raise StorageFullError(f"no space left for run {run_folder} ({error}); free some, then {again}") from error
        if isinstance(error, WorkflowError):
            raise
        if error.errno is None:
            # No file has to do with it: Dask's connections end in such errors.
            raise RunFailedError(
                f"run {run_folder} lost its Dask scheduler ({error}); start it, then {again}"
            ) from error
        raise WorkflowError(
            f"run folder {run_folder} cannot be written ({error.strerror}: {error.filename}); "
            "choose another or mend its permissions"
        ) from error


def resumed(run_folder: Location, cluster: str | None = None) -> Plan:
    """The plan with which a run goes on, on another `cluster` than before if one is named.

    Raises `WorkflowError` if an input or the model is no longer what the run was planned with.
    """
    file = run_folder / WORKFLOW_FILE
    if not file.exists():
        raise WorkflowError(f"{run_folder} holds no run ({WORKFLOW_FILE} is missing); start one with `neuroshed run`")
    # The folder may have been moved.
    changed_place = {"output": str(run_folder), **({"cluster": cluster} if cluster else {})}
    plan = make_plan(parse(read_yaml(str(file)) | changed_place, str(file)))
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
    return plan


def resume(run_folder: Location, options: Options | None = None, cluster: str | None = None) -> Summary:
    """Go on with a run where it stopped; failed blocks are tried again. Raises what `resumed` and `start` raise."""
    return start(resumed(run_folder, cluster), options)


def retry(
    run_folder: Location,
    stage: str | None = None,
    blocks: Collection[Vec] = (),
    options: Options | None = None,
    cluster: str | None = None,
) -> Summary:
    """Go on with a run, and of the blocks that failed try only those of `stage` and among `blocks` again (both if they
    are given, all of them if none is). Raises `WorkflowError` if none is meant, and what `resume` raises.
    """
    check_retry(run_folder, stage, blocks)
    used = replace(options or Options(), again=lambda failure: is_meant(failure, stage, blocks))
    return resume(run_folder, used, cluster)


def check_retry(run_folder: Location, stage: str | None, blocks: Collection[Vec]) -> list[Failure]:
    """The blocks that `retry` would try again. Raises `WorkflowError` if there is none."""
    stages = planned_stages(run_folder)
    _, progress, _ = restore(read_ledger(run_folder), stages)
    found = [failure for failure in progress.failures if is_meant(failure, stage, blocks)]
    if found:
        return found
    if not progress.failures:
        raise WorkflowError(
            f"run {run_folder} has no failed blocks; `neuroshed resume {run_folder}` goes on with what is not done"
        )
    failures = sorted(progress.failures, key=lambda failure: (failure.stage, failure.index))
    listed = [f"{failure.stage} {','.join(map(str, failure.index))}" for failure in failures]
    shown = "; ".join(listed[:10]) + (f"; and {len(listed) - 10} more" if len(listed) > 10 else "")
    asked = [*([f"stage {stage}"] if stage else []), *(f"block {','.join(map(str, block))}" for block in blocks)]
    raise WorkflowError(f"no failed block of run {run_folder} matches {', '.join(asked)}; failed are {shown}")


def is_meant(failure: Failure, stage: str | None, blocks: Collection[Vec]) -> bool:
    """Whether a failure is of a stage, given by its title or the first word of it, and one of the blocks.

    >>> is_meant(Failure("segment 0.5", "paint", (0, 1, 2), "", ""), "segment", [(0, 1, 2)])
    True
    """
    of_stage = stage is None or stage in (failure.stage, failure.stage.partition(" ")[0])
    return of_stage and (not blocks or failure.index in blocks)


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
        values = [moved(value, str(run_folder)) for value in values]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}); {again}") from error
    return ordered([parse_stage(json.dumps(value), file) for value in values])


def planned_droppable(run_folder: Location, stages: Sequence[Stage]) -> set[Key]:
    """Those steps of a run's stages whose outputs its workflow does not keep."""
    file = str(run_folder / WORKFLOW_FILE)
    return droppable_steps(stages, parse(read_yaml(file), file).keep)


def moved(values: Any, run_folder: str) -> Any:
    """The same stages with their outputs in `run_folder`, which may have been moved since they were planned."""
    if not isinstance(values, dict):
        return values
    there = {key: moved(value, run_folder) for key, value in values.items()}
    return there | {"run_folder": run_folder} if "run_folder" in values else there


def _difference(old: Stage, new: Stage) -> str | None:
    """The first field of a stage itself, not of those it reads, that differs."""
    if type(old) is not type(new):
        return f"stage {old.kind} is now {new.kind}"
    for name in type(old).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if name not in old.unhashed and not isinstance(before, Stage) and before != after:
            return f"{old.kind}.{name}{_told_difference(before, after)}"
    return None


def _told_difference(before: Any, after: Any) -> str:
    """How the value of a field differs; of inputs, of several the first that does, it is enough to know in what."""
    if isinstance(before, tuple) and any(isinstance(item, Coarse) for item in before) and len(before) == len(after):
        before, after = next(pair for pair in zip(before, after, strict=True) if pair[0] != pair[1])
    if isinstance(before, Coarse) and isinstance(after, Coarse) and before.identity != after.identity:
        before, after = before.identity, after.identity
    if isinstance(before, dict):
        keys = [key for key in before if before[key] != after.get(key)]
        return f": {', '.join(keys)} of {before.get('path', 'the input')} changed"
    return f" was {before}, is {after}"
