"""What a run takes of its disk or store: bytes and files (in a bucket: objects), at most and for each TB of input."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroshed.geometry import Vec
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.base import Stage
from neuroshed.stages.predict import Predict
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import open_volume

FRONTIER_LAYERS = 4
"""Layers of blocks across the longest axis in which predicted affinities wait for the last that reads them: two by
geometry, and as many for blocks at workers.
"""
TB = 10**12


@dataclass(frozen=True)
class Footprint:
    """Upper bounds for a run; bytes are those before compression."""

    input_bytes: int
    """Of the region of the image or the given affinities."""
    peak_bytes: int
    """Of arrays, the most that are there at a time."""
    peak_files: int
    """Tables and shards, the most that are there at a time."""

    @classmethod
    def of(
        cls, stages: Sequence[Stage], source: Affinities | Predict, droppable: Collection[tuple[str, str]]
    ) -> Footprint:
        """Of a run's stages. Predicted affinities that are `droppable` stand only where something still reads them."""
        total = sum(stage.output_bytes for stage in stages)
        files = sum(stage.output_files for stage in stages)
        if isinstance(source, Predict) and (source.fingerprint, "") in droppable:
            blocks = source.steps[0].blocks_left
            behind = max(blocks - frontier_blocks(source.grid.counts), 0)
            total -= source.output_bytes * behind // max(blocks, 1)
            files -= source.output_files * behind // max(blocks, 1)
        return cls(_input_bytes(source, stages), total, files)

    def describe(self) -> dict[str, Any]:
        """For `plan`: also for each TB of input."""
        scale = TB / max(self.input_bytes, 1)
        return {
            "peak_disk_bytes": self.peak_bytes,
            "peak_files": self.peak_files,
            "input_bytes": self.input_bytes,
            "files_per_input_tb": round(self.peak_files * scale),
            "bytes_per_input_tb": round(self.peak_bytes * scale),
        }

    def warning(self, run_folder: Location) -> str | None:
        """Of a file system that has room for fewer files than the run may make; None if it has enough, or if it counts
        none.
        """
        if not run_folder.is_local:
            return None
        status = os.statvfs(_standing(run_folder.local))
        if status.f_files == 0 or self.peak_files <= status.f_favail:
            return None
        share = self.peak_bytes / max(status.f_bavail * status.f_frsize, 1)
        first = "; they would run out before its space" if self.peak_files / max(status.f_favail, 1) > share else ""
        return (
            f"the run may make {self.peak_files:,} files at a time, the file system of {run_folder} has inodes for "
            f"{status.f_favail:,} more{first}: choose a larger block_shape and shard_shape, or another file system"
        )


def frontier_blocks(counts: Vec) -> int:
    """The most blocks of predicted affinities that stand at a time if they are not kept, with no more threads than a
    cross-section has blocks.

    Blocks are done in sweeps along the longest axis and read one block beyond; its corners reach one row and one block
    further on both sides.
    """
    _, row, layers = sorted(counts)
    return FRONTIER_LAYERS * int(np.prod(counts)) // layers + 2 * (row + 1)


def _input_bytes(source: Affinities | Predict, stages: Sequence[Stage]) -> int:
    """Of the voxels that are read, once each."""
    if isinstance(source, Predict):
        return source.steps[0].voxels_left * open_volume(source.image).dtype.itemsize
    volume = open_volume(source.path, source.axes)
    voxels = next(stage.steps[0].voxels_left for stage in stages if source in stage.upstream)
    return voxels * volume.dtype.itemsize * (volume.channels or 1)


def _standing(path: Path) -> Path:
    """The folder, or the one above it that is there already."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
