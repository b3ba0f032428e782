"""Scores of a segmentation against a truth: each block counts which labels meet, the sum of the counts is scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.kernels.metrics import (
    RAND_VARIANTS,
    SLICE_VOXELS,
    ContingencyTable,
    RandScore,
    RandVariant,
    adapted_rand,
    add_contingency,
    collapse_unlabelled,
    contingency,
    variation_of_information,
)
from neuroshed.stages.base import Done
from neuroshed.stages.passes import Pass
from neuroshed.storage.identity import unchanged, volume_identity
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node, write_node
from neuroshed.storage.volumes import Volume, open_volume

PAIR_BYTES = 120
"""Memory of a label pair while tables are sorted and added up: measured, with its share of copies."""
UNLABELLED = np.uint64(2**64 - 1)
"""CREMI's files mark voxels without a truth by this label; it counts as 0."""


class Contingency(Pass):
    """Contingency tables of the blocks of two label volumes of one shape."""

    kind: Literal["evaluate"] = "evaluate"
    segmentation: Location
    truth: Location
    segmentation_identity: dict[str, Any]
    """What the segmentation was when the run was planned."""
    truth_identity: dict[str, Any]
    """What the truth was when the run was planned."""
    box: Box
    """The part that is scored, in voxels of both volumes."""
    block_shape: Vec

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "segmentation", "truth"})

    @classmethod
    def of(
        cls, run_folder: Location, segmentation: Location, truth: Location, block_shape: Vec, box: Box | None = None
    ) -> Contingency:
        """Plan an evaluation of two label volumes (or of a box of them).

        Raises `InputError` if their shapes differ, one holds no labels (integers without channels), or the box is not
        in them.
        """
        seg, reference = open_volume(segmentation), open_volume(truth)
        for volume in (seg, reference):
            if volume.channels is not None or volume.dtype.kind not in "ui":
                raise InputError(
                    f"{volume.path} is {volume.dtype} with {volume.channels or 'no'} channels; "
                    "needed are integer labels without channels"
                )
        if seg.shape != reference.shape:
            raise InputError(
                f"segmentation {seg.path} has shape {list(seg.shape)}, truth {reference.path} {list(reference.shape)}; "
                "crop or pad one of them to the other"
            )
        box = box or seg.box
        if box.empty or not seg.box.contains(box):
            raise InputError(f"box {box} is not inside the volumes of shape {list(seg.shape)}; give another box")
        return cls(
            run_folder=run_folder,
            segmentation=seg.path,
            truth=reference.path,
            segmentation_identity=volume_identity(seg),
            truth_identity=volume_identity(reference),
            box=box,
            block_shape=block_shape,
        )

    @property
    def grid(self) -> Grid:
        """The blocks of the box."""
        return Grid(self.box, self.block_shape)

    @cached_property
    def volumes(self) -> tuple[Volume, Volume]:
        """Segmentation and truth."""
        return open_volume(self.segmentation), open_volume(self.truth)

    def run(self, step: str, index: Vec) -> Done:
        """Count the label pairs of one block; all voxels without a truth go to the pair (0, 0)."""
        box = self.grid.block_box(index)
        one, other = self.volumes
        with unchanged(one, self.segmentation_identity), unchanged(other, self.truth_identity):
            seg, truth = _read_labels(one, box), _read_labels(other, box)
        table = contingency(seg, truth)
        known = ContingencyTable(table.seg, np.where(table.truth == UNLABELLED, 0, table.truth), table.counts)
        counted = collapse_unlabelled(known)
        columns = {"seg": counted.seg, "truth": counted.truth, "count": counted.counts}
        write_node(self.node_path(step, index), {"contingency": columns})
        return Done(box.size, {"labelled": float(counted.counts[counted.truth != 0].sum())})

    def memory_bytes(self, step: str) -> int:
        """Both label arrays as stored and as read, the counting by slices, and a table with a pair for every 8 voxels.

        Tables of real segmentations are far smaller; labels that are noise could take more.
        """
        voxels = int(np.prod(np.minimum(self.block_shape, self.box.shape)))
        arrays = sum(2 * volume.dtype.itemsize for volume in self.volumes)
        return voxels * (arrays + PAIR_BYTES // 8) + SLICE_VOXELS * PAIR_BYTES


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over the voxels of nonzero truth.

    VOI in bits: `voi_split` is H(segmentation | truth), `voi_merge` is H(truth | segmentation), predicted 0 counts as
    one segment. What the variants of the adapted Rand error do with it is told at `kernels.metrics.adapted_rand`.
    """

    voi_split: float
    voi_merge: float
    adapted_rand: dict[RandVariant, RandScore]
    segments: int
    """Segments (other than 0) that meet a voxel of nonzero truth."""
    truth_labels: int
    voxels: int
    """Voxels of nonzero truth."""

    @property
    def voi(self) -> float:
        """Variation of information in bits: split + merge."""
        return self.voi_split + self.voi_merge

    def as_json(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return {
            "voi_split": self.voi_split,
            "voi_merge": self.voi_merge,
            "voi": self.voi,
            "adapted_rand": {variant: score._asdict() for variant, score in self.adapted_rand.items()},
            "segments": self.segments,
            "truth_labels": self.truth_labels,
            "voxels": self.voxels,
        }


def evaluate_tables(stage: Contingency) -> Scores:
    """Score the summed tables of all blocks of a finished stage; raises as `summed_table`."""
    return score_table(summed_table(stage))


def summed_table(stage: Contingency) -> ContingencyTable:
    """The sum of the tables of all blocks of a finished stage, read one by one.

    Raises `InputError` if the truth has no label in the box, `BlockError` for a table that is missing or damaged.
    """
    table = add_contingency(_tables(stage))
    if not (table.truth != 0).any():
        raise InputError(f"truth {stage.truth} has no label but 0 in box {stage.box}; nothing can be scored")
    return table


def score_table(table: ContingencyTable) -> Scores:
    """Score a table in which some truth is not 0; label pairs may occur more than once."""
    table = add_contingency([table])
    labelled = table.truth != 0
    variation = variation_of_information(table)
    segments = np.unique(table.seg[labelled])
    return Scores(
        voi_split=variation.split,
        voi_merge=variation.merge,
        adapted_rand={variant: adapted_rand(table, variant) for variant in RAND_VARIANTS},
        segments=int(np.count_nonzero(segments)),
        truth_labels=int(np.unique(table.truth[labelled]).size),
        voxels=int(table.counts[labelled].sum()),
    )


def _tables(stage: Contingency) -> Iterator[ContingencyTable]:
    for index in stage.grid:
        (columns,) = read_node(stage.node_path("", index), "contingency")
        yield ContingencyTable(columns["seg"], columns["truth"], columns["count"])


def _read_labels(volume: Volume, box: Box) -> npt.NDArray[Any]:
    labels = volume.read(box)
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise BlockError(f"{volume.path} has the label {labels.min()} in box {box}; labels must not be negative")
    return labels
