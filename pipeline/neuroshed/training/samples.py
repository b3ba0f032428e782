"""Training samples: random patches of labelled volumes, with their targets.

Sample number `k` is a pure function of the configuration and `k`: its generator is seeded with both. So samples can be
prepared ahead in any number of threads, and a resumed training sees the ones an uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuroshed.errors import InputError
from neuroshed.geometry import Box, Vec, add, sub
from neuroshed.model.descriptors import local_shape_descriptors
from neuroshed.model.fused import CHANNELS_LAST
from neuroshed.model.targets import affinity_targets
from neuroshed.storage.views import Grown, Kept, Sections, Voxels
from neuroshed.storage.volumes import Volume, open_volume
from neuroshed.training.augment import AXES, change_intensities, draw_edges, draw_geometry
from neuroshed.training.config import Source, TrainingConfig, source_box
from neuroshed.training.elastic import draw_elastic

# A patch with less than this share of labelled voxels is drawn again, a few times.
ENOUGH_LABELLED = 0.1
DRAWS = 10


@dataclass(frozen=True)
class Region:
    """A box of image, labels and mask to draw samples from: a source, or one way of cutting it into sections."""

    image: Voxels
    labels: Voxels
    mask: Voxels | None
    box: Box
    weight: float

    def read(self, box: Box) -> list[npt.NDArray[Any]]:
        """Image, labels and mask (bool) of a box that may reach out of the region.

        Outside the region, and only there, the image is reflected and the labels are 0.
        """
        inside = box.intersect(self.box)
        labels = self.labels.read(inside)
        valid = self.mask.read(inside) != 0 if self.mask else np.ones(labels.shape, bool)
        pad = list(zip(sub(inside.start, box.start), sub(box.stop, inside.stop), strict=True))
        return [np.pad(self.image.read(inside), pad, mode="reflect"), np.pad(labels, pad), np.pad(valid, pad)]


def open_regions(sources: Sequence[Source], preload_gib: float) -> list[Region]:
    """Open all sources, in memory if together they need at most `preload_gib`.

    A source to be cut into sections makes a region for each axis, thickness and first voxel of the sections; they
    share its weight.
    """
    opened = [(source, *_open(source)) for source in sources]
    size = sum(box.size * sum(volume.dtype.itemsize for volume in volumes) for _, volumes, box in opened)
    keep = size <= preload_gib * 2**30
    regions = []
    for source, volumes, box in opened:
        seen: list[Voxels] = [Kept.of(volume, box) if keep else volume for volume in volumes]
        regions += _regions(source, seen, box)
    return regions


def _open(source: Source) -> tuple[list[Volume], Box]:
    """Image, labels and maybe mask of a source; `InputError` if they do not belong together or hold the wrong type."""
    image, labels = open_volume(source.image), open_volume(source.labels)
    volumes = [image, labels] + ([open_volume(source.mask)] if source.mask else [])
    for volume in volumes:
        if volume.channels is not None:
            raise InputError(f"{volume.path} has {volume.channels} channels; training takes z, y, x volumes")
        if volume.shape != image.shape:
            raise InputError(
                f"{volume.path} has shape {volume.shape}, but {image.path} has {image.shape}; they must be equal"
            )
    if image.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise InputError(f"{image.path} holds {image.dtype}; an image must be uint8 or uint16: convert it first")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{labels.path} holds {labels.dtype}; labels must be integers")
    box = source_box(source, image.shape)
    if box.empty or not image.box.contains(box):
        raise InputError(f"box {box} of {image.path} is empty or outside the volume of shape {image.shape}")
    return volumes, box


def _regions(source: Source, seen: Sequence[Voxels], box: Box) -> list[Region]:
    image, labels, *masks = seen
    if source.grow:
        labels = Grown(labels, source.grow)
    weight = float(box.size) if source.weight is None else source.weight
    if source.sections is None:
        return [Region(image, labels, masks[0] if masks else None, box, weight)]
    cuts = []
    for thickness, axis in itertools.product(source.sections.thickness, source.sections.axes):
        for phase in range(thickness):
            cut = functools.partial(Sections, axis=AXES[axis], thickness=thickness, phase=phase)
            views = [cut(image, averaged=True), *(cut(other, averaged=False) for other in (labels, *masks))]
            part = views[0].box_inside(box)
            if part.empty:
                raise InputError(
                    f"box {box} of {image.path} holds no whole section of {thickness} voxels along {axis}; make the "
                    "box larger or the sections thinner"
                )
            cuts.append((views, part))
    share = weight / len(cuts)
    return [Region(views[0], views[1], views[2] if masks else None, part, share) for views, part in cuts]


@dataclass(frozen=True)
class Sample:
    """One patch: image float32 `(1, z, y, x)` in -1..1; targets and counts bool `(channels, z, y, x)`.

    `descriptors` is float32 `(10, z, y, x)` (`neuroshed.model.descriptors`), or without channels if none are asked for.
    """

    image: npt.NDArray[np.float32]
    targets: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.bool_]
    descriptors: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Samples side by side: the fields of `Sample`, with the number of the sample in front."""

    image: Tensor
    targets: Tensor
    counts: Tensor
    descriptors: Tensor

    @staticmethod
    def of(samples: Sequence[Sample]) -> Batch:
        """The batch of some samples."""
        names = (field.name for field in fields(Batch))
        return Batch(*(torch.from_numpy(np.stack([getattr(s, name) for s in samples])) for name in names))

    def to(self, device: str) -> Batch:
        """The batch on a device; the image in the memory format in which convolutions are fast."""
        image, *others = (getattr(self, field.name).to(device, non_blocking=True) for field in fields(Batch))
        return Batch(image.to(memory_format=CHANNELS_LAST), *others)


@dataclass(frozen=True)
class Sampler:
    """Draws samples from regions, in proportion to their weights; every `ranks`-th of a batch, from `rank` on."""

    regions: Sequence[Region]
    config: TrainingConfig
    rank: int = 0
    ranks: int = 1

    def sample(self, number: int) -> Sample:
        """Sample `number` of the training, the same whenever and wherever it is drawn."""
        config = self.config
        rng = np.random.default_rng([config.seed, number])
        weights = np.array([region.weight for region in self.regions])
        for _ in range(DRAWS):
            region = self.regions[int(rng.choice(len(weights), p=weights / weights.sum()))]
            elastic = draw_elastic(rng, config.patch_shape, config.augment)
            geometry = draw_geometry(rng, elastic.read_shape, config.augment)
            start = _draw_start(rng, region.box, geometry.read_shape)
            patch = region.read(Box(start, add(start, geometry.read_shape)))
            image, labels, valid = (geometry.apply(array) for array in patch)
            image = elastic.apply(image.astype(np.float32))
            labels, valid = elastic.apply(labels), elastic.apply(valid)
            image, valid = draw_edges(rng, config.patch_shape, config.augment).apply(image, valid)
            if np.count_nonzero(valid & (labels != 0)) >= ENOUGH_LABELLED * labels.size:
                break
        targets, counts = affinity_targets(labels, config.offsets, valid)
        changed = change_intensities(image, rng, config.augment, config.normalisation)
        descriptors = np.empty((0, *labels.shape), np.float32)
        if config.descriptors:
            descriptors = local_shape_descriptors(np.where(valid, labels, 0), config.descriptors.sigma)
        return Sample(changed[None], targets, counts, descriptors)

    def batch(self, step: int) -> Batch:
        """Samples of a step: those of this process."""
        size = self.config.batch_size
        return Batch.of([self.sample(step * size + slot) for slot in range(self.rank, size, self.ranks)])

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps start..stop - 1, in order, prepared ahead by `config.loaders` threads."""
        ahead = 2 * self.config.loaders
        with ThreadPoolExecutor(self.config.loaders, thread_name_prefix="samples") as pool:
            waiting: list[Future[Batch]] = []
            try:
                for step in range(start, stop):
                    while len(waiting) < ahead and step + len(waiting) < stop:
                        waiting.append(pool.submit(self.batch, step + len(waiting)))
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()


def _draw_start(rng: np.random.Generator, box: Box, shape: Vec) -> Vec:
    # Along an axis on which the patch does not fit, it is centred and reaches out on both sides.
    z, y, x = (
        a + (int(rng.integers(0, n - s + 1)) if n >= s else (n - s) // 2)
        for a, n, s in zip(box.start, box.shape, shape, strict=True)
    )
    return z, y, x
