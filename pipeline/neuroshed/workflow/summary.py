"""What a run amounts to, for people and scripts: blocks by stage, failures, alarms, and the paths of outputs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from neuroshed.engine.progress import Failure, Progress
from neuroshed.engine.readiness import Counts, Key
from neuroshed.errors import RunStoppedError
from neuroshed.stages.base import Stage
from neuroshed.stages.predict import Predict
from neuroshed.stages.segment import Segment
from neuroshed.storage.ledger import Ledger
from neuroshed.storage.locations import Location

Summary = dict[str, Any]

FAILURES_TOLD = 10_000
"""Failures that a summary tells one by one."""

# As `stopped_text` has it.
_STOPPED = re.compile(r" stopped \((.*?)\)")


def summarise(
    run_folder: Location, stages: Sequence[Stage], progress: Progress, droppable: Collection[Key] = ()
) -> Summary:
    """Blocks by stage, failures, and the paths of outputs, but for those of `droppable` steps, which are only a means.
    `status` is done, failed or unfinished.

    `failures_left_out` says how many failures are not among `failures`, which never are more than 10,000.
    """
    told = _told(progress.failures)
    rows = stage_rows(progress)
    complete = all(row["done"] + row["skipped"] == row["blocks"] for row in rows.values())
    outputs: dict[str, Any] = {}
    for stage in stages:
        if all((stage.fingerprint, step.name) in droppable for step in stage.steps):
            continue
        for name, found in stage.report().items():
            outputs[name] = outputs.get(name, {}) | found if isinstance(found, dict) else found
    largest, alarms = largest_segments(stages, progress)
    if any(isinstance(stage, Predict) and not stage.deterministic for stage in stages):
        alarms.append("predict.deterministic is off: on a GPU another run may give other labels")
    return {
        "run": str(run_folder),
        "status": "done" if complete else "failed" if progress.failures else "unfinished",
        "stages": rows,
        "restored_blocks": progress.restored,
        "largest_segments": largest,
        "alarms": alarms,
        "failures": [failure_row(failure) for failure in told],
        "failures_left_out": len(progress.failures) - len(told),
        **outputs,
    }


def _told(failures: Sequence[Failure]) -> list[Failure]:
    """Of very many failures those with tracebacks first, then the last of the others; in their order."""
    if len(failures) <= FAILURES_TOLD:
        return list(failures)
    whole = [number for number, failure in enumerate(failures) if failure.like is None][:FAILURES_TOLD]
    others = [number for number, failure in enumerate(failures) if failure.like is not None]
    room = FAILURES_TOLD - len(whole)
    return [failures[number] for number in sorted([*whole, *others[max(len(others) - room, 0) :]])]


def stage_rows(progress: Progress) -> dict[str, dict[str, Any]]:
    """Blocks of each stage by state, the time that workers spent in it and the voxels that they wrote."""
    rows = {}
    for fingerprint, counts in progress.stages.items():
        title = progress.titles[fingerprint]
        failed = progress.failed[title]
        rows[title] = {
            "blocks": counts.total,
            "done": counts.done,
            "failed": failed,
            "seconds": round(progress.seconds(fingerprint), 3),
            "running": counts.running,
            "waiting": _waiting(counts, failed),
            "skipped": counts.skipped,
            "voxels": int(progress.figures.get(fingerprint, {}).get("voxels", 0)),
        }
    return rows


def _waiting(counts: Counts, failed: int) -> int:
    # From the journal alone, blocks that failed count as ready: the next session may try them again.
    return max(counts.total - counts.done - counts.running - counts.skipped - max(counts.failed, failed), 0)


def failure_row(failure: Failure) -> dict[str, Any]:
    """A failure as summaries hold it. `like` names the block whose traceback and log lines stand for its own, if those
    were left out.
    """
    like = failure.like
    return {
        "stage": failure.stage,
        "step": failure.step,
        "block": list(failure.index),
        "error": failure.error,
        "trace": failure.trace,
        "worker": failure.worker,
        "host": failure.host,
        "attempts": failure.attempts,
        "log": list(failure.log),
        "like": None if like is None else {"step": like[0], "block": list(like[1])},
    }


def peak_memory(stages: Sequence[Stage]) -> int:
    """Predicted memory of the largest task, in bytes."""
    return max((stage.memory_bytes(step.name) for stage in stages for step in stage.steps), default=0)


def history(ledger: Ledger) -> Summary:
    """When the first session that is known `started` (seconds since 1970), and how the last one `ended`, if it did."""
    sessions = list(ledger.sessions)
    began = [event.get("time") for event in sessions if event["e"] == "session"]
    last = sessions[-1] if sessions and sessions[-1]["e"] == "end" else None
    ended = None
    if last is not None:
        kind, _, text = (last.get("error") or "").partition(": ")
        stopped = _STOPPED.search(text) if kind == RunStoppedError.__name__ else None
        ended = {"time": last.get("time"), "error": kind, "reason": stopped[1] if stopped else text}
    return {"started": began[0] if began else None, "ended": ended}


def stopped_text(run_folder: object, failures: Sequence[Failure], reason: str, again: str) -> str:
    """One line that tells of a run that was asked to stop, and how to go on."""
    failed = f", and {len(failures)} blocks failed" if failures else ""
    return f"run {run_folder} stopped ({reason}){failed}; what is done is kept, {again}"


def failure_text(run_folder: object, failures: Sequence[Failure], again: str) -> str:
    """One line that tells of blocks that failed, and how to go on."""
    if not failures:
        return f"run {run_folder} ended with blocks that could not run; {again}"
    first, number = failures[0], len(failures)
    return (
        f"{number} block{'s' if number > 1 else ''} of run {run_folder} failed, the first of stage {first.stage} at "
        f"{list(first.index)}: {first.error}; mend the cause, then {again}"
    )


def largest_segments(stages: Sequence[Stage], progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """The largest segment at each threshold, and a warning for each that holds too much of the region."""
    found, alarms = {}, []
    for stage in stages:
        voxels, segment = progress.largest(stage.fingerprint)
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
