"""How a run stands: what its journal says, who works on it, and what that one shows of itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from neuroshed.engine.coordinator import restore
from neuroshed.engine.progress import Progress
from neuroshed.errors import RunStoppedError
from neuroshed.storage.holders import Holder
from neuroshed.storage.journal import read_ledger
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow.folder import PLAN_FILE, is_run
from neuroshed.workflow.live import Snapshot, read_live
from neuroshed.workflow.logs import log_place
from neuroshed.workflow.run import planned_droppable, planned_stages
from neuroshed.workflow.summary import Summary, history, summarise

FOLLOW_SECONDS = 2.0


def recorded(run_folder: Location) -> Summary:
    """The summary from the journal alone, with when the run `started` and how its last session `ended`, if it did."""
    stages = planned_stages(run_folder)
    ledger = read_ledger(run_folder)
    droppable = planned_droppable(run_folder, stages)
    _, progress, _ = restore(ledger, stages, droppable)
    return summarise(run_folder, stages, progress, droppable) | history(ledger)


class _Seen(NamedTuple):
    """Who holds a run and whether that process lives, asked once: it may end while the journal is read."""

    holder: Holder | None
    alive: bool | None = None
    """As `Holder.alive` said; None if nobody holds the run, too."""

    @property
    def at_work(self) -> bool:
        """Whether somebody works on the run, as far as can be told."""
        return self.holder is not None and self.alive is not False


def status(run_folder: Location) -> Summary:
    """How a run stands, from its folder alone; never disturbs or waits for a coordinator at work.

    `status` and the counts of blocks done are those of the journal. `state` is starting (no plan is written yet),
    running, done, failed, stopped, unfinished, or lost if its coordinator is gone without a word. `live` is what a
    coordinator at work shows of itself.
    """
    # Before plan and journal: one that ends meanwhile has recorded all when it gives the run back.
    seen = _look(run_folder) if is_run(run_folder) else _Seen(None)
    if seen.at_work and not (run_folder / PLAN_FILE).exists():
        return _without_plan(run_folder, seen) | {"state": "starting"}
    summary = recorded(run_folder)
    live = _read_live(run_folder, seen)
    for title, row in (live or {}).get("stages", {}).items():
        if title in summary["stages"]:
            _add_live(summary["stages"][title], row)
    return summary | _presence(run_folder, seen, live, summary)


def _without_plan(run_folder: Location, seen: _Seen) -> Summary:
    nothing = {"status": "unfinished", "started": None, "ended": None}
    summary = summarise(run_folder, (), Progress({}, {})) | nothing
    return summary | _presence(run_folder, seen, None, summary)


def status_or_nothing(run_folder: Location) -> Summary:
    """As `status`, also of a folder where a run was to begin and did not."""
    return status(run_folder) if is_run(run_folder) else _without_plan(run_folder, _Seen(None))


def glance(run_folder: Location) -> Summary:
    """As `status`, but while a coordinator shows how the blocks stand, that is taken for true and no journal is read:
    quick, however long the journal is. Paths of outputs are left out then.
    """
    if not is_run(run_folder):
        return status(run_folder)
    seen = _look(run_folder)
    live = _read_live(run_folder, seen)
    if live is None:
        return status(run_folder)
    complete = all(row["done"] + row["skipped"] == row["blocks"] for row in live["stages"].values())
    summary = {
        "run": str(run_folder),
        "status": "done" if complete else "failed" if live["failed"] else "unfinished",
        **{name: live[name] for name in ("stages", "restored_blocks", "failures", "alarms", "started")},
        "failures_left_out": max(live["failed"] - len(live["failures"]), 0),
        "ended": None,
    }
    return summary | _presence(run_folder, seen, live, summary)


def follow(run_folder: Location, seconds: float = FOLLOW_SECONDS) -> Iterator[Summary]:
    """How the run stands, again and again, until nobody works on it any more; the last one is its end."""
    while True:
        found = glance(run_folder)
        yield found
        if found["state"] not in ("starting", "running"):
            return
        time.sleep(seconds)


def _look(run_folder: Location) -> _Seen:
    holder = holder_of(run_folder)
    while holder is not None:
        alive = holder.alive
        if alive is not False:
            return _Seen(holder, alive)
        # It may have given the run back between the two questions.
        now = holder_of(run_folder)
        if now == holder:
            return _Seen(holder, False)
        holder = now
    return _Seen(None)


def _read_live(run_folder: Location, seen: _Seen) -> Snapshot | None:
    return read_live(run_folder, seen.holder) if seen.holder is not None and seen.at_work else None


def _presence(run_folder: Location, seen: _Seen, live: Snapshot | None, summary: Summary) -> Summary:
    shown = None
    if live is not None:
        names = ("began", "time", "wish", "reason", "note", "seconds_left", "workers", "memory_bytes", "failed")
        # Clocks of two machines may differ; whoever shows the age says so.
        shown = {name: live[name] for name in names} | {"age_seconds": round(time.time() - live["time"], 1)}
    return {
        "state": _state(seen, summary),
        "holder": _described(seen),
        "live": shown,
        "log": str(log_place(run_folder)),
    }


def _add_live(row: dict[str, Any], live: dict[str, Any]) -> None:
    """What is at work, and how quick; of the two, the journal may be a little newer."""
    row |= {name: live[name] for name in ("failed", "blocks_per_second", "voxels_per_second") if name in live}
    left = max(row["blocks"] - row["done"] - row["skipped"] - row["failed"], 0)
    row["running"] = min(live["running"], left)
    row["waiting"] = left - row["running"]


def _state(seen: _Seen, summary: Summary) -> str:
    if seen.at_work:
        return "running"
    if summary["status"] == "done":
        return "done"
    if seen.holder is not None:
        return "lost"
    ended = summary["ended"]
    if ended is not None and ended["error"] == RunStoppedError.__name__:
        return "stopped"
    return str(summary["status"])


def _described(seen: _Seen) -> dict[str, Any] | None:
    holder = seen.holder
    if holder is None:
        return None
    return {"name": holder.name, "host": holder.host, "pid": holder.pid, "alive": seen.alive, "text": str(holder)}
