"""Running the stages on small random affinities: what the promise tests share."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np

from neuroshed.engine.coordinator import ordered
from neuroshed.engine.readiness import Readiness
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.agglomerate import integer_threshold
from neuroshed.stages.affinities import NEAREST, Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.base import Stage
from neuroshed.stages.fragments import Fragments
from neuroshed.stages.graph import Graph
from neuroshed.stages.segment import Segment
from neuroshed.stages.stitch import Stitch
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


def write_affinities(path: Path, affinities: np.ndarray) -> Path:
    shape = affinities.shape[1:]
    volume = create_volume(
        path, shape=shape, dtype=np.uint8, shard_shape=shape, voxel_size=(10, 10, 10), voxel_offsets=NEAREST
    )
    volume.write(volume.box, affinities)
    return path


def segment_stage(
    run_folder: Path,
    affinities: Path,
    block_shape: Vec,
    settings: Settings,
    region: Box | None = None,
    shard_shape: Vec | None = None,
) -> Segment:
    source = Affinities.of(run_folder, affinities)
    fragments = Fragments(
        run_folder=run_folder,
        source=source,
        region=region or Box.of_shape(source.volume_shape),
        block_shape=block_shape,
        shard_shape=shard_shape or block_shape,
        low=settings.low,
        high=settings.high,
    )
    stitch = Stitch(run_folder=run_folder, fragments=fragments, small=settings.small, dust=settings.dust)
    agglomerate = Agglomerate(
        run_folder=run_folder,
        graph=Graph(run_folder=run_folder, stitch=stitch),
        lowest=integer_threshold(Fraction(settings.lowest)),
    )
    return Segment(run_folder=run_folder, agglomerate=agglomerate, thresholds=settings.thresholds)


def run_inline(last: Stage, order: random.Random) -> None:
    """Run every block in this process, in a random one of the orders that readiness allows."""
    stages = {stage.fingerprint: stage for stage in ordered([last])}
    for stage in stages.values():
        stage.prepare()
    readiness = Readiness([(stage.fingerprint, step) for stage in stages.values() for step in stage.steps])
    readiness.start()
    ready = list(readiness.take(1 << 30))
    while ready:
        task = ready.pop(order.randrange(len(ready)))
        stages[task.fingerprint].run(task.step, task.index)
        readiness.finish(task)
        ready += readiness.take(1 << 30)
    assert all(count.done == count.total for count in readiness.counts().values())


def outputs(segment: Segment) -> dict[str, np.ndarray]:
    """Fragments and the segmentation at every threshold."""
    labels = segment.agglomerate.graph.stitch.labels
    found = {"fragments": labels.read(labels.box)}
    return found | {t: volume.read(volume.box) for t, volume in segment.segmentations.items()}
