"""`neuroshed volume crop` and `compare`: one stage each, in a folder that goes when it is over."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Watcher
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.compare import Compare
from neuroshed.stages.crop import Crop
from neuroshed.stages.passes import blocks_of, check_type, voxel_bytes
from neuroshed.storage.files import sync_path
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume
from neuroshed.workflow.run import run_stages
from neuroshed.workflow.summary import Summary


def crop(
    volume: Location, target: Location, box: Box | None, block_shape: Vec | None, cluster: ClusterConfig, watch: Watcher
) -> Path:
    """Write a box of a volume as a volume of its own, which appears under its name when it is whole.

    Broken off, the same call goes on. Raises `InputError` for a source or box that cannot be, `WorkflowError` if the
    target is there already or in the source.
    """
    goal = target.local
    if goal.exists():
        raise WorkflowError(f"target {goal} exists already; choose another or remove it")
    if target.is_relative_to(volume):
        raise WorkflowError(f"target {goal} is in the volume, which is never changed; choose another place")
    # Beside the target, so that a second call finds what the first one did, and gone at the end.
    run_folder = target.parent / f".{goal.name}.crop"
    stage = Crop.of(run_folder, volume, goal.name, box, block_shape)
    run_stages(run_folder, [stage], Options(cluster=cluster, watch=watch), again="the same crop goes on")
    stage.target.local.rename(goal)
    sync_path(goal.parent)
    run_folder.delete_tree()
    return goal


def compare(left: Location, right: Location, labels: bool, cluster: ClusterConfig, watch: Watcher) -> Summary:
    """Whether two volumes hold the same: `same`, and what differs (`api.volume_compare`).

    Raises `InputError` for volumes that cannot be compared, `RunFailedError` if one of them cannot be read.
    """
    both = open_volume(left), open_volume(right)
    for volume in both:
        check_type(volume)
        if labels and (volume.channels is not None or volume.dtype.kind == "f"):
            raise InputError(
                f"{volume.path} is {volume.dtype} with {volume.channels or 'no'} channels; needed are integer labels "
                "without channels, or leave --labels out"
            )
    layout = _layout(*both, labels)
    found: Summary = {"left": str(left), "right": str(right), "labels": labels, "layout": layout, "compared": True}
    if both[0].shape != both[1].shape or both[0].channels != both[1].channels:
        return found | {"same": False, "compared": False}
    if (both[0].dtype.kind == "f") != (both[1].dtype.kind == "f"):
        return found | {"same": False, "compared": False}
    with scratch("compare") as folder:
        stage = Compare.of(folder, *both, labels, blocks_of(both[0].chunk_shape, voxel_bytes(both[0])))
        run_scratch(stage, cluster, watch, "compare again")
        found |= _renamed(stage) if labels else _differing(stage)
    return found | {"same": not layout and not found["values_differing"]}


def _layout(left: Volume, right: Volume, labels: bool) -> Summary:
    """What is not the same beside the voxels. The order of bytes is not what a volume holds."""
    names = ["shape", "channels", "voxel_size", "offset", "voxel_offsets"]
    pairs = {name: [getattr(left, name), getattr(right, name)] for name in names}
    if not labels:
        pairs["dtype"] = [volume.dtype.newbyteorder("=").name for volume in (left, right)]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _differing(stage: Compare) -> Summary:
    told = stage.differences()
    if told is None:
        return {"values_differing": 0, "first": None, "largest_difference": 0}
    return {"values_differing": told.values, "first": list(told.first), "largest_difference": told.largest}


def _renamed(stage: Compare) -> Summary:
    pairs, told = stage.renaming()
    labelled = (pairs.left != 0) | (pairs.right != 0)
    return {
        "pairs": int(labelled.sum()),
        "renamed": int((pairs.left != pairs.right).sum()),
        "values_differing": 0 if told is None else told.values,
        "first": None if told is None else list(told.first),
    }


@contextmanager
def scratch(purpose: str) -> Iterator[Location]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"neuroshed-{purpose}-") as folder:
        yield Location.of(folder)


def run_scratch(stage: Stage, cluster: ClusterConfig, watch: Watcher, again: str) -> None:
    """Run a stage whose answer is one thing and its failure another: exit codes other than 1 tell of it."""
    try:
        run_stages(stage.run_folder, [stage], Options(cluster=cluster, watch=watch), again=again)
    except RunFailedError as error:
        error.exit_code = 2
        raise
