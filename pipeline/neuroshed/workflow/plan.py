"""A checked workflow to stages: what would run, how large it is, and what it costs, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import ordered
from neuroshed.engine.dispatch import Demand
from neuroshed.engine.gpus import pools_here
from neuroshed.engine.pools import Pool, pool_for
from neuroshed.errors import WorkflowError
from neuroshed.geometry import Vec
from neuroshed.kernels.child import require
from neuroshed.kernels.merging import integer_threshold
from neuroshed.model.lattice import redundancy
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.blocks import BlockStage
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.predict import Predict
from neuroshed.stages.pyramid import Pyramid
from neuroshed.stages.segment import FRAGMENTS, Segment
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import check_block_shape
from neuroshed.workflow.config import Workflow
from neuroshed.workflow.footprint import Footprint
from neuroshed.workflow.masking import masked
from neuroshed.workflow.prediction import check_size, plan_predict, region_of, voxel_size_warning


@dataclass(frozen=True)
class Plan:
    """The stages of a run, upstream first."""

    workflow: Workflow
    run_folder: Location
    segments: tuple[Segment, ...]
    """One for each threshold, and one for the fragments if they are kept."""

    @property
    def last(self) -> list[Stage]:
        """The stages that all others are read by."""
        return last_stages(self.segments, self.workflow)

    @property
    def stages(self) -> list[Stage]:
        """All stages, upstream first."""
        return ordered(self.last)

    @property
    def droppable(self) -> set[tuple[str, str]]:
        """Steps (fingerprint of the stage, name) whose outputs are not kept."""
        return droppable_steps(self.stages, self.workflow.keep)

    @property
    def fragments(self) -> BlockStage:
        """The stage that makes fragments."""
        return self.segments[0].agglomerate.fragments

    def describe(self) -> dict[str, Any]:
        """Blocks, voxels, memory and bytes by stage, and how much the network computes twice."""
        fragments = self.fragments
        rows = [
            {
                "stage": stage.title,
                "fingerprint": stage.fingerprint[:12],
                "blocks": sum(len(step.grid) for step in stage.steps),
                "skipped": sum(len(step.grid) - step.blocks_left for step in stage.steps),
                "memory_bytes": max(stage.memory_bytes(step.name) for step in stage.steps),
                "output_bytes": stage.output_bytes,
                "output_files": stage.output_files,
                "kept": not any((stage.fingerprint, step.name) in self.droppable for step in stage.steps),
            }
            for stage in self.stages
            if stage.steps
        ]
        source = fragments.source
        return {
            "run": str(self.run_folder),
            "region": str(fragments.region),
            "voxels": fragments.region.size,
            "block_shape": list(fragments.block_shape),
            "tree_levels": len(self.segments[0].grids),
            "redundant_compute": redundancy(source.lattice, source.block_shape) * 2 ** len(source.flips)
            if isinstance(source, Predict)
            else None,
            "suggested_block_multiple": list(source.lattice.stride) if isinstance(source, Predict) else None,
            **self.footprint.describe(),
            "warnings": self.warnings,
            "stages": rows,
        }

    @property
    def warnings(self) -> list[str]:
        """What looks odd, but may be meant."""
        source = self.fragments.source
        found = [
            voxel_size_warning(source) if isinstance(source, Predict) else None,
            self.footprint.warning(self.run_folder),
        ]
        return [warning for warning in found if warning]

    @cached_property
    def footprint(self) -> Footprint:
        """What the run takes of its disk or store."""
        return Footprint.of(self.stages, self.fragments.source, self.droppable)


def droppable_steps(stages: Sequence[Stage], keep: Collection[str]) -> set[tuple[str, str]]:
    """Steps (fingerprint of the stage, name) of a run whose outputs are not kept, by the words of `keep`."""
    dropped: list[Stage] = [stage for stage in stages if isinstance(stage, Predict) and "affinities" not in keep]
    if "merges" not in keep:
        dropped += [stage for stage in stages if isinstance(stage, BlockStage | WaterzScores | Agglomerate)]
    return {(stage.fingerprint, step.name) for stage in dropped for step in stage.steps}


def last_stages(segments: Sequence[Segment], workflow: Workflow) -> list[Stage]:
    """Segmentations, and their pyramids if the workflow asks for them and they are large enough to have levels."""
    if not workflow.pyramid:
        return [*segments]
    pyramids = (Pyramid.of(segment.run_folder, segment, workflow.pyramid) for segment in segments)
    return [*segments, *(pyramid for pyramid in pyramids if pyramid)]


def make_plan(workflow: Workflow) -> Plan:
    """The stages of a workflow. Reads inputs, writes nothing.

    Raises `InputError` or `WorkflowError` for what would fail later: missing or unfit inputs, boxes and shapes that
    do not fit.
    """
    run_folder = workflow.output
    run_folder.check()
    if run_folder.size() is not None:
        raise WorkflowError(f"output {run_folder} is a file; name a folder")
    for given in (workflow.image, workflow.affinities, *(mask.path for mask in workflow.masks)):
        if given is not None:
            given.check()
            if run_folder.is_relative_to(given):
                raise WorkflowError(
                    f"output {run_folder} is in the input {given}, which is never changed; name another"
                )
    shard_shape = workflow.shard_shape or workflow.block_shape
    check_block_shape(workflow.block_shape, shard_shape)
    source, masks = masked(workflow, _source(workflow, run_folder, shard_shape))
    fragments = _fragments(workflow, source, run_folder, shard_shape, masks)
    lowest = integer_threshold(Fraction(workflow.agglomerate.lowest_threshold))
    scores = None
    if isinstance(fragments, WaterzFragments):
        scores = WaterzScores(
            run_folder=run_folder,
            fragments=fragments,
            context=workflow.fragments.context,
            score=workflow.agglomerate.score,
            lowest=lowest,
        )
    agglomerate = Agglomerate(
        run_folder=run_folder,
        fragments=fragments,
        scores=scores,
        score=workflow.agglomerate.score if scores is None else "given",
        lowest=lowest,
        max_size=workflow.agglomerate.max_size,
        semantics=_semantics(workflow, source),
        graph_gb=workflow.agglomerate.graph_gb,
    )
    share = workflow.agglomerate.alarm_share
    segments = (
        Segment(run_folder=run_folder, agglomerate=agglomerate, threshold=threshold, alarm_share=share)
        for threshold in (*([FRAGMENTS] if FRAGMENTS in workflow.keep else []), *workflow.thresholds)
    )
    plan = Plan(workflow, run_folder, tuple(segments))
    check_pools(plan.stages, workflow.cluster)
    return plan


def check_gpu_memory(stage: Predict, pools: Mapping[str, Pool]) -> None:
    """Raise `WorkflowError` if a batch of patches is likely to need more memory than the GPUs of a pool have."""
    needed = stage.gpu_bytes(stage.batch_size)
    for name, pool in pools.items():
        if not pool.gpus or pool.gpu_memory_gb is None or needed <= pool.gpu_memory_gb * 1e9:
            continue
        sizes = range(1, stage.batch_size)
        fits = max((size for size in sizes if stage.gpu_bytes(size) <= pool.gpu_memory_gb * 1e9), default=None)
        remedy = f"set predict.batch_size to {fits}" if fits else "choose a smaller predict.patch"
        raise WorkflowError(
            f"the network needs about {needed / 1e9:.1f} GB of GPU memory for {stage.batch_size} patches of "
            f"{list(stage.lattice.patch)} at a time, GPUs of pool {name} have {pool.gpu_memory_gb:g}; {remedy}"
        )


def check_pools(stages: Sequence[Stage], cluster: ClusterConfig) -> None:
    """Raise `WorkflowError` if a step needs more than a worker of any pool has, so that it could never run."""
    for stage in stages:
        if isinstance(stage, Predict) and stage.device.startswith("cuda"):
            check_gpu_memory(stage, cluster.pools or (pools_here() if cluster.kind == "gpus" else {}))
    for stage in stages if cluster.pools else ():
        for step in stage.steps:
            demand = Demand(stage.resource(step.name), stage.memory_bytes(step.name))
            if pool_for(demand, cluster.pools) is None:
                sizes = ", ".join(f"{name} {pool.memory_gb:g}" for name, pool in cluster.pools.items())
                raise WorkflowError(
                    f"a block of {f'{stage.title} {step.name}'.rstrip()} needs a {demand.resource.upper()} worker with "
                    f"{demand.memory_bytes / 1e9:.3g} GB; the pools have (GB): {sizes}. Give one more, or choose "
                    "smaller blocks"
                )


def _fragments(
    workflow: Workflow, source: Affinities | Predict, run_folder: Location, shard_shape: Vec, masks: dict[str, Any]
) -> Fragments | MutexFragments | WaterzFragments:
    options = workflow.fragments
    common: dict[str, Any] = {
        "run_folder": run_folder,
        "source": source,
        **masks,
        "region": region_of(workflow.box, source.volume_shape),
        "block_shape": workflow.block_shape,
        "shard_shape": shard_shape,
        "low": math.ceil(Fraction(options.low) * 255),
        "small": options.small,
        "dust": options.dust,
        "smooth": options.smooth,
        "bias": round(255 * options.bias),
        "long_range": workflow.agglomerate.long_range,
        "histograms": workflow.engine == "exact" and workflow.agglomerate.score.startswith("quantile"),
    }
    high = math.ceil(Fraction(options.high) * 255)
    if workflow.engine == "waterz":
        require("waterz.agglomerate")
        return WaterzFragments(**common, high=high, context=options.context)
    if options.method == "mutex":
        require("mwatershed.agglom")
        biases = options.biases or tuple(float(channel >= 3) for channel in range(len(source.offsets)))
        if len(biases) != len(source.offsets):
            raise WorkflowError(
                f"fragments.biases has {len(biases)} values for {len(source.offsets)} channels; give one each"
            )
        return MutexFragments(**common, biases=biases, context=options.context)
    return Fragments(**common, high=high)


def _semantics(workflow: Workflow, source: Affinities | Predict) -> Semantics | None:
    given = workflow.semantics
    if given is None:
        return None
    given.path.check()
    return Semantics.of(given.path, given.classes, source.volume_shape, source.voxel_size, source.offset)


def _source(workflow: Workflow, run_folder: Location, shard_shape: Vec) -> Affinities | Predict:
    if workflow.affinities is not None:
        source = Affinities.of(run_folder, workflow.affinities, workflow.convention, workflow.long_range)
        check_size(source.volume_shape)
        return source
    return plan_predict(workflow, run_folder, shard_shape)
