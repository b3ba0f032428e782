"""Running the stages on small random affinities: what the promise tests share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from neuroshed.engine.coordinator import ordered
from neuroshed.engine.readiness import Readiness
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.kernels.merging import integer_threshold
from neuroshed.stages.affinities import NEAREST, Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.masks import Mask, Skipped, empty_blocks
from neuroshed.stages.segment import Segment
from neuroshed.stages.semantics import Semantics
from neuroshed.storage.volumes import create_volume

from .reference import Settings


def random_affinities(rng: np.random.Generator, shape: Vec, levels: int) -> np.ndarray:
    """Smooth-ish random affinities with many ties: `levels` values between 0 and 255, uint8 `(3, z, y, x)`."""
    noise = rng.random((3, *shape))
    for axis in range(1, 4):
        noise = (noise + np.roll(noise, 1, axis)) / 2
    ranks = noise.argsort(axis=None).argsort().reshape(noise.shape) / noise.size
    steps = np.floor(ranks * levels) / max(levels - 1, 1)
    return np.round(255 * steps).astype(np.uint8)


def as_affinity(value: int) -> str:
    """Decimal text in 0..1 of which a workflow makes `value` (0..255) again: rounded down, since it rounds up."""
    return f"{value * 10**6 // 255 / 10**6:.6f}"


def write_affinities(path: Path, affinities: np.ndarray, *further: Vec) -> Path:
    """A volume of affinities uint8 `(c, z, y, x)`; `further` are the offsets of the channels after the third."""
    shape = affinities.shape[1:]
    volume = create_volume(
        path,
        shape=shape,
        dtype=np.uint8,
        shard_shape=shape,
        voxel_size=(10, 10, 10),
        voxel_offsets=(*NEAREST, *further),
    )
    volume.write(volume.box, affinities)
    return path


def segment_stages(
    run_folder: Path,
    affinities: Path | Affinities,
    block_shape: Vec,
    settings: Settings,
    region: Box | None = None,
    shard_shape: Vec | None = None,
    semantics: Semantics | None = None,
    masks: Sequence[Mask] = (),
    graph_gb: float = 8.0,
) -> list[Segment]:
    """The last stages: the unmerged fragments, and a segmentation at each threshold."""
    source = affinities if isinstance(affinities, Affinities) else Affinities.of(run_folder, affinities)
    region = region or Box.of_shape(source.volume_shape)
    grid = Grid(region, block_shape)
    fragments = Fragments(
        run_folder=run_folder,
        source=source,
        region=region,
        block_shape=block_shape,
        shard_shape=shard_shape or block_shape,
        low=settings.low,
        high=settings.high,
        small=settings.small,
        histograms=settings.score.startswith("quantile_"),
        long_range=bool(settings.further),
        dust=settings.dust,
        smooth=settings.smooth,
        bias=settings.bias,
        masks=tuple(masks),
        skipped=Skipped.of(grid, empty_blocks(masks, grid)[0]) if masks else None,
    )
    agglomerate = Agglomerate(
        run_folder=run_folder,
        fragments=fragments,
        score=settings.score,
        lowest=integer_threshold(Fraction(settings.lowest)),
        max_size=settings.max_size,
        semantics=semantics,
        graph_gb=graph_gb,
    )
    return [
        Segment(run_folder=run_folder, agglomerate=agglomerate, threshold=threshold)
        for threshold in ("fragments", *settings.thresholds)
    ]


class Task(NamedTuple):
    """One block of one step of one stage."""

    fingerprint: str
    step: str
    index: Vec


def run_once(stage: Stage, task: Task) -> bool:
    """Run a block; returns that it is done."""
    stage.run(task.step, task.index)
    return True


def run_inline(last: Sequence[Stage], order: random.Random, attempt: Callable[[Stage, Task], bool] = run_once) -> None:
    """Run every block in this process, in a random one of the orders that readiness allows.

    `attempt` runs a block and says whether it is done; if not, it gets another turn.
    """
    stages = {stage.fingerprint: stage for stage in ordered(last)}
    for stage in stages.values():
        stage.prepare()
    steps = [(stage.fingerprint, step) for stage in stages.values() for step in stage.steps]
    grids = {(fingerprint, step.name): step.grid for fingerprint, step in steps}
    readiness = Readiness(steps)
    readiness.start()
    taken: list[tuple[str, str, int]] = []
    while taken or not readiness.finished:
        for key, number in readiness.ready():
            taken += [(*key, position) for position in readiness.take(key, number).tolist()]
        fingerprint, step, position = block = taken.pop(order.randrange(len(taken)))
        index = grids[fingerprint, step].index(position)
        if attempt(stages[fingerprint], Task(fingerprint, step, index)):
            readiness.finish((fingerprint, step), np.array([position]))
        else:
            taken.append(block)
    assert all(count.done + count.skipped == count.total for count in readiness.counts().values())


def outputs(segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """Fragments and the segmentation at every threshold."""
    region = segments[0].agglomerate.fragments.region
    found = {}
    for segment in segments:
        labels = found[segment.threshold] = np.zeros(segment.labels.box.shape, np.uint64)
        labels[region.slices()] = segment.labels.read(region)
    return found
