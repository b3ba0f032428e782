"""Wrong versions of the rules. Each is a plausible mistake, small enough to be missed, that the suite must not miss.

Each function puts its mistake in place, for cases with the given settings, until the patch is undone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import starmap

import numpy as np
import pytest

from neuroshed.kernels import blocks, stitch
from neuroshed.kernels.faces import Crossings, Plane
from neuroshed.kernels.merging import Edges, Merges, Nodes, Outcome
from neuroshed.kernels.order import edge_keys
from neuroshed.kernels.regions import edge_count, edges_by_affinity
from neuroshed.kernels.scores import Score, integer_scores
from neuroshed.kernels.stitch import NO_GAINS, Fragments, Gains, Links, SizeRule
from neuroshed.kernels.watershed import Place
from neuroshed.stages import leaves, settle, windows
from neuroshed.stages.fragments import Fragments as FragmentsStage
from neuroshed.storage.nodes import Columns
from tests.kernels.plain_merging import Cluster, PlainGraph, plain_score

from .reference import Settings

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch, Settings], None]

size_rule, agglomerate = stitch.size_rule, settle.agglomerate


def replace_size_rule(patch: Patch, changed: Callable[[Fragments, Gains, Links, int], SizeRule]) -> None:
    patch.setattr(settle, "size_rule", changed)

    def inside(labels, affinities, place, entering, low, small, room) -> tuple[SizeRule, Links]:  # type: ignore[no-untyped-def]
        links = links_inside(labels, affinities, place, low)
        return changed(entering, NO_GAINS, links, small), links

    patch.setattr(blocks, "size_rule_inside", inside)


def links_inside(labels: np.ndarray, affinities: np.ndarray, place: Place, low: int) -> Links:
    """All links of at least `low` between the fragments of a block."""
    span = labels, affinities, place, low << 56, (256 << 56) - 1
    counts = edge_count(*span)
    edges = edges_by_affinity(*span, counts)
    strengths = np.repeat(np.arange(255, -1, -1, dtype=np.uint8), counts[::-1])
    voxels, keys = place.global_index((edges.code // 3).astype(np.int64)), np.empty(strengths.size, np.uint64)
    for axis in range(3):
        along = edges.code % 3 == axis
        keys[along] = edge_keys(strengths[along], voxels[along], axis)
    ends = (column.astype(np.int64) - 1 for column in (edges.upper, edges.lower))
    return Links(*ends, keys, np.zeros(keys.size, np.bool_))


def no_outside_is_open(patch: Patch, settings: Settings) -> None:
    """What reaches an outer face counts as closed, though it is handed up."""

    def changed(entering: Fragments, gains: Gains, links: Links, small: int) -> SizeRule:
        closed = entering._replace(touching=np.zeros_like(entering.touching))
        solved = size_rule(closed, gains, links, small)
        solved.up[solved.roots[entering.touching]] = True
        return solved

    replace_size_rule(patch, changed)


def weak_edges_dropped(patch: Patch, settings: Settings) -> None:
    """Edges between frozen clusters stay behind if they score too little to merge them."""

    def changed(nodes: Nodes, edges: Edges, score: Score, lowest: int, max_size: int = 0) -> Outcome:
        outcome = agglomerate(nodes, edges, score, lowest, max_size)
        strong = integer_scores(score, outcome.edges.stats) >= lowest
        return outcome._replace(
            edges=Edges(*(column[strong] for column in outcome.edges)), refused=outcome.refused[strong]
        )

    patch.setattr(settle, "agglomerate", changed)


def undecided_dust_dropped(patch: Patch, settings: Settings) -> None:
    """Fragments of fewer than `dust` voxels are dropped where they reach no outer face, even if they may yet join."""

    def changed(entering: Fragments, gains: Gains, links: Links, small: int) -> SizeRule:
        solved = size_rule(entering, gains, links, small)
        touching = np.zeros_like(solved.up)
        touching[solved.roots[entering.touching]] = True
        up = solved.up & (touching | (solved.totals >= settings.dust))
        kept = solved.kept & up[solved.roots[links.left]] & up[solved.roots[links.right]]
        return solved._replace(up=up, kept=kept)

    replace_size_rule(patch, changed)


def open_small_absorbed(patch: Patch, settings: Settings) -> None:
    """A large fragment takes in an open small one at once, though that may be part of a large one."""
    source = inspect.getsource(stitch._take_in_turn.py_func)
    right = "if open_[a] or now[a] >= small:\n            # Neither"
    wrong = "if now[a] < small and now[b] < small:\n            # Neither"
    assert source.count(right) == 1, "the rule is written differently now: write its wrong version anew"
    scope = dict(vars(stitch))
    exec(source.partition("\n")[2].replace(right, wrong), scope)  # without the decorator: as plain Python
    patch.setattr(stitch, "_take_in_turn", scope["_take_in_turn"])
    replace_size_rule(patch, size_rule)


def gains_forgotten(patch: Patch, settings: Settings) -> None:
    """An open fragment is handed up as if it had had its present size from the start."""

    def changed(entering: Fragments, gains: Gains, links: Links, small: int) -> SizeRule:
        solved = size_rule(entering, gains, links, small)
        return solved._replace(starts=solved.totals, gains=NO_GAINS)

    replace_size_rule(patch, changed)


def gains_counted_twice(patch: Patch, settings: Settings) -> None:
    """What a fragment has gained counts again where a copy of it joins it."""
    patch.setattr(stitch, "_once", lambda gains, table: gains)


def copies_count_twice(patch: Patch, settings: Settings) -> None:
    """A copy has the voxels that its fragment began with."""
    nodes = leaves._nodes

    def changed(block: leaves._Block, *rest: object) -> Columns:
        found = nodes(block, *rest)
        starts = dict(zip(block.nodes["id"].tolist(), block.nodes["start"].tolist(), strict=True))
        plain = found["id"] & np.uint64((1 << 56) - 1)
        return found | {"start": np.array([starts[i] for i in plain.tolist()], np.int64)}

    patch.setattr(leaves, "_nodes", changed)


def copies_are_closed(patch: Patch, settings: Settings) -> None:
    """A copy counts as settled in the leaf where it stands, though it is handed up."""
    rule = settle.size_rule

    def changed(entering: Fragments, gains: Gains, links: Links, small: int) -> SizeRule:
        copies = (entering.totals == 0) & entering.touching
        solved = rule(entering._replace(touching=entering.touching & ~copies), gains, links, small)
        solved.up[solved.roots[copies]] = True
        return solved

    patch.setattr(settle, "size_rule", changed)


def no_halo(patch: Patch, settings: Settings) -> None:
    """A block's voxels pick among the edges inside the block alone."""
    patch.setattr(FragmentsStage, "halo", ((0, 0, 0), (0, 0, 0)))


def picks_of_one_side(patch: Patch, settings: Settings) -> None:
    """Of the voxels at a face, only those above it say what they picked."""
    crossings = leaves.crossings

    def changed(upper: Plane, lower: Plane, *rest: object) -> Crossings:
        return crossings(upper, lower._replace(picked=np.zeros_like(lower.picked)), *rest)

    patch.setattr(leaves, "crossings", changed)


def edges_tied(patch: Patch, settings: Settings) -> None:
    """Edges of one affinity are taken as they come."""
    patch.setattr(stitch, "falling_order", lambda keys: np.argsort(keys >> np.uint64(56), kind="stable")[::-1])


def ranks_by_first_voxel(patch: Patch, settings: Settings) -> None:
    """Ties of scores go by the raster: a fragment's rank is its first voxel's place in it."""
    original = blocks.basin_graph

    def changed(*arguments: object) -> blocks.BlockGraph:
        found = original(*arguments)
        return found._replace(ranks=found.ids)

    patch.setattr(blocks, "basin_graph", changed)


def weak_edges_outside_windows(patch: Patch, settings: Settings) -> None:
    """Of a graph that is taken in windows, edges that alone score too little for a window are not in it."""
    merged = settle._merged
    patch.setattr(settle, "_merged", lambda nodes, edges, rules: merged(nodes, edges, replace(rules, room=5)))

    def changed(nodes: Nodes, edges: Edges, score: Score, lowest: int, max_size: int, rest: bool) -> Outcome:
        strong = integer_scores(score, edges.stats) >= lowest
        return agglomerate(nodes, Edges(*(column[strong] for column in edges)), score, lowest, max_size, rest=rest)

    patch.setattr(windows, "agglomerate", changed)


class FreezingStays(PlainGraph):
    """What meets a frozen cluster does not freeze."""

    def settled(self, pair: frozenset[int]) -> bool:
        return pair in self.refused or any(self.clusters[end].frozen for end in pair)


def freezing_stays(patch: Patch, settings: Settings) -> None:
    """A cluster merges on with others though its best edge had to wait."""
    patch.setattr(settle, "agglomerate", plainly(FreezingStays))


class SmallestIdFirst(PlainGraph):
    """Ties of scores go to the pair of smaller ids; a cluster's id is the smallest of its fragments'."""

    def turn(self, pair: frozenset[int], score: str) -> tuple[int, list[int], int, int]:
        a, b = sorted(pair)
        return -plain_score(score, self.edges[pair]), [a, b], a, b


def ties_by_smallest_id(patch: Patch, settings: Settings) -> None:
    """Joining may then make an edge better, so what was put off may have to come first."""
    patch.setattr(settle, "agglomerate", plainly(SmallestIdFirst))


def plainly(graph_class: type[PlainGraph]) -> Callable[..., Outcome]:
    """`kernels.merging.agglomerate` by the plain version of it, for mean scores."""

    def run(nodes: Nodes, edges: Edges, score: Score, lowest: int, max_size: int = 0) -> Outcome:
        columns = (column.tolist() for column in nodes[1:])
        graph = graph_class(dict(enumerate(starmap(Cluster, zip(*columns, strict=True)))))
        for a, b, (total, count) in zip(*(column.tolist() for column in edges), strict=True):
            # As many affinities as the edge has, with their sum.
            graph.add(a, b, [total // count + (i < total % count) for i in range(count)])
        graph.agglomerate(score.name, lowest, max_size)
        frozen = {name: cluster for name, cluster in sorted(graph.clusters.items()) if cluster.frozen}
        place = {name: i for i, name in enumerate(frozen)}
        kept = sorted((*sorted(pair), affinities) for pair, affinities in graph.edges.items() if pair <= frozen.keys())
        left, right, scores = np.array(graph.merges, np.int64).reshape(-1, 3).T
        return Outcome(
            Merges(nodes.ids[left], nodes.ids[right], scores),
            Nodes(
                nodes.ids[list(frozen)],
                np.array([cluster.rank for cluster in frozen.values()], np.uint64),
                np.array([cluster.size for cluster in frozen.values()], np.int64),
                np.array([cluster.kind for cluster in frozen.values()], np.uint8),
                np.ones(len(frozen), np.bool_),
            ),
            np.array([graph.owner[i] for i in range(nodes.ids.size)], np.int64),
            Edges(
                np.array([place[a] for a, _, _ in kept], np.int64),
                np.array([place[b] for _, b, _ in kept], np.int64),
                np.array([(sum(found), len(found)) for *_, found in kept], np.int64).reshape(-1, 2),
            ),
            np.zeros(len(kept), np.bool_),
        )

    return run


def merged_plainly(patch: Patch, settings: Settings) -> None:
    """No mistake: what the wrong versions of `PlainGraph` are wrong versions of."""
    patch.setattr(settle, "agglomerate", plainly(PlainGraph))


MUTATIONS: tuple[Mutation, ...] = (
    no_outside_is_open,
    weak_edges_dropped,
    undecided_dust_dropped,
    open_small_absorbed,
    gains_forgotten,
    gains_counted_twice,
    copies_count_twice,
    copies_are_closed,
    no_halo,
    picks_of_one_side,
    edges_tied,
    ranks_by_first_voxel,
    weak_edges_outside_windows,
    freezing_stays,
    ties_by_smallest_id,
)
