"""`neuroshed volume crop` and `compare`: one stage each, in a folder that goes when it is over."""

from __future__ import annotations

import os
from pathlib import Path

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.progress import Watcher
from neuroshed.errors import InputError
from neuroshed.geometry import Box, Vec
from neuroshed.stages.compare import Compare
from neuroshed.stages.copy import Copy
from neuroshed.stages.passes import blocks_of, check_type, voxel_bytes
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, open_volume
from neuroshed.workflow.summary import Summary
from neuroshed.workflow.target import PathLike, Target, quiet
from neuroshed.workflow.work import work_on


def volume_crop(
    volume: str | os.PathLike[str],
    target: str | os.PathLike[str],
    box: Box | None = None,
    *,
    block_shape: Vec | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Path | str:
    """Write a box of a Zarr volume (None: all) as an OME-Zarr volume of its own, with its channels, type, voxel size
    and place in space; returns its path, or its URL if it is in a bucket.

    It appears under its name when it is whole; broken off, the same call goes on. Raises `InputError` for a box that is
    not in the volume, `WorkflowError` if the target is there already.
    """
    new = Target.of(target, "crop", volume)
    stage = Copy.of(new.run_folder, Location.of(volume), new.goal.name, box, block_shape)
    new.run([stage], cluster, watch)
    return new.finish(stage.target)


def volume_compare(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    labels: bool = False,
    work: PathLike | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Whether two Zarr volumes hold the same, however they are stored: `same`; `layout` (what differs of shape,
    channels, voxel size, offset, type); `values_differing`, where the `first` of them is (z, y, x, after the channel if
    there are any), and the `largest_difference`. They are not `compared` if shapes differ, or one is of floats.

    With `labels` they are the same if the labels of one are those of the other by other names, 0 being 0 in both:
    `pairs` of labels meet (that of 0 and 0 aside), `renamed` of them have two names. Else those voxels differ in which
    labels meet that are not each other's largest overlap.

    What is found is kept in a folder `work` until all is: broken off, the same call goes on, unless a volume is another
    by then. Raises `InputError` for what cannot be compared, `RunFailedError` for what cannot be read.
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
    found: Summary = {
        "left": str(both[0].path),
        "right": str(both[1].path),
        "labels": labels,
        "layout": layout,
        "compared": True,
    }
    if both[0].shape != both[1].shape or both[0].channels != both[1].channels:
        return found | {"same": False, "compared": False}
    if (both[0].dtype.kind == "f") != (both[1].dtype.kind == "f"):
        return found | {"same": False, "compared": False}
    with work_on("compare", work, (both[0].path, both[1].path), labels) as comparison:
        blocks = blocks_of(both[0].chunk_shape, voxel_bytes(both[0]))
        stage = Compare.of(comparison.run_folder, *both, labels, blocks)
        comparison.run(stage, cluster, watch, failure_code=2)
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
