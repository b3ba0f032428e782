"""Volumes for other programs: OME-Zarr with all that viewers want of it, Neuroglancer's precomputed format, TIFFs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import restore
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.copy import Copy
from neuroshed.stages.precomputed import Precomputed
from neuroshed.stages.pyramid import Pyramid
from neuroshed.stages.segment import Segment
from neuroshed.stages.tiff import Tiff, TiffStack
from neuroshed.storage.journal import read_ledger
from neuroshed.storage.labels import announce_labels
from neuroshed.storage.locations import Location
from neuroshed.storage.precomputed import Encoding
from neuroshed.storage.tiffs import Compression
from neuroshed.workflow.folder import PLAN_FILE
from neuroshed.workflow.levels import with_levels
from neuroshed.workflow.run import planned_stages
from neuroshed.workflow.target import PathLike, Target, quiet

Format = Literal["ome-zarr", "precomputed", "tiff"]


def export(
    volume: PathLike,
    target: PathLike,
    *,
    format: Format = "ome-zarr",  # noqa: A002
    image: PathLike | None = None,
    threshold: str | None = None,
    labels: bool | None = None,
    encoding: Encoding | None = None,
    voxel_offset: Vec | None = None,
    compression: Compression | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Path | str:
    """Write a volume, or the segmentation of a run (at `threshold`, if it has several), for other programs.

    `ome-zarr`: a copy with levels; with an `image` of the same shape and place, an OME-Zarr of that with the
    segmentation in its `labels` group. `precomputed`: Neuroglancer's format, with the levels that the volume has,
    images in `encoding` raw (the default), png or jpeg; `voxel_offset` (z y x) is that of the first voxel if not as
    the volume says. `tiff`: a folder of sections of the finest level, of at most 32 bits, or one BigTIFF of them
    if the target ends in .tif or .tiff, with `compression` none (the default) or zlib. `labels` says what the volume
    holds (None: labels if it holds integers of 32 or 64 bits).

    The target, a folder or (but for `tiff`) a place in a bucket, appears when it is whole; returned is its path or URL.
    Broken off, the same call goes on. Raises `InputError` for a volume that the format cannot hold, `WorkflowError` if
    the target is there already or options do not fit.
    """
    new = Target.of(target, "export", volume, *([] if image is None else [image]))
    if format == "tiff" and not new.goal.is_local:
        raise WorkflowError(f"target {new.goal} is in a bucket; sections are written to a folder, to be copied there")
    if format != "precomputed" and (encoding or voxel_offset):
        raise WorkflowError("encoding and voxel offset are those of format precomputed; leave them out")
    one_file = format == "tiff" and new.goal.name.lower().endswith((".tif", ".tiff"))
    if compression and not one_file:
        raise WorkflowError("compression is that of one TIFF; leave it out, or name a target that ends in .tif")
    if format != "ome-zarr" and image is not None:
        raise WorkflowError("an image with labels is an OME-Zarr; export the image by itself, or use format ome-zarr")
    source = _volume_of(Location.of(volume), threshold)
    run_folder, name = new.run_folder, new.goal.name
    made: Copy | Precomputed | Tiff | TiffStack
    beside: Copy | None = None
    stages: list[Stage]
    if format == "precomputed":
        made = Precomputed.of(run_folder, source, name, labels=labels, encoding=encoding, voxel_offset=voxel_offset)
        stages = [made]
    elif format == "tiff":
        sections = Tiff.of(run_folder, source, name)
        made, stages = sections, [sections]
        if one_file:
            made = TiffStack(run_folder=run_folder, name=name, sections=sections, compression=compression or "none")
            stages = [sections, made]
    elif image is None:
        made = Copy.of(run_folder, source, name)
        stages = with_levels(made, pyramid=True, labels=labels)
    else:
        made = Copy.of(run_folder, Location.of(image), name)
        beside = Copy.beside(made, source)
        stages = [*with_levels(made, pyramid=True, labels=False), *with_levels(beside, pyramid=True, labels=True)]
    new.run(stages, cluster, watch)
    if beside is not None:
        announce_labels(made.target, beside.name)
    return new.finish(made.target)


def _volume_of(place: Location, threshold: str | None) -> Location:
    """The volume that is meant by a volume or a run. Raises `WorkflowError` if it is not whole."""
    if not (place / PLAN_FILE).exists():
        if threshold is not None:
            raise WorkflowError(f"{place} is no run, so it has no thresholds; leave the threshold out")
        return place
    stages = planned_stages(place)
    found = {stage.threshold: stage for stage in stages if isinstance(stage, Segment)}
    if threshold is None and len(found) == 1:
        threshold = next(iter(found))
    if threshold not in found:
        raise WorkflowError(f"name one of the thresholds of run {place}: {', '.join(found)}")
    segment = found[threshold]
    _, progress, _ = restore(read_ledger(place), stages)
    for stage in (segment, *(last for last in stages if isinstance(last, Pyramid) and last.path == segment.path)):
        counts = progress.stages[stage.fingerprint]
        if counts.done + counts.skipped < counts.total:
            raise WorkflowError(
                f"run {place} has {counts.done} of {counts.total} blocks of stage {stage.title}; `neuroshed resume "
                f"{place}` goes on, then export"
            )
    return segment.path
