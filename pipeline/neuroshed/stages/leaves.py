"""The leaves of the tree: one block's fragments, and the edges between them and those of its lower neighbours."""

from __future__ import annotations

import numpy as np

from neuroshed.geometry import Vec
from neuroshed.kernels.faces import Plane, crossings
from neuroshed.kernels.relabel import Ids
from neuroshed.kernels.scores import Score
from neuroshed.stages.blocks import BlockStage, neighbour
from neuroshed.stages.octree import Entering, concatenate
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.settle import NEVER
from neuroshed.stages.waterz import WaterzScores
from neuroshed.storage.nodes import Columns, read_node


def leaf(below: BlockStage, index: Vec, score: Score, semantics: Semantics | None = None) -> Entering:
    """A block on its own, and the edges between it and its lower neighbours."""
    nodes, gains, links, edges = read_node(below.node_path("", index), "fragments", "gains", "links", "edges")
    ids: Ids = nodes["id"]
    ends = {side: ids[edges[side]] for side in ("left", "right")}
    levels = below.face_levels(index)
    cross = [_crossing(below, score, index, axis, ids, int(levels[axis, 0])) for axis in range(3) if levels[axis, 0]]
    return Entering(
        nodes=_entering(nodes) | _votes(below, index, ids.size, semantics),
        gains={"id": ids[gains["fragment"]], "key": gains["key"], "voxels": gains["voxels"]},
        links={
            "left": ids[links["left"]],
            "right": ids[links["right"]],
            "key": links["key"],
            "joined": np.zeros(links["key"].size, np.bool_),
        },
        edges={**ends, "stats": statistics(score, edges)},
        cross=concatenate([_no_crossing(score), *cross]),
        names=_names(nodes),
    )


def scored_leaf(scores: WaterzScores, index: Vec, semantics: Semantics | None = None) -> Entering:
    """A block whose edges, also those to its lower neighbours, have their scores already; `kernels.scores.GIVEN`.

    Its fragments are final, so there are neither gains nor links.
    """
    below = scores.fragments
    (nodes,) = read_node(below.node_path("", index), "fragments")
    edges, cross = read_node(scores.node_path("", index), "edges", "cross")
    none = np.zeros(0, np.uint64)
    return Entering(
        nodes=_entering(nodes | {"start": nodes["total"]}) | _votes(below, index, nodes["id"].size, semantics),
        gains={"id": none, "key": none, "voxels": np.zeros(0, np.int64)},
        links={"left": none, "right": none, "key": none, "joined": np.zeros(0, np.bool_)},
        edges={"left": edges["left"], "right": edges["right"], "stats": edges["score"][:, None]},
        cross={
            **{name: cross[name] for name in ("upper", "lower", "level")},
            "key": np.zeros(cross["score"].size, np.uint64),
            "joined": np.zeros(cross["score"].size, np.bool_),
            "stats": cross["score"][:, None],
        },
        names=_names(nodes),
    )


def _entering(nodes: Columns) -> Columns:
    """What the tree takes of a block's table of fragments."""
    taken = {name: nodes[name] for name in ("id", "start", "total", "rank", "touching")}
    return taken | {"formed": np.full(nodes["id"].size, NEVER, np.int64)}


def _names(nodes: Columns) -> Columns:
    """Fragments that other blocks may have edges to."""
    named = nodes["touching"] > 0
    return {"leaf": nodes["id"][named], "id": nodes["id"][named], "level": nodes["touching"][named]}


def _votes(below: BlockStage, index: Vec, count: int, semantics: Semantics | None) -> Columns:
    if semantics is None:
        return {}
    box = below.grid.block_box(index)
    return {"class": np.zeros(count, np.uint8), "votes": semantics.votes(box, below.labels.read(box), count)}


def _crossing(below: BlockStage, score: Score, index: Vec, axis: int, ids: Ids, level: int) -> Columns:
    own, other = below.node_path("", index), below.node_path("", neighbour(index, axis, -1))
    (upper,) = read_node(own, f"low{axis}")
    lower, fragments = read_node(other, f"high{axis}", "fragments")
    found = crossings(
        Plane(upper["label"].astype(np.int64), upper["picked"]),
        Plane(lower["label"].astype(np.int64), lower["picked"]),
        upper["affinity"],
        below.place(below.grid.block_box(index)),
        axis,
        below.low,
        below.joins_across,
        below.histograms,
    )
    stats: Columns = {"sum": found.sums, "count": found.counts, "lowest": found.lowest, "highest": found.highest}
    if below.histograms:
        stats["histogram"] = found.histograms
    return {
        "upper": ids[found.upper - 1],
        "lower": fragments["id"][found.lower - 1],
        "level": np.full(found.keys.size, level, np.uint8),
        "key": found.keys,
        "joined": found.joined,
        "stats": statistics(score, stats),
    }


def _no_crossing(score: Score) -> Columns:
    return {
        "upper": np.zeros(0, np.uint64),
        "lower": np.zeros(0, np.uint64),
        "level": np.zeros(0, np.uint8),
        "key": np.zeros(0, np.uint64),
        "joined": np.zeros(0, np.bool_),
        "stats": np.zeros((0, score.columns), np.int64),
    }


def statistics(score: Score, rows: Columns) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The columns that a score needs of a table of contacts, int64 `(n, k)`."""
    names = {"mean": ("sum", "count"), "max": ("highest",), "min": ("lowest",)}
    if score.name not in names:
        return rows["histogram"]
    return np.stack([rows[name].astype(np.int64) for name in names[score.name]], axis=1)
