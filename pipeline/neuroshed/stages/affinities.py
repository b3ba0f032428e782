"""Affinities that are there already: a volume that somebody else predicted."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Vec
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.storage.identity import volume_identity
from neuroshed.storage.volumes import Volume, open_volume

NEAREST: tuple[Vec, Vec, Vec] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
"""Channel c at voxel p is the edge between p and p - e_c: the convention of waterz."""


class Affinities(Stage):
    """A given uint8 affinity volume `(3 or more, z, y, x)` in the convention of `NEAREST`; it has no blocks to run."""

    kind: Literal["affinities"] = "affinities"
    path: Path
    volume_shape: Vec
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    identity: dict[str, Any]
    """What the array was when the run was planned."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "path"})

    @classmethod
    def of(cls, run_folder: Path, path: Path) -> Affinities:
        """Describe the volume at `path`; raises `InputError` if it is not uint8 with three nearest-neighbour
        channels.
        """
        volume = open_volume(path)
        if volume.channels is None or volume.channels < 3 or volume.dtype != np.uint8:
            raise InputError(
                f"affinities at {path} are {volume.dtype} with {volume.channels or 'no'} channels; "
                "needed are uint8 (0..255) with at least 3 channels (z, y, x)"
            )
        if volume.voxel_offsets is not None and volume.voxel_offsets[:3] != NEAREST:
            raise InputError(
                f"affinities at {path} have offsets {volume.voxel_offsets[:3]}; the first three must be {NEAREST}"
            )
        return cls(
            run_folder=run_folder,
            path=volume.path,
            volume_shape=volume.shape,
            voxel_size=volume.voxel_size,
            offset=volume.offset,
            identity=volume_identity(volume),
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """None: the data is there."""
        return ()

    def run(self, step: str, index: Vec) -> Done:
        """Never called, since there are no steps; raises `BlockError`."""
        raise BlockError(f"affinities {self.path} are given; there is no step {step!r} to run at block {index}")

    def memory_bytes(self, step: str) -> int:
        """Nothing is computed."""
        return 0

    @cached_property
    def affinities(self) -> Volume:
        """The affinity volume."""
        return open_volume(self.path)
