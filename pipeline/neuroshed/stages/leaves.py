"""The leaves of the tree: one block's fragments with those of its lower neighbours that are settled there.

Most fragments at a face are crumbs that the face has cut. They would all wait for the node that holds both sides, which
for the middle of the volume is the root. So a leaf is a little more than its block: a fragment of fewer than `small`
voxels that has edges to one block above, and to no other, belongs to the leaf of that block, with all its edges. Where
an edge ends at a fragment that belongs to another leaf, a *copy* stands for it: a part of no voxels, joined to the
fragment in the first node that holds both. So leaves are one more way to cut a volume into parts, and nothing in the
tree's rules depends on how it is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.geometry import Box, Vec, add, meeting_level, sub
from neuroshed.kernels.across import NEAREST, WAYS, way_number, ways_of
from neuroshed.kernels.faces import Crossings, Plane, crossings, far_crossings
from neuroshed.kernels.relabel import Ids
from neuroshed.kernels.scores import Score
from neuroshed.stages.blocks import BlockStage
from neuroshed.stages.octree import Entering, concatenate, select
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.settle import NEVER
from neuroshed.stages.waterz import WaterzScores
from neuroshed.storage.nodes import Columns, read_node

COPY_SHIFT = np.uint64(56)
"""A copy's id is that of the fragment with the number of a way above the bits of ids, so it is never the smallest."""
_OWN_COPY = 8
"""In the place of that number for copies in the fragment's own block."""
_BITS = np.arange(128)[:, None] >> np.arange(7) & 1
_NUMBER_OF_MASK = np.where(_BITS.sum(axis=1) == 1, _BITS @ np.arange(1, 8), 0).astype(np.uint8)


class _Block(NamedTuple):
    """A block as the leaf sees it to which the way of this `number` leads from there.

    `homes` uint8: the number of the way from the block to the leaf that each fragment belongs to. `levels` uint8
    `(8,)`: the tree level at which the leaf meets that at each way from the block. `links` and `edges` are between rows
    of `nodes`.
    """

    number: int
    nodes: Columns
    homes: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.uint8]
    gains: Columns
    links: Columns
    edges: Columns
    votes: npt.NDArray[np.int64] | None

    def named(self, rows: npt.NDArray[np.int64]) -> Ids:
        """Fragments by their ids in the leaf: as they are, or those of their copies."""
        ids: Ids = self.nodes["id"][rows]
        return np.where(self.homes[rows] == self.number, ids, ids | np.uint64(self.number or _OWN_COPY) << COPY_SHIFT)

    def places(self, table: Columns) -> npt.NDArray[np.uint8]:
        """The way number of the leaf that holds each edge: where one end belongs, if the other is at home or there too;
        else the block's own, which then has copies of both.
        """
        left, right = self.homes[table["left"]], self.homes[table["right"]]
        places: npt.NDArray[np.uint8] = np.where(
            (left == right) | (right == 0), left, np.where(left == 0, right, np.uint8(0))
        )
        return places


class _Cross(NamedTuple):
    """Edges from the leaf's block (rows `upper`) to one of `blocks` below (its place there, rows `lower`), `key` and
    `joined` as in `faces.Crossings`, and the columns that `statistics` takes.
    """

    block: int
    upper: npt.NDArray[np.int64]
    lower: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    joined: npt.NDArray[np.bool_]
    stats: Columns


def leaf(below: BlockStage, index: Vec, score: Score, semantics: Semantics | None = None) -> Entering:
    """What belongs to the leaf of a block."""
    ways = sorted({way_number(way) for offset in (*NEAREST, *below.further_offsets) for way in ways_of(offset)})
    blocks = [_read_block(below, index, 0, semantics)]
    cross = []
    for number in ways:
        if below.is_there(sub(index, WAYS[number])):
            block = _read_block(below, index, number, semantics)
            cross += [_cross(found, len(blocks), below.histograms) for found in _crossings(below, index, number)]
            blocks.append(block)
    return _entering(blocks, cross, score, below.small)


def scored_leaf(scores: WaterzScores, index: Vec, semantics: Semantics | None = None) -> Entering:
    """A block whose edges, also those to its lower neighbours, have their scores already; `kernels.scores.GIVEN`.

    Its fragments are final, so there are neither gains nor links, and all belong to their own leaves.
    """
    below = scores.fragments
    edges, cross = read_node(scores.node_path("", index), "edges", "cross")
    blocks = [_scored_block(below, index, 0, edges, semantics)]
    crossed = []
    for number in sorted(map(way_number, ((0, 0, 1), (0, 1, 0), (1, 0, 0)))):
        if below.is_there(sub(index, WAYS[number])):
            block = _scored_block(below, index, number, select(edges, np.zeros(edges["left"].size, np.bool_)), None)
            rows = select(cross, cross["way"] == number)
            upper = np.searchsorted(blocks[0].nodes["id"], rows["upper"])
            lower = np.searchsorted(block.nodes["id"], rows["lower"])
            none = np.zeros(upper.size, np.uint64)
            crossed.append(_Cross(len(blocks), upper, lower, none, none > 0, {"score": rows["score"]}))
            blocks.append(block)
    return _entering(blocks, crossed, Score("given"), small=0)


def statistics(score: Score, rows: Columns) -> npt.NDArray[np.int64]:
    """The columns that a score needs of a table of contacts, int64 `(n, k)`."""
    names = {"mean": ("sum", "count"), "max": ("highest",), "min": ("lowest",), "given": ("score",)}
    if score.name not in names:
        return rows["histogram"]
    return np.stack([rows[name].astype(np.int64) for name in names[score.name]], axis=1)


def home_numbers(nodes: Columns, small: int) -> npt.NDArray[np.uint8]:
    """The number of the way from a block to the leaf that each of its fragments belongs to, uint8; 0: its own."""
    crumbs = ~nodes["below"] & (nodes["total"] < small)
    return np.where(crumbs, _NUMBER_OF_MASK[nodes["above"]], np.uint8(0))


def _levels(index: Vec, number: int) -> npt.NDArray[np.uint8]:
    block = sub(index, WAYS[number])
    return np.array([meeting_level(index, add(block, way)) for way in WAYS], np.uint8)


def _votes(below: BlockStage, block: Vec, count: int, semantics: Semantics | None) -> npt.NDArray[np.int64] | None:
    if semantics is None:
        return None
    box = below.grid.block_box(block)
    return semantics.votes(box, below.labels.read(box), count)


def _read_block(below: BlockStage, index: Vec, number: int, semantics: Semantics | None) -> _Block:
    block = sub(index, WAYS[number])
    nodes, gains, links, edges = read_node(below.node_path("", block), "fragments", "gains", "links", "edges")
    return _Block(
        number,
        nodes,
        home_numbers(nodes, below.small),
        _levels(index, number),
        gains,
        links | {"joined": np.zeros(links["key"].size, np.bool_)},
        edges,
        _votes(below, block, nodes["id"].size, semantics),
    )


def _scored_block(below: BlockStage, index: Vec, number: int, edges: Columns, semantics: Semantics | None) -> _Block:
    block = sub(index, WAYS[number])
    (nodes,) = read_node(below.node_path("", block), "fragments")
    none, rows = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    return _Block(
        number,
        nodes | {"start": nodes["total"]},
        np.zeros(nodes["id"].size, np.uint8),
        _levels(index, number),
        {"fragment": rows, "key": none, "voxels": rows},
        {"left": rows, "right": rows, "key": none, "joined": none > 0},
        edges | {side: np.searchsorted(nodes["id"], edges[side]) for side in ("left", "right")},
        _votes(below, block, nodes["id"].size, semantics),
    )


def _crossings(below: BlockStage, index: Vec, number: int) -> Iterator[Crossings]:
    """Edges between a block and the one that is the way of this number below it, by offset."""
    way, box = WAYS[number], below.grid.block_box(index)
    own, other = below.node_path("", index), below.node_path("", sub(index, way))
    if sum(way) == 1:
        axis = way.index(1)
        (upper,), (lower,) = read_node(own, f"low{axis}"), read_node(other, f"high{axis}")
        yield crossings(
            Plane(upper["label"].astype(np.int64), upper["picked"]),
            Plane(lower["label"].astype(np.int64), lower["picked"]),
            upper["affinity"],
            below.place(box),
            axis,
            below.low,
            below.joins_across,
            below.histograms,
        )
    for channel, ends in enumerate(below.upper_ends(box, way)):
        if not ends.empty:
            (further,) = read_node(own, "further")
            offset = below.further_offsets[channel]
            lower_box = Box(add(ends.start, offset), add(ends.stop, offset))
            labels = below.labels.read(ends), below.labels.read(lower_box)
            yield far_crossings(*labels, further[f"{channel + 3}_{number}"], below.histograms)


def _cross(found: Crossings, block: int, histograms: bool) -> _Cross:
    stats: Columns = {"sum": found.sums, "count": found.counts, "lowest": found.lowest, "highest": found.highest}
    if histograms:
        stats["histogram"] = found.histograms
    return _Cross(block, found.upper - 1, found.lower - 1, found.keys, found.joined, stats)


def _entering(blocks: Sequence[_Block], cross: Sequence[_Cross], score: Score, small: int) -> Entering:
    own = blocks[0]
    parts = []
    for place, block in enumerate(blocks):
        crossed = np.zeros(block.homes.size, np.bool_)
        for found in cross:
            if found.block == place:
                crossed[found.lower] = True
        parts.append(_taken(block, crossed, score, small))
    nodes, gains, links, copies, names = (
        concatenate([getattr(part, table) for part in parts])
        for table in ("nodes", "gains", "links", "copies", "names")
    )
    ends = [{"left": own.named(rows.upper), "right": blocks[rows.block].named(rows.lower)} for rows in cross]
    across = [end | {"stats": statistics(score, rows.stats)} for end, rows in zip(ends, cross, strict=True)]
    strong = [
        select(end | {"key": rows.key, "joined": rows.joined}, (rows.key > 0) | rows.joined)
        for end, rows in zip(ends, cross, strict=True)
    ]
    order = np.argsort(nodes["id"])
    return Entering(
        nodes={name: column[order] for name, column in nodes.items()},
        gains=gains,
        links=concatenate([links, *strong]),
        edges=chain(*(part.edges for part in parts), across),
        copies=copies,
        names=names,
    )


def _taken(block: _Block, crossed: npt.NDArray[np.bool_], score: Score, small: int) -> Entering:
    """What a leaf takes of one block, whose fragments `crossed` have edges to the leaf's own block."""
    here = block.homes == block.number
    touching = (_BITS * block.levels[1:]).max(axis=1).astype(np.uint8)[block.nodes["above"]]
    used = crossed.copy()
    live = []
    for table in (block.links, block.edges):
        places = block.places(table)
        inside = places == block.number
        live.append(select(table, inside))
        for side in ("left", "right"):
            used[table[side][inside]] = True
            np.maximum.at(touching, table[side][~inside], block.levels[places[~inside]])
    links, edges = live
    copied = used & ~here
    gains = select(block.gains, (here | copied)[block.gains["fragment"]])
    named = here & (touching > 0)
    ids: Ids = block.nodes["id"]
    return Entering(
        nodes=_nodes(block, here, copied, touching, small),
        gains={"id": block.named(gains["fragment"]), "key": gains["key"], "voxels": gains["voxels"]},
        links={side: block.named(links[side]) for side in ("left", "right")}
        | {name: links[name] for name in ("key", "joined")},
        edges=iter(
            [{side: block.named(edges[side]) for side in ("left", "right")} | {"stats": statistics(score, edges)}]
        ),
        copies={
            "copy": block.named(np.flatnonzero(copied)),
            "original": ids[copied],
            "level": block.levels[block.homes[copied]],
        },
        names={"leaf": ids[named], "id": ids[named], "level": touching[named]},
    )


def _nodes(
    block: _Block,
    here: npt.NDArray[np.bool_],
    copied: npt.NDArray[np.bool_],
    touching: npt.NDArray[np.uint8],
    small: int,
) -> Columns:
    rows = np.concatenate([np.flatnonzero(here), np.flatnonzero(copied)])
    copy = copied[rows]
    start, total, rank = (block.nodes[name][rows] for name in ("start", "total", "rank"))
    nodes: Columns = {
        "id": block.named(rows),
        # Of a copy it must be known whether it is large; of what is small no voxel may count twice.
        "start": np.where(copy, np.where(start >= small, small, 0), start),
        "total": np.where(copy, 0, total),
        "rank": rank,
        "touching": np.where(copy, block.levels[block.homes[rows]], touching[rows]),
        "formed": np.full(rows.size, NEVER, np.int64),
    }
    if block.votes is not None:
        nodes["class"] = np.zeros(rows.size, np.uint8)
        nodes["votes"] = np.where(copy[:, None], 0, block.votes[rows])
    return nodes
