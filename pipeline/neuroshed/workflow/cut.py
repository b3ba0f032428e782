"""More segmentations from a finished run: other thresholds of the merges that it has recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

import yaml

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options, restore
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.kernels.merging import integer_threshold
from neuroshed.kernels.scores import TOP_SCORE
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.segment import FRAGMENTS, Segment
from neuroshed.storage.journal import read_ledger
from neuroshed.storage.locations import Location
from neuroshed.workflow.config import decimal_text, parse, read_yaml
from neuroshed.workflow.folder import PLAN_FILE, SUMMARY_FILE, WORKFLOW_FILE
from neuroshed.workflow.plan import last_stages
from neuroshed.workflow.run import planned_stages, run_stages
from neuroshed.workflow.status import recorded
from neuroshed.workflow.summary import Summary


def cut(
    run_folder: Location,
    thresholds: Sequence[str | float] = (),
    fragments: bool = False,
    cluster: ClusterConfig | None = None,
    watch: Watcher = lambda progress: None,
) -> Summary:
    """Write the segmentation at each threshold, and the unmerged fragments if asked, from a run's recorded merges.

    No other stage is touched, and neither the image nor the affinities have to be there any more. The thresholds join
    those of the run's `workflow.yaml`. Returns the summary of the whole run; raises `WorkflowError` for a threshold
    below the lowest one recorded and for a run whose merges are not all there.
    """
    stages = planned_stages(run_folder)
    agglomerate = next(stage for stage in stages if isinstance(stage, Agglomerate))
    wanted = _wanted(agglomerate, thresholds, fragments)
    _check_done(run_folder, stages, agglomerate)
    file = run_folder / WORKFLOW_FILE
    values = read_yaml(str(file))
    workflow = parse(values, str(file))
    share = workflow.agglomerate.alarm_share
    known = [stage for stage in stages if isinstance(stage, Segment)]
    new = [
        Segment(run_folder=run_folder, agglomerate=agglomerate, threshold=threshold, alarm_share=share)
        for threshold in wanted
    ]
    # In the order of a plan, which begins with the fragments.
    both = sorted((*known, *new), key=lambda stage: stage.threshold != FRAGMENTS)
    planned = {stage.fingerprint: stage for stage in both}
    last = last_stages([*planned.values()], workflow)
    values["thresholds"] = [s.threshold for s in planned.values() if s.threshold != FRAGMENTS]
    if any(stage.threshold == FRAGMENTS for stage in planned.values()):
        values["keep"] = list(dict.fromkeys([*workflow.keep, FRAGMENTS]))
    files = {
        WORKFLOW_FILE: yaml.safe_dump(values, sort_keys=False),
        PLAN_FILE: json.dumps([stage.model_dump(mode="json") for stage in last], indent=2),
    }
    options = Options(cluster=cluster or workflow.cluster, failures=workflow.failures, watch=watch)
    # Of the new segmentations alone.
    fresh = {stage.fingerprint for stage in new}
    levels = [stage for stage in last if any(read.fingerprint in fresh for read in stage.upstream)]
    made = [*new, *levels]
    done = run_stages(run_folder, made, options, files, "the same command goes on")
    summary = recorded(Location.of(run_folder)) | {"wall_seconds": done["wall_seconds"]}
    summary["restored_blocks"] -= sum(row["done"] for row in done["stages"].values()) - done["restored_blocks"]
    (run_folder / SUMMARY_FILE).put(json.dumps(summary, indent=2).encode())
    return summary


def _wanted(agglomerate: Agglomerate, thresholds: Sequence[str | float], fragments: bool) -> list[str]:
    wanted = [FRAGMENTS] if fragments else []
    for given in thresholds:
        try:
            text = decimal_text(given)
        except ValueError as error:
            raise WorkflowError(f"threshold: {error}") from error
        if integer_threshold(Fraction(text)) < agglomerate.lowest:
            lowest = agglomerate.lowest / TOP_SCORE
            raise WorkflowError(
                f"threshold {text} is below {lowest:.6g}, down to which merges were recorded; run again with a lower "
                "agglomerate.lowest_threshold"
            )
        wanted.append(text)
    if not wanted:
        raise WorkflowError("nothing to cut: give at least one threshold, or ask for the fragments")
    return list(dict.fromkeys(wanted))


def _check_done(run_folder: Location, stages: Sequence[Stage], agglomerate: Agglomerate) -> None:
    ledger = read_ledger(run_folder)
    _, progress, _ = restore(ledger, stages)
    for stage in (*agglomerate.upstream, agglomerate):
        if any(ledger.dropped(stage.fingerprint, step.name, step.grid).any() for step in stage.steps):
            raise WorkflowError(
                f"run {run_folder} did not keep its merges; add `merges` to `keep` in {run_folder / WORKFLOW_FILE} and "
                "run that"
            )
        counts = progress.stages[stage.fingerprint]
        if counts.done + counts.skipped < counts.total:
            raise WorkflowError(
                f"run {run_folder} has {counts.done} of {counts.total} blocks of stage {stage.title}; "
                f"`neuroshed resume {run_folder}` goes on, then cut"
            )
