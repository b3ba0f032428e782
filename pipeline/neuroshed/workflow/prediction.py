"""What a workflow asks of the network, checked and fixed: model, patches, intensities, device; and what looks odd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroshed.engine.clusters import local_memory
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Vec, add
from neuroshed.kernels.order import MAX_VOXELS
from neuroshed.model.lattice import Lattice
from neuroshed.stages.drift import TOP, Drift
from neuroshed.stages.predict import Predict
from neuroshed.storage.declared import ForeignModel
from neuroshed.storage.identity import read_sample, sample_boxes, volume_identity
from neuroshed.storage.intensity import image_spread, matched
from neuroshed.storage.locations import Location
from neuroshed.storage.networks import open_model, resolved
from neuroshed.storage.volumes import Volume, open_volume
from neuroshed.workflow.config import PredictOptions, Workflow

if TYPE_CHECKING:
    from neuroshed.storage.networks import Opened

ODD_RATIO = 1.3
"""Voxel sizes of image and model that differ by more than this factor are told."""


def plan_predict(workflow: Workflow, run_folder: Location, shard_shape: Vec) -> Predict:
    """The prediction of a workflow's image. Raises `InputError` or `WorkflowError` for what would fail later."""
    # Torch, which only those plans need that predict.
    from neuroshed.workflow.trial import try_once, with_best_batch_size

    assert workflow.image is not None
    image = open_volume(workflow.image)
    region = region_of(workflow.box, image.shape)
    check_image(image, region)
    choice = resolved(workflow.model)
    model = open_model(choice)
    options = workflow.predict
    lattice = _lattice(model, options.patch)
    predict = Predict(
        run_folder=run_folder,
        image=image.path,
        image_identity=volume_identity(image),
        volume_shape=image.shape,
        voxel_size=image.voxel_size,
        offset=image.offset,
        region=region,
        block_shape=workflow.block_shape,
        shard_shape=shard_shape,
        model=choice,
        network_sha256=model.network_sha256,
        lattice=lattice,
        **_intensities(image, model, options, run_folder, region.grow(add(workflow.block_shape, lattice.patch))),
        flips=_flips(options.flips, lattice),
        batch_size=1 if options.batch_size == "auto" else options.batch_size,
        threads=options.threads,
        device=device_of(options.device, workflow.cluster),
        precision=options.precision,
        deterministic=options.deterministic,
        torch_version=_torch_version(),
    )
    check_memory(predict, local_memory(workflow.cluster))
    if isinstance(choice, ForeignModel):
        try_once(predict)
    return with_best_batch_size(predict) if options.batch_size == "auto" else predict


def _intensities(
    image: Volume, model: Opened, options: PredictOptions, run_folder: Location, seen: Box
) -> dict[str, Any]:
    """The fields of a prediction that say what the network makes of image values in the box that it sees."""
    if options.drift is None:
        return {"normalisation": intensity_of(image, model, options)}
    if model.spread is None:
        raise WorkflowError(
            "predict.drift needs a model that remembers how bright its images were, as those of `neuroshed train` do; "
            "leave it out"
        )
    drift = Drift(
        run_folder=run_folder,
        image=image.path,
        image_identity=volume_identity(image),
        volume_shape=image.shape,
        region=seen.grow(options.drift).intersect(image.box),
        cell_shape=options.drift,
        whole=image_spread(image, image.box),
    )
    return {"normalisation": (0.0, float(TOP)), "drift": drift, "spread": model.spread, "inverted": options.inverted}


def voxel_size_warning(predict: Predict) -> str | None:
    """A line if the image has other voxels than those that the model learnt from."""
    return odd_voxel_size(str(predict.image), predict.voxel_size, open_model(predict.model).voxel_size)


def odd_voxel_size(image: str, found: Sequence[float], trained: Sequence[float] | None) -> str | None:
    """A line if voxels of an image (nm, z y x) have other sides than those that a model was trained for, if known."""
    if trained is None:
        return None
    ratios = [have / learnt for have, learnt in zip(found, trained, strict=True)]
    if all(1 / ODD_RATIO < ratio < ODD_RATIO for ratio in ratios):
        return None
    told = " x ".join(f"{ratio:.2g}" for ratio in ratios)
    return (
        f"voxels of {image} are {_nm(found)} nm, the model learnt from {_nm(trained)} nm ({told} "
        "times as large): its affinities may be poor; rescale the image, or take or train another model"
    )


def _nm(size: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in size)


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
    check_size(image.shape)
    boxes = [Box(add(region.start, box.start), add(region.start, box.stop)) for box in sample_boxes(region.shape)]
    samples = [read_sample(image, box) for box in boxes]
    values = {int(value) for sample in samples for value in (sample.min(), sample.max())}
    if len(values) == 1:
        raise InputError(
            f"image {image.path} is constant: eight boxes sampled in {region} hold only {values.pop()}; check that it "
            "was written whole, or give a `box` that holds tissue"
        )


def check_size(shape: Vec) -> None:
    """Raise `InputError` for a volume of more voxels than can be numbered."""
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(f"a volume of {math.prod(shape)} voxels is beyond the limit of {MAX_VOXELS}; split it")


def region_of(box: Box | None, shape: Vec) -> Box:
    """The region that is meant in a volume; raises `WorkflowError` for a box that is not inside it."""
    whole = Box.of_shape(shape)
    if box is not None and (box.empty or not whole.contains(box)):
        raise WorkflowError(f"box {box} is not inside the volume {whole}; choose one that is")
    return box or whole


def _lattice(model: Opened, patch: Vec | None) -> Lattice:
    from neuroshed.storage.models import Model

    if patch is None:
        return model.lattice
    if not isinstance(model, Model):
        raise WorkflowError("predict.patch is for our own models; declare input_shape instead")
    multiple, context = model.card.architecture.multiple, model.lattice.context
    if any(side % m for side, m in zip(patch, multiple, strict=True)):
        raise WorkflowError(f"predict.patch {patch} is not a multiple of the product of the poolings, {multiple}")
    if any(side <= 2 * c for side, c in zip(patch, context, strict=True)):
        raise WorkflowError(f"predict.patch {patch} must be larger than twice the model's context {context}")
    return Lattice(patch, context)


def check_memory(predict: Predict, available: int | None) -> None:
    """Raise `WorkflowError` if a task needs more bytes than there are, so that it could never run."""
    needed = predict.memory_bytes("")
    if available is not None and needed > available:
        raise WorkflowError(
            f"a block of {predict.title} needs {needed / 1e9:.1f} GB, there are {available / 1e9:.1f} GB: patches of "
            f"{predict.lattice.patch}, {predict.batch_size} at a time, in blocks of {predict.block_shape}; choose a "
            "smaller predict.patch, predict.batch_size or block_shape"
        )


def _flips(axes: Sequence[str], lattice: Lattice) -> tuple[int, ...]:
    flips = tuple(sorted("zyx".index(axis) for axis in axes))
    if any(lattice.context[axis] < 1 for axis in flips):
        raise WorkflowError(
            f"predict.flips {list(axes)} need a voxel of context along each axis, the model has {lattice.context}; "
            "leave the others out"
        )
    return flips


def intensity_of(image: Volume, model: Opened, options: PredictOptions) -> tuple[float, float]:
    """Image values that the network sees as darkest and brightest, of the whole volume."""
    if not model.scales_intensities:
        if options.intensity or options.inverted:
            raise WorkflowError("predict.intensity and inverted have no effect on this model, which scales by itself")
        return 0.0, 1.0
    if options.intensity:
        return options.intensity
    if model.spread:
        return matched(image_spread(image, image.box), model.spread, inverted=options.inverted)
    low, high = model.normalisation
    if image.dtype != np.uint8:
        # A model that does not remember its images has seen all their values between its darkest and brightest.
        values = np.concatenate([read_sample(image, box).ravel() for box in sample_boxes(image.shape)])
        low, high = (float(value) for value in np.percentile(values, [0.1, 99.9]))
        high = max(high, low + 1)
    return (high, low) if options.inverted else (low, high)


def device_of(device: str, cluster: ClusterConfig | None = None) -> str:
    """The device that is meant: `auto` is cuda if workers are to have GPUs, or, without pools, if this machine has."""
    if device != "auto":
        return device
    if cluster and cluster.pools:
        return "cuda" if any(pool.gpus for pool in cluster.pools.values()) else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
