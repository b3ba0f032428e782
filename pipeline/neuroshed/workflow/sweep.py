"""Scores of a run at many thresholds at once: the merges that it has recorded, applied to a table instead of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.merging import clusters_at, integer_threshold
from neuroshed.kernels.metrics import ContingencyTable
from neuroshed.kernels.scores import TOP_SCORE
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.evaluate import Contingency, Scores, score_table, summed_table
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, read_node
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow.config import decimal_text
from neuroshed.workflow.cut import cut
from neuroshed.workflow.run import planned_stages
from neuroshed.workflow.target import PathLike
from neuroshed.workflow.work import work_on

STEPS = 20
"""Thresholds that are tried by default lie this many to 1."""


def sweep(
    run_folder: Location,
    truth: Location,
    thresholds: Sequence[str | float] = (),
    box: Box | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = lambda progress: None,
) -> dict[str, Scores]:
    """Scores of the segmentation at each threshold, exactly those of `evaluate`, without writing it.

    Writes the run's fragments before any merge, if they are not there. Default thresholds are 0.05, 0.1, ... from the
    lowest that was recorded. The run's merges have to fit in memory.

    Raises `WorkflowError` for a threshold below the lowest and for a run whose merges are not all there, `InputError`
    for a truth that does not fit.
    """
    stages = planned_stages(run_folder)
    agglomerate = next(stage for stage in stages if isinstance(stage, Agglomerate))
    texts = [decimal_text(threshold) for threshold in thresholds] or _default(agglomerate.lowest)
    low = [text for text in texts if integer_threshold(Fraction(text)) < agglomerate.lowest]
    if low:
        raise WorkflowError(
            f"threshold {low[0]} is below {agglomerate.lowest / TOP_SCORE:.6g}, down to which merges were recorded; "
            "run again with a lower agglomerate.lowest_threshold"
        )
    used = cluster or ClusterConfig(kind="in-process")
    fragments = Location.of(cut(run_folder, fragments=True, cluster=used, watch=watch)["fragments"])
    table = count_pairs(fragments, truth, box, used, watch, work=run_folder)
    merges = _merges(agglomerate)
    ids = np.unique(np.concatenate([np.zeros(1, np.uint64), table.seg, merges["left"], merges["right"]]))
    left, right, seg = (np.searchsorted(ids, column) for column in (merges["left"], merges["right"], table.seg))
    scores = {}
    for text in sorted(set(texts), key=Fraction):
        joined = clusters_at(ids.size, left, right, merges["score"], integer_threshold(Fraction(text)))
        scores[text] = score_table(ContingencyTable(ids[joined[seg]], table.truth, table.counts))
    return scores


def count_pairs(
    segmentation: Location,
    truth: Location,
    box: Box | None,
    cluster: ClusterConfig,
    watch: Watcher,
    block_shape: Vec | None = None,
    work: PathLike | None = None,
) -> ContingencyTable:
    """How many voxels each label of a segmentation shares with each of the truth, in a box, counted block by block, and
    kept in `work` until all are.

    Raises `InputError` if the truth has no label there, or the volumes do not fit.
    """
    with work_on("evaluate", work, (segmentation, truth), box, block_shape) as evaluation:
        shape = block_shape or _blocks(open_volume(segmentation).shard_shape)
        stage = Contingency.of(evaluation.run_folder, segmentation, truth, shape, box)
        evaluation.run(stage, cluster, watch)
        return summed_table(stage)


def _blocks(shard_shape: Vec) -> Vec:
    """Whole shards, of about 256 voxels a side."""
    z, y, x = (side * max(256 // side, 1) for side in shard_shape)
    return z, y, x


def _default(lowest: int) -> list[str]:
    texts = [decimal_text(step / STEPS) for step in range(1, STEPS)]
    return [text for text in texts if integer_threshold(Fraction(text)) >= lowest]


def _merges(agglomerate: Agglomerate) -> Columns:
    found: list[Columns] = []
    for step in agglomerate.steps:
        nodes = filter(step.holds, step.grid)
        found += [read_node(agglomerate.node_path(step.name, index), "merges")[0] for index in nodes]
    return {name: np.concatenate([part[name] for part in found]) for name in ("left", "right", "score")}


def best_threshold(scores: dict[str, Scores]) -> str:
    """The threshold of the lowest VOI, the higher one of two."""
    return min(scores, key=lambda text: (scores[text].voi, -Fraction(text)))


def as_json(scores: dict[str, Scores]) -> dict[str, Any]:
    """Plain numbers: `scores` by threshold, and the `best_threshold`."""
    return {
        "best_threshold": best_threshold(scores),
        "scores": {text: found.as_json() for text, found in scores.items()},
    }
