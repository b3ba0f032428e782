"""What a run folder holds that no run needs any more: found, told with its size, and removed if that is wanted.

Only what neuroshed surely wrote is ever touched: stage folders by name and `stage.json`, drafts by their names, blocks'
outputs by what their stage says that they write.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroshed.engine.coordinator import restore
from neuroshed.errors import WorkflowError
from neuroshed.stages.base import Stage, Step
from neuroshed.storage.files import is_draft
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.lease import holder_of
from neuroshed.storage.ledger import Ledger, runs_of
from neuroshed.storage.locations import Location
from neuroshed.workflow.provenance import user
from neuroshed.workflow.run import planned_droppable, planned_stages
from neuroshed.workflow.summary import Summary

STAGE_FILE = "stage.json"
SUPERSEDED = "stages of earlier parameters"
LEFTOVER = "left over by what was broken off"
INTERMEDIATE = "intermediate blocks that nothing reads any more"

_STAGE_FOLDER = re.compile(r"([a-z_-]+)-([0-9a-f]{12})")


@dataclass(frozen=True)
class Find:
    """Something that can go."""

    reason: str
    place: Location
    bytes: int
    lost: str = ""
    """Fingerprint of the stage of which nothing is left then, if the journal knows it."""
    files: tuple[Location, ...] = ()
    """What goes, if it is not the whole place."""
    dropped: tuple[tuple[str, Step, tuple[int, ...]], ...] = ()
    """Blocks that count as deleted then: fingerprint, step and places in its grid."""


def clean(
    run_folder: Location, *, dry_run: bool = False, confirm: Callable[[Summary], bool] = lambda found: True
) -> Summary:
    """Find what can go and remove it, if `confirm` agrees; nobody can begin to work on the run meanwhile.

    Returns the finds with their bytes, in all and by reason, and whether they are `removed`; with `dry_run` they never
    are. Raises `WorkflowError` if somebody works on the run, `InputError` if the folder holds none.
    """
    stages = planned_stages(run_folder)
    if dry_run:
        return _told(run_folder, find(run_folder, stages, read_ledger(run_folder)), removed=False)
    with Journal(run_folder, user()) as journal:
        finds = find(run_folder, stages, journal.ledger)
        if not finds or not confirm(_told(run_folder, finds, removed=False)):
            return _told(run_folder, finds, removed=False)
        # First nothing is believed of them any more.
        _record(journal, finds)
        for found in finds:
            try:
                _remove(found)
            except OSError as error:
                raise WorkflowError(
                    f"{found.place} cannot be removed ({error.strerror}: {error.filename}); mend its permissions, then "
                    f"`neuroshed clean {run_folder}` goes on"
                ) from error
        return _told(run_folder, finds, removed=True)


def _record(journal: Journal, finds: Sequence[Find]) -> None:
    for found in finds:
        if found.lost:
            journal.append([{"e": "lost", "stage": found.lost}])
        for fingerprint, step, places in found.dropped:
            part = journal.part(fingerprint, step.name, step.grid)
            journal.append([{"e": "dropped", "id": part, "at": runs_of(places)}])
    journal.flush()


def _remove(found: Find) -> None:
    """Remove a find; broken off, it is found again."""
    if found.files:
        for file in found.files:
            file.delete()
    elif not _is_folder(found.place):
        found.place.delete()
    else:
        # By the file that goes last a stage's folder is known.
        for name in found.place.names():
            if name != STAGE_FILE:
                _remove(Find(found.reason, found.place / name, 0))
        found.place.delete_tree()


def _told(run_folder: Location, finds: Sequence[Find], *, removed: bool) -> Summary:
    by_reason: dict[str, int] = {}
    for found in finds:
        by_reason[found.reason] = by_reason.get(found.reason, 0) + found.bytes
    return {
        "run": str(run_folder),
        "removed": removed,
        "bytes": sum(by_reason.values()),
        "by_reason": by_reason,
        "finds": [
            {"reason": found.reason, "path": str(found.place), "bytes": found.bytes, "files": len(found.files) or None}
            for found in finds
        ],
    }


def find(run_folder: Location, stages: Sequence[Stage], ledger: Ledger) -> list[Find]:
    """All that can go, given the newest plan and the journal."""
    planned = {stage.folder.name for stage in stages}
    return [
        *_superseded(run_folder, planned, ledger),
        *_scratch(run_folder),
        *_drafts(run_folder, planned),
        *_intermediates(run_folder, stages, ledger),
    ]


def _superseded(run_folder: Location, planned: set[str], ledger: Ledger) -> Iterator[Find]:
    known = {*ledger.figures, *(stage for stage, _, _ in ledger.failures)}
    for name in run_folder.names():
        match = _STAGE_FOLDER.fullmatch(name)
        if match is None or name in planned or not _is_stage(run_folder / name, match[1]):
            continue
        fingerprint = next((stage for stage in known if stage.startswith(match[2])), "")
        yield Find(SUPERSEDED, run_folder / name, _bytes(run_folder / name), fingerprint)


def _is_stage(folder: Location, kind: str) -> bool:
    if folder.is_local and folder.local.is_symlink():
        return False
    try:
        values = json.loads((folder / STAGE_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("kind") == kind


def _scratch(run_folder: Location) -> Iterator[Find]:
    """Folders of verifications and evaluations that were broken off."""
    for name in run_folder.names():
        place = run_folder / name
        if re.fullmatch(r"(verify|evaluate)-[0-9a-f]{12}", name) and not (place / STAGE_FILE).exists():
            holder = holder_of(place)
            if holder is None or holder.alive is False:
                yield Find(LEFTOVER, place, _bytes(place))


def _drafts(run_folder: Location, planned: set[str]) -> Iterator[Find]:
    """Drafts in the run folder and in the stages of the newest plan; object stores have none."""
    if not run_folder.is_local:
        return
    root = run_folder.local
    found = [path for path in sorted(root.iterdir()) if is_draft(path.name)]
    for name in sorted(planned):
        for parent, folders, files in os.walk(root / name):
            found += [Path(parent, name) for name in sorted((*folders, *files)) if is_draft(name)]
            folders[:] = [name for name in folders if not is_draft(name)]
    for path in found:
        if not path.is_symlink():
            yield Find(LEFTOVER, run_folder / str(path.relative_to(root)), _bytes(Location.of(path)))


def _intermediates(run_folder: Location, stages: Sequence[Stage], ledger: Ledger) -> Iterator[Find]:
    """Outputs of steps that the workflow does not keep: blocks that no undone block reads, and those that were to be
    deleted when their coordinator died.
    """
    droppable = planned_droppable(run_folder, stages)
    _, progress, found = restore(ledger, stages, droppable)
    unread = dict(found)
    for stage in stages:
        if stage.fingerprint in progress.lost:
            continue
        files: list[Location] = []
        dropped: list[tuple[str, Step, tuple[int, ...]]] = []
        for step in stage.steps:
            key = (stage.fingerprint, step.name)
            if key not in droppable:
                continue
            fresh = unread[key].tolist() if key in unread else []
            before = ledger.dropped(*key, step.grid).nonzero()[0].tolist()
            files += [file for place in (*fresh, *before) for file in stage.outputs(step.name, step.grid.index(place))]
            dropped += [(stage.fingerprint, step, tuple(fresh))] if fresh else []
        sizes = {file: size for file in files if (size := file.size()) is not None}
        if sizes:
            place = run_folder / stage.folder.name
            yield Find(INTERMEDIATE, place, sum(sizes.values()), files=tuple(sizes), dropped=tuple(dropped))


def _is_folder(place: Location) -> bool:
    return place.local.is_dir() if place.is_local else place.size() is None


def _bytes(place: Location) -> int:
    """Of a file, or of all files in a folder."""
    return sum(size for _, size in place.files()) if _is_folder(place) else place.size() or 0
