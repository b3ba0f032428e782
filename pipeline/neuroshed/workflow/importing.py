"""Volumes of others to ours: an import is a run of one stage beside its target, and nothing of it stays."""

from __future__ import annotations

import os
from pathlib import Path

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.progress import Watcher
from neuroshed.geometry import Box, Vec
from neuroshed.stages.imports import Import
from neuroshed.workflow.levels import with_levels
from neuroshed.workflow.target import Target, quiet


def import_volume(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    voxel_size: tuple[float, float, float] | None = None,
    *,
    dataset: str | None = None,
    offset: tuple[float, float, float] | None = None,
    intensity: tuple[float, float] | None = None,
    box: Box | None = None,
    downsample: Vec | None = None,
    labels: bool | None = None,
    block_shape: Vec | None = None,
    pyramid: bool = False,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Path | str:
    """Bring a volume in as OME-Zarr, block by block; returns the path of the new volume, or its URL if `target` is in a
    bucket.

    `source` is a TIFF stack, a folder of TIFF, PNG or JPEG sections, HDF5, MRC or `.npy` on disk, or Zarr, N5 or
    Neuroglancer precomputed on disk, in a bucket or on `https://`; `dataset` names an array, level or scale in it.
    `voxel_size` and `offset` of its first voxel are in nm, z y x; left out, they are what the source says. `intensity`
    (low, high) rescales to uint8, as floating-point images need.

    `box` takes a part of the source. `downsample` (z, y, x) makes windows of so many voxels one, their mean, or with
    `labels` the most frequent (the smallest of several). None: what the source says (precomputed, and OME-Zarr of
    labels), else integers of more than 16 bits are labels. The new volume's offset is the centre of its first voxel.

    `pyramid` adds smaller levels for viewers. The volume appears under its name when it is whole. Broken off, the same
    call goes on. Raises `InputError` for a source that cannot be imported, `WorkflowError` if the target is there
    already.
    """
    new = Target.of(target, "import", source)
    stage = Import.of(
        new.run_folder,
        source,
        new.goal.name,
        voxel_size,
        offset=offset,
        dataset=dataset,
        intensity=intensity,
        box=box,
        downsample=downsample,
        labels=labels,
        block_shape=block_shape,
    )
    new.run(with_levels(stage, pyramid, stage.labels), cluster, watch)
    return new.finish(stage.target)
