"""The runs in a folder, one line each."""

from __future__ import annotations

from neuroshed.errors import InputError, NeuroshedError
from neuroshed.storage.locations import Location
from neuroshed.workflow.folder import is_run
from neuroshed.workflow.status import glance
from neuroshed.workflow.summary import Summary


def runs(folder: Location) -> list[Summary]:
    """How each run directly below a folder stands: its name, state, holder, blocks done, failed and in all, and when it
    started and changed (seconds since 1970). A run that cannot be read has the state `unreadable` and an `error`.

    Raises `InputError` if there is no such folder.
    """
    # A bucket has no folders, only names.
    if folder.is_local and not folder.local.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    return [_row(folder / name) for name in folder.names() if is_run(folder / name)]


def _row(run_folder: Location) -> Summary:
    try:
        found = glance(run_folder)
    except (NeuroshedError, OSError) as error:
        return {"name": run_folder.name, "run": str(run_folder), "state": "unreadable", "error": str(error)}
    rows = found["stages"].values()
    live, ended = found["live"] or {}, found["ended"] or {}
    return {
        "name": run_folder.name,
        "run": str(run_folder),
        "state": found["state"],
        "holder": found["holder"] and found["holder"]["text"],
        "done": sum(row["done"] + row["skipped"] for row in rows),
        "blocks": sum(row["blocks"] for row in rows),
        "failed": sum(row["failed"] for row in rows),
        "started": found["started"],
        "changed": live.get("time") or ended.get("time") or found["started"],
    }
