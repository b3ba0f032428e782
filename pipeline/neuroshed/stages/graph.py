"""The region graph: for each block, its fragments and the sum and count of affinities between them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from neuroshed.geometry import Grid, Vec
from neuroshed.kernels.graph import INSIDE, contacts, faces_touched, group_pairs, read_box
from neuroshed.kernels.order import key_affinity
from neuroshed.stages.base import Done, Stage, Step
from neuroshed.stages.octree import needs, outer_bits, select
from neuroshed.stages.stitch import Stitch
from neuroshed.storage.nodes import Columns, write_node


class Graph(Stage):
    """Contacts between fragments. Each voxel face belongs to the block of its upper voxel, so all are counted once."""

    kind: Literal["graph"] = "graph"
    stitch: Stitch

    @property
    def grid(self) -> Grid:
        """The blocks of the region."""
        return self.stitch.fragments.grid

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass; a block reads its affinities and the fragments of one voxel beyond its low faces."""
        read = (*needs(self.stitch, "down0", low=(1, 1, 1)), *needs(self.stitch.fragments.source))
        return (Step("", self.grid, read),)

    def run(self, step: str, index: Vec) -> Done:
        """Contacts of one block: tables `nodes` (id, mask of outer faces), `edges` inside it, `cross` over its low
        faces.
        """
        below = self.stitch.fragments
        box = self.grid.block_box(index)
        halo = read_box(box, below.region)
        labels = self.stitch.labels.read(halo)
        rows = contacts(labels, below.source.affinities.read(box, channels=3), below.place(box))
        inside = rows.axis == INSIDE
        columns: Columns = {
            "left": np.minimum(rows.upper, rows.lower),
            "right": np.maximum(rows.upper, rows.lower),
            "sum": key_affinity(rows.keys).astype(np.int64),
            "count": np.ones(rows.keys.size, np.int64),
            "axis": rows.axis,
        }
        cross = sum_pairs(select(columns, ~inside))
        edges = sum_pairs({name: c for name, c in select(columns, inside).items() if name != "axis"})
        own = labels[box.slices(halo.start)]
        ids = np.unique(own)
        touched, masks = faces_touched(own)
        mask = np.zeros(ids.size, np.uint8)
        mask[np.searchsorted(ids, touched)] = masks & np.uint8(outer_bits(box, box, below.region))
        nodes = select({"id": ids, "mask": mask}, ids != 0)
        write_node(self.node_path(step, index), {"nodes": nodes, "edges": edges, "cross": cross})
        return Done(box.size, {"edges": float(edges["left"].size)})

    def memory_bytes(self, step: str) -> int:
        """Fragments, affinities and the list of contacts, taken as one for each voxel."""
        z, y, x = self.stitch.fragments.block_shape
        return z * y * x * (2 * 8 + 3 + 3 * 8 + 1 + 5 * 8)


def sum_pairs(rows: Columns) -> Columns:
    """One row a pair (and axis, if there is one), sorted: `sum` and `count` added up."""
    order, starts = group_pairs(rows["left"], rows["right"], rows.get("axis"))
    if starts.size == 0:
        return rows
    out = {name: column[order][starts] for name, column in rows.items()}
    for name in ("sum", "count"):
        out[name] = np.add.reduceat(rows[name][order], starts)
    return out
