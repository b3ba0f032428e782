"""Merges to segments: the way down the tree, then each block paints itself, once for every threshold."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.agglomerate import Merges, cut, integer_threshold
from neuroshed.kernels.relabel import relabel
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.octree import answer, descend, level_of, needs, parent_of
from neuroshed.storage.nodes import read_node, write_node
from neuroshed.storage.volumes import Volume


class Segment(Stage):
    """The segmentation at each threshold: fragments joined by the merges that score at least it."""

    kind: Literal["segment"] = "segment"
    agglomerate: Agglomerate
    thresholds: tuple[str, ...]
    """Affinities in 0..1 as decimal text, so that they are exact."""

    @cached_property
    def grids(self) -> list[Grid]:
        """The levels of the octree, leaves first."""
        return self.agglomerate.grids

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """From the root down to the blocks."""
        agglomerate = self.agglomerate
        return descend(self.fingerprint, self.grids, agglomerate.fingerprint, needs(agglomerate.graph.stitch, "down0"))

    def path(self, threshold: str) -> Path:
        """Where the segmentation at a threshold is."""
        return self.folder / f"{threshold}.zarr"

    @cached_property
    def segmentations(self) -> dict[str, Volume]:
        """Segment ids, uint64, by threshold."""
        fragments = self.agglomerate.graph.stitch.fragments
        return {threshold: fragments.label_volume(self.path(threshold)) for threshold in self.thresholds}

    @property
    def marks(self) -> tuple[Path, ...]:
        """The stage's file and the volumes."""
        return (*super().marks, *(self.path(threshold) for threshold in self.thresholds))

    def prepare(self) -> None:
        """Create the segmentation volumes and the folders of nodes."""
        super().prepare()
        _ = self.segmentations

    def run(self, step: str, index: Vec) -> Done:
        """Answer the children of a node, or paint a block."""
        level = level_of(step)
        node = self.agglomerate.node_path(f"up{level}", index)
        entering, clusters, rows = read_node(node, "entering", "clusters", "merges")
        ids, handed_up = entering["id"], clusters["id"]
        merges = Merges(rows["left"], rows["right"], rows["score"])
        top = level + 1 == len(self.grids)
        parent = None if top else self.node_path(f"down{level + 1}", parent_of(index))
        answers = {
            threshold: answer(cut(ids, merges, integer_threshold(Fraction(threshold))), handed_up, parent, threshold)
            for threshold in self.thresholds
        }
        if level:
            write_node(self.node_path(step, index), {"answers": {"id": ids, **answers}})
            return Done(0)
        stitch = self.agglomerate.graph.stitch
        box = self.grids[0].block_box(index)
        labels = stitch.labels.read(box)
        for threshold, final in answers.items():
            self.segmentations[threshold].write(box, relabel(labels, ids, final), stitch.fragments.region)
        return Done(box.size)

    @property
    def output_bytes(self) -> int:
        """Eight bytes a voxel of the region, for every threshold."""
        return self.agglomerate.graph.stitch.output_bytes * len(self.thresholds)

    def memory_bytes(self, step: str) -> int:
        """Fragments, as stored and read, one segmentation, its padded shard and its compressed copy."""
        z, y, x = self.agglomerate.graph.stitch.fragments.block_shape
        return z * y * x * 5 * 8 if level_of(step) == 0 else 64 << 20

    def report(self) -> dict[str, Any]:
        """Where the segmentations are, by threshold."""
        return {"segmentations": {threshold: str(self.path(threshold)) for threshold in self.thresholds}}
