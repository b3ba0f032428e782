"""What one tree node does with the tables of its children: size rule, merges, what goes up. Tables in, tables out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.kernels.merging import MAX_ROWS, Nodes, agglomerate
from neuroshed.kernels.relabel import Ids, look_up, places
from neuroshed.kernels.scores import Score
from neuroshed.kernels.stitch import Fragments, Gains, Links, SizeRule, best_links, size_rule
from neuroshed.stages.octree import Entering
from neuroshed.stages.windows import MAX_NODES, Split, agglomerate_split
from neuroshed.storage.nodes import Columns
from neuroshed.storage.spill import EdgeStore

NEVER = 1 << 62
"""Score of the last merge of a cluster that is one fragment."""
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TreeRules:
    """What decides in a node: `small` and `dust` in voxels, the score, the lowest integer score that merges, and the
    most voxels that a merged segment may have (0: any). And, which decides nothing, for how many edges there is `room`
    in memory.
    """

    small: int
    dust: int
    score: Score
    lowest: int
    max_size: int = 0
    room: int = MAX_ROWS // 2


def settle(entering: Entering, level: int, rules: TreeRules) -> dict[str, Columns | Iterator[Columns]]:
    """Settle the node at `level` of the tree; `entering` is used up.

    Returns tables: `entering` (id, and the fragment that it became, 0 for dust), `fragments` (id, total voxels and
    formed, before the node's own merges), `merges`, and what goes up: `nodes`, `gains`, `links`, `edges`, `copies`,
    `names`, see `Entering`. Merges and edges come in pieces.
    """
    ids: Ids = entering.nodes["id"]
    if ids.size >= MAX_NODES:
        raise BlockError(
            f"{ids.size} fragments enter a node, which takes fewer than {MAX_NODES}; take a higher "
            "agglomerate.lowest_threshold or larger fragments.small"
        )
    solved, links = _size_rule(entering, level, rules.small)
    nodes, number = _fragments(entering, solved, rules.dust)
    # What is used up makes room for the graph.
    entering.gains.clear()
    entering.links.clear()
    entering.nodes.clear()
    outcome = _merged(nodes, _edges(entering.edges, ids, number, rules), rules)
    current = np.where(number >= 0, ids[solved.roots], np.uint64(0))
    up = outcome.clusters.ids
    return {
        "entering": {"id": ids, "fragment": current},
        "fragments": {name: nodes[name] for name in ("id", "total", "formed")},
        "merges": ({"left": low, "right": high, "score": scores} for low, high, scores in outcome.merges),
        "nodes": _going_up(nodes, outcome),
        "gains": {"id": ids[solved.gains.fragment], "key": solved.gains.keys, "voxels": solved.gains.voxels},
        "links": {"left": ids[links.left], "right": ids[links.right], "key": links.keys, "joined": links.joined},
        "edges": ({"left": up[left], "right": up[right], "stats": stats} for left, right, stats in outcome.edges),
        "copies": entering.copies | {"copy": look_up(entering.copies["copy"], ids, current)[0]},
        "names": entering.names | {"id": look_up(entering.names["id"], ids, current)[0]},
    }


def _size_rule(entering: Entering, level: int, small: int) -> tuple[SizeRule, Links]:
    """The size rule's outcome, and the links that go up, between rows of its roots."""
    ids, links, gains = entering.nodes["id"], entering.links, entering.gains
    left, right = (places(ids, links.pop(side)) for side in ("left", "right"))
    solved = size_rule(
        Fragments(entering.nodes["start"], entering.nodes["total"], entering.nodes["touching"] > level),
        Gains(places(ids, gains.pop("id")), gains["key"], gains["voxels"]),
        Links(left, right, links["key"], links["joined"]),
        small,
    )
    stay = solved.kept
    left, right = solved.roots[left[stay]], solved.roots[right[stay]]
    return solved, best_links(Links(left, right, links["key"][stay], np.zeros(left.size, np.bool_)))


def _fragments(entering: Entering, solved: SizeRule, dust: int) -> tuple[Columns, Index]:
    """Rows of fragments after the size rule, and for each entering row its fragment's row, -1 for dust."""
    given = entering.nodes
    dropped = ~solved.up & (solved.totals < dust)
    kept = np.flatnonzero((solved.roots == np.arange(dropped.size)) & ~dropped)
    number = np.full(dropped.size, -1, np.int64)
    number[kept] = np.arange(kept.size)
    number = number[solved.roots]
    rows = {"id": given["id"], "start": solved.starts, "total": solved.totals, "up": solved.up}
    nodes: Columns = {name: column[kept] for name, column in rows.items()}
    there = number >= 0
    rules = {"rank": np.maximum, "touching": np.maximum, "formed": np.minimum, "class": np.maximum, "votes": np.add}
    for name in given:
        if name in rules:
            nodes[name] = np.zeros_like(given[name][kept]) if name == "votes" else given[name][kept]
            rules[name].at(nodes[name], number[there], given[name][there])
    return nodes, number


def _classes(nodes: Columns) -> npt.NDArray[np.uint8]:
    """The class of each settled fragment or cluster, 0 for none.

    A fragment is of the class that has the most of its voxels (the first of equals), if that is half of them or more.
    What is not settled has none yet.
    """
    if "votes" not in nodes:
        return np.zeros(nodes["id"].size, np.uint8)
    votes = nodes["votes"]
    best = votes.argmax(axis=1)
    voted = 2 * votes[np.arange(best.size), best] >= np.maximum(nodes["total"], 1)
    found = np.where(nodes["class"] > 0, nodes["class"], np.where(voted, best + 1, 0))
    return np.where(nodes["up"], 0, found).astype(np.uint8)


def _going_up(nodes: Columns, outcome: Split) -> Columns:
    """Rows of the clusters that stay frozen."""
    clusters = outcome.clusters
    formed = nodes["formed"].copy()
    for merges in outcome.merges:
        np.minimum.at(formed, outcome.owner[places(nodes["id"], merges.left)], merges.scores)
    rows = np.searchsorted(nodes["id"], clusters.ids)
    up: Columns = {
        "id": clusters.ids,
        "start": np.where(nodes["up"][rows], nodes["start"][rows], clusters.sizes),
        "total": clusters.sizes,
        "rank": clusters.ranks,
        "touching": nodes["touching"][rows],
        "formed": formed[rows],
    }
    if "votes" in nodes:
        # A cluster has the class of its settled members; a fragment's may still change.
        merged = up["formed"] < NEVER
        up["class"] = np.where(merged, clusters.classes, np.uint8(0))
        up["votes"] = np.where(merged[:, None], 0, nodes["votes"][rows])
    return up


def _edges(entering: Iterable[Columns], ids: Ids, number: Index, rules: TreeRules) -> EdgeStore:
    """Edges between the rows that `number` gives; those inside a fragment, and those of dust, vanish."""
    edges = EdgeStore(rules.score.columns, rules.room)
    for piece in entering:
        left, right = (number[places(ids, piece[side])] for side in ("left", "right"))
        stay = (left >= 0) & (right >= 0) & (left != right)
        edges.append(left[stay], right[stay], piece["stats"][stay])
    return edges


def _merged(nodes: Columns, edges: EdgeStore, rules: TreeRules) -> Split:
    """What merges of the node's fragments, in windows if there is no room for all edges."""
    given = Nodes(nodes["id"], nodes["rank"], nodes["total"], _classes(nodes), nodes["up"])
    if edges.count > rules.room or given.ids.size >= MAX_ROWS:
        return agglomerate_split(given, edges, rules.score, rules.lowest, rules.max_size, rules.room)
    outcome = agglomerate(given, edges.taken(), rules.score, rules.lowest, rules.max_size)
    return Split((outcome.merges,), outcome.clusters, outcome.owner, iter((outcome.edges,)))
