"""A checked workflow to stages: what would run, how large it is, and what it costs, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from neuroshed.engine.coordinator import ordered
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Vec, add
from neuroshed.kernels.child import require
from neuroshed.kernels.merging import integer_threshold
from neuroshed.kernels.order import MAX_VOXELS
from neuroshed.model.lattice import Lattice, redundancy
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.blocks import BlockStage
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.predict import Predict
from neuroshed.stages.segment import FRAGMENTS, Segment
from neuroshed.stages.semantics import Semantics
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.identity import read_sample, sample_boxes, volume_identity
from neuroshed.storage.intensity import image_spread, matched
from neuroshed.storage.locations import Location
from neuroshed.storage.models import ModelCard, load_model
from neuroshed.storage.volumes import Volume, check_block_shape, open_volume
from neuroshed.workflow.config import Workflow

FRONTIER_LAYERS = 4
"""Layers of blocks across the longest axis in which predicted affinities wait for the last that reads them: two by
geometry, and as many for blocks at workers.
"""


@dataclass(frozen=True)
class Plan:
    """The stages of a run, upstream first."""

    workflow: Workflow
    run_folder: Location
    segments: tuple[Segment, ...]
    """One for each threshold, and one for the fragments if they are kept."""

    @property
    def stages(self) -> list[Stage]:
        """All stages, upstream first."""
        return ordered(self.segments)

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
                "memory_bytes": max(stage.memory_bytes(step.name) for step in stage.steps),
                "output_bytes": stage.output_bytes,
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
            "redundant_compute": redundancy(source.lattice, source.block_shape)
            if isinstance(source, Predict)
            else None,
            "suggested_block_multiple": list(source.lattice.stride) if isinstance(source, Predict) else None,
            "peak_disk_bytes": self.peak_disk_bytes,
            "stages": rows,
        }

    @property
    def peak_disk_bytes(self) -> int:
        """Upper bound of what the run's arrays take on disk at a time, before compression."""
        total = sum(stage.output_bytes for stage in self.stages)
        source = self.fragments.source
        if isinstance(source, Predict) and (source.fingerprint, "") in self.droppable:
            behind = max(len(source.grid) - frontier_blocks(source.grid.counts), 0)
            total -= source.output_bytes * behind // len(source.grid)
        return total


def frontier_blocks(counts: Vec) -> int:
    """The most blocks of predicted affinities that stand at a time if they are not kept, with no more threads than a
    cross-section has blocks.

    Blocks are done in sweeps along the longest axis and read one block beyond; its corners reach one row and one block
    further on both sides.
    """
    _, row, layers = sorted(counts)
    return FRONTIER_LAYERS * math.prod(counts) // layers + 2 * (row + 1)


def droppable_steps(stages: Sequence[Stage], keep: Collection[str]) -> set[tuple[str, str]]:
    """Steps (fingerprint of the stage, name) of a run whose outputs are not kept, by the words of `keep`."""
    dropped: list[Stage] = [stage for stage in stages if isinstance(stage, Predict) and "affinities" not in keep]
    if "merges" not in keep:
        dropped += [stage for stage in stages if isinstance(stage, BlockStage | WaterzScores | Agglomerate)]
    return {(stage.fingerprint, step.name) for stage in dropped for step in stage.steps}


def make_plan(workflow: Workflow) -> Plan:
    """The stages of a workflow. Reads inputs, writes nothing.

    Raises `InputError` or `WorkflowError` for what would fail later: missing or unfit inputs, boxes and shapes that
    do not fit.
    """
    run_folder = workflow.output
    run_folder.check()
    if run_folder.size() is not None:
        raise WorkflowError(f"output {run_folder} is a file; name a folder")
    for given in (workflow.image, workflow.affinities):
        if given is not None:
            given.check()
            if run_folder.is_relative_to(given):
                raise WorkflowError(
                    f"output {run_folder} is in the input {given}, which is never changed; name another"
                )
    shard_shape = workflow.shard_shape or workflow.block_shape
    check_block_shape(workflow.block_shape, shard_shape)
    source = _source(workflow, run_folder, shard_shape)
    fragments = _fragments(workflow, source, run_folder, shard_shape)
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
    return Plan(workflow, run_folder, tuple(segments))


def _fragments(
    workflow: Workflow, source: Affinities | Predict, run_folder: Location, shard_shape: Vec
) -> Fragments | MutexFragments | WaterzFragments:
    options = workflow.fragments
    common: dict[str, Any] = {
        "run_folder": run_folder,
        "source": source,
        "region": _region(workflow.box, source.volume_shape),
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
        _check_size(source.volume_shape)
        return source
    assert workflow.image is not None
    image = open_volume(workflow.image)
    region = _region(workflow.box, image.shape)
    check_image(image, region)
    model = load_model(Path(workflow.model).expanduser())
    options = workflow.predict
    return Predict(
        run_folder=run_folder,
        image=image.path,
        image_identity=volume_identity(image),
        volume_shape=image.shape,
        voxel_size=image.voxel_size,
        offset=image.offset,
        region=region,
        block_shape=workflow.block_shape,
        shard_shape=shard_shape,
        model=_absolute(workflow.model),
        network_sha256=model.network_sha256,
        lattice=model.card.lattice,
        normalisation=options.intensity or _intensity(image, model.card, options.inverted),
        flips=_flips(options.flips, model.card.lattice),
        batch_size=options.batch_size,
        threads=options.threads,
        device=_device(options.device),
        precision=options.precision,
        torch_version=_torch_version(),
    )


def _flips(axes: Sequence[str], lattice: Lattice) -> tuple[int, ...]:
    flips = tuple(sorted("zyx".index(axis) for axis in axes))
    if any(lattice.context[axis] < 1 for axis in flips):
        raise WorkflowError(
            f"predict.flips {list(axes)} need a voxel of context along each axis, the model has {lattice.context}; "
            "leave the others out"
        )
    return flips


def check_image(image: Volume, region: Box) -> None:
    """Raise `InputError` unless a volume can be predicted: 8 or 16 bits, no channels, not constant in `region`."""
    if image.channels is not None:
        raise InputError(
            f"image {image.path} has {image.channels} channels; needed is one: name a single-channel array"
        )
    if image.dtype.kind not in "ui" or image.dtype.itemsize > 2:
        raise InputError(
            f"image {image.path} is {image.dtype}; needed are integers of 8 or 16 bits: convert it, for instance with "
            "`neuroshed import --range LOW HIGH`"
        )
    _check_size(image.shape)
    boxes = [Box(add(region.start, box.start), add(region.start, box.stop)) for box in sample_boxes(region.shape)]
    samples = [read_sample(image, box) for box in boxes]
    values = {int(value) for sample in samples for value in (sample.min(), sample.max())}
    if len(values) == 1:
        raise InputError(
            f"image {image.path} is constant: eight boxes sampled in {region} hold only {values.pop()}; check that it "
            "was written whole, or give a `box` that holds tissue"
        )


def _check_size(shape: Vec) -> None:
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(f"a volume of {math.prod(shape)} voxels is beyond the limit of {MAX_VOXELS}; split it")


def _region(box: Box | None, shape: Vec) -> Box:
    whole = Box.of_shape(shape)
    if box is not None and (box.empty or not whole.contains(box)):
        raise WorkflowError(f"box {box} is not inside the volume {whole}; choose one that is")
    return box or whole


def _intensity(image: Volume, card: ModelCard, inverted: bool) -> tuple[float, float]:
    if card.spread:
        return matched(image_spread(image, image.box), card.spread, inverted=inverted)
    low, high = card.normalisation
    if image.dtype != np.uint8:
        # A model that does not remember its images has seen all their values between -1 and 1.
        values = np.concatenate([read_sample(image, box).ravel() for box in sample_boxes(image.shape)])
        low, high = (float(value) for value in np.percentile(values, [0.1, 99.9]))
        high = max(high, low + 1)
    return (high, low) if inverted else (low, high)


def _absolute(model: str) -> str:
    path = Path(model).expanduser()
    stems = (path, path.with_name(path.name + ".json"))
    return str(path.resolve()) if any(stem.exists() for stem in stems) else model


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
