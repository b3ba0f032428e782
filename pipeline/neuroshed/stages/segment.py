"""Merges to labels: the way down the tree, then each block paints itself."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.geometry import Grid, Vec, add
from neuroshed.kernels.across import WAYS
from neuroshed.kernels.merging import clusters_at, integer_threshold
from neuroshed.kernels.relabel import look_up, paint, places
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Done, Need, Stage, Step
from neuroshed.stages.masks import left_out
from neuroshed.stages.octree import answer, descend, level_of, needs, parent_of
from neuroshed.stages.settle import NEVER
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, read_node, write_node
from neuroshed.storage.volumes import Volume

FRAGMENTS = "fragments"
PAINT = "paint"


class Segment(Stage):
    """The segmentation at one threshold: fragments joined by the merges that score at least it."""

    kind: Literal["segment"] = "segment"
    version = 3
    agglomerate: Agglomerate
    threshold: str
    """A score in 0..1 as decimal text, so that it is exact; or `fragments`, which paints them unmerged."""
    alarm_share: float = 1.0
    """Share of the region's voxels above which the largest segment is reported as a likely false merge."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "alarm_share"})

    @property
    def title(self) -> str:
        """What sets this stage apart from those of other thresholds."""
        return f"{self.kind} {self.threshold}"

    @cached_property
    def grids(self) -> list[Grid]:
        """The levels of the octree, leaves first."""
        return self.agglomerate.grids

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """From the root down to the leaves, then each block; some of its fragments belong to leaves above it."""
        below = self.agglomerate
        blocks = (Need(self.fingerprint, "down0", high=(1, 1, 1)), *needs(below.fragments))
        skipped = below.fragments.skipped
        painted = Step(PAINT, self.grids[0], blocks, left_out(skipped))
        return (*descend(self.fingerprint, self.grids, below.fingerprint, skipped), painted)

    @property
    def path(self) -> Location:
        """Where the labels are."""
        return self.folder / f"{self.threshold}.zarr"

    @cached_property
    def labels(self) -> Volume:
        """Segment (or fragment) ids, uint64."""
        return self.agglomerate.fragments.label_volume(self.path)

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.path)

    def written(self, step: str) -> tuple[Volume, ...]:
        """The labels, which the last step writes."""
        return (self.labels,) if step == PAINT else ()

    def has_tables(self, step: str) -> bool:
        """Of nodes; blocks are painted."""
        return step != PAINT

    def run(self, step: str, index: Vec) -> Done:
        """Answer those below a node, or paint a block."""
        return self._paint(index) if step == PAINT else self._answer(step, index)

    def _answer(self, step: str, index: Vec) -> Done:
        level = level_of(step)
        node = self.agglomerate.node_path(f"up{level}", index)
        entering, fragments, up, merges = read_node(node, "entering", "fragments", "nodes", "merges")
        joined = self._joined(fragments, merges)
        segments = np.concatenate([np.zeros(1, np.uint64), fragments["id"][joined]])[
            np.searchsorted(fragments["id"], entering["fragment"], side="right")
        ]
        top = level + 1 == len(self.grids)
        parent = None if top else self.node_path(f"down{level + 1}", parent_of(index))
        final = answer(segments, up["id"], parent, "segment")
        write_node(self.node_path(step, index), {"answers": {"id": entering["id"], "segment": final}})
        return Done(0, self._largest(fragments, joined, up))

    def _paint(self, index: Vec) -> Done:
        box = self.grids[0].block_box(index)
        below = self.agglomerate.fragments
        table = below.node_path("", index)
        (nodes,) = read_node(table, "fragments")
        labels = below.labels.read(box)
        if labels.max() != nodes["id"].size:
            raise BlockError(
                f"{below.path} has labels up to {labels.max()} in {box}, {table} lists {nodes['id'].size} fragments: "
                "they are not of one run; remove the folder of their stage and run again"
            )
        homes = self.agglomerate.homes(nodes)
        values = np.zeros(homes.size + 1, np.uint64)
        for number in np.unique(homes).tolist():
            belong = homes == number
            path = self.node_path("down0", add(index, WAYS[number]))
            (answers,) = read_node(path, "answers")
            values[1:][belong], found = look_up(nodes["id"][belong], answers["id"], answers["segment"])
            if not found.all():
                missing = nodes["id"][belong][~found][0]
                raise BlockError(f"{path} has no answer for id {missing}; remove this stage's folder and run again")
        self.labels.write(box, paint(labels, values), below.region)
        return Done(box.size)

    @property
    def _limit(self) -> int:
        """Merges that score less do not count."""
        return NEVER if self.threshold == FRAGMENTS else integer_threshold(Fraction(self.threshold))

    def _joined(self, fragments: Columns, merges: Columns) -> npt.NDArray[np.int64]:
        """For each fragment of a node the row of the smallest one that it is joined with."""
        ids = fragments["id"]
        left, right = (places(ids, merges[side]) for side in ("left", "right"))
        return clusters_at(ids.size, left, right, merges["score"], self._limit)

    def _largest(self, fragments: Columns, joined: npt.NDArray[np.int64], up: Columns) -> dict[str, int]:
        """Voxels and id of the largest segment that is complete in this node, if one is."""
        limit = self._limit
        # A cluster that formed below the threshold comes apart here; its parts were complete further down.
        whole = fragments["formed"] >= limit
        sizes = np.zeros(whole.size, np.int64)
        np.add.at(sizes, joined[whole], fragments["total"][whole])
        sizes[np.isin(fragments["id"], up["id"][up["formed"] >= limit])] = 0
        if not sizes.any():
            return {}
        row = int(sizes.argmax())
        return {"largest_voxels": int(sizes[row]), "largest_segment": int(fragments["id"][row])}

    def shards(self, step: str) -> Vec | None:
        """Those of the labels, which are painted at the end."""
        return self.agglomerate.fragments.shard_shape if step == PAINT else None

    @property
    def output_bytes(self) -> int:
        """Eight bytes a voxel of the region."""
        return 8 * self.steps[-1].voxels_left

    def memory_bytes(self, step: str) -> int:
        """The block's labels as stored and read, the painted ones, their padded shard and its compressed copy, and the
        tables of up to four leaves; of a node, less than on the way up.
        """
        if step != PAINT:
            return self.agglomerate.memory_bytes(f"up{level_of(step)}")
        z, y, x = self.agglomerate.fragments.block_shape
        return (8 << 20) + z * y * x * 24

    def report(self) -> dict[str, Any]:
        """Where the labels are, by threshold."""
        if self.threshold == FRAGMENTS:
            return {"fragments": str(self.path)}
        return {"segmentations": {self.threshold: str(self.path)}}
