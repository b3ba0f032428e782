"""Levels added to a volume that is there, or to one that is being made."""

from __future__ import annotations

import os
from typing import Any

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.stages.copy import Copy
from neuroshed.stages.imports import Import
from neuroshed.stages.pyramid import Pyramid
from neuroshed.storage.files import remove_drafts
from neuroshed.storage.levels import level_count, open_levels
from neuroshed.storage.locations import Location
from neuroshed.workflow.run import run_stages


def pyramid(
    volume: str | os.PathLike[str] | Location,
    *,
    labels: bool | None = None,
    levels: int | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = lambda progress: None,
) -> dict[str, Any]:
    """Add smaller levels to a volume of ours: the most frequent of `labels`, the mean of an image (None: labels if it
    holds integers of 32 or 64 bits), so many `levels`, or until no side is longer than 128 voxels.

    Readers see them when all are whole. Broken off, the same call goes on. Returns the `volume` and the `shapes` of its
    levels. Raises `InputError` for a volume that is not laid out as ours, `WorkflowError` if it has levels already, or
    is so small that it needs none.
    """
    path = Location.of(volume)
    if not path.can_list:
        raise WorkflowError(f"{path} is on a web server and cannot be changed; copy it with `neuroshed export`")
    # Beside the volume, so that a second call finds what the first one did, and gone at the end.
    run_folder = path.parent / f".{path.name}.pyramid"
    goes_on = run_folder.exists()
    stage = Pyramid.of_volume(run_folder, path, labels, levels)
    if not goes_on and (count := level_count(path)) > 1:
        raise WorkflowError(f"{path} has {count} levels already; copy it with `neuroshed export` for others")
    if not stage.factors:
        raise WorkflowError(
            f"{path} is so small, {list(stage.volume_shape)} voxels, that it needs no levels; --levels N makes some"
        )
    run_stages(run_folder, [stage], Options(cluster=cluster or ClusterConfig(), watch=watch))
    if goes_on and path.is_local:
        remove_drafts(path.local)
    run_folder.delete_tree()
    return {"volume": str(path), "shapes": [list(level.shape) for level in open_levels(path)]}


def with_levels(stage: Copy | Import, pyramid: bool, labels: bool | None = None) -> list[Stage]:
    """The stages that make a volume and all that viewers want of it: levels if asked for, and of an image its range."""
    added = Pyramid.of(stage.run_folder, stage, pyramid, labels)
    return [stage, added] if added else [stage]
