"""The training configuration: one YAML file, checked strictly, every field explained.

Everything but the fields in `FREE` decides the numbers, and may not change between the runs that
resume one training.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neuroshed.errors import WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.model.descriptors import COUNT as DESCRIPTORS
from neuroshed.model.lattice import Lattice
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Architecture
from neuroshed.model.words import Precision
from neuroshed.storage.locations import Location

Share = Annotated[float, Field(ge=0, le=1)]
Axis = Literal["z", "y", "x"]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Width = Annotated[float, Field(gt=0)]

FREE = frozenset(
    {
        "description",
        "output",
        "steps",
        "log_every",
        "validate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "loaders",
        "preload_gib",
    }
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Cut(_Strict):
    """Thin sections, simulated from (nearly) isotropic voxels: `neuroshed.storage.views.Sections`.

    Each axis, thickness and first voxel of the sections is a way of its own to cut the same voxels; all are used.
    """

    thickness: Annotated[tuple[Annotated[int, Field(ge=2, le=64)], ...], Field(min_length=1)]
    """Voxels that become one section; several make the model used to several."""
    axes: Annotated[tuple[Axis, ...], Field(min_length=1)] = ("z",)
    """Axes that are cut and become z. The exported model's voxel size is that of the first axis and thickness."""


class Source(_Strict):
    """A labelled part of an image."""

    image: Location
    """OME-Zarr or Zarr image, uint8 or uint16, by path or URL (`s3://`, `gs://`, `az://`, `https://`)."""
    labels: Location
    """Integer labels of the same shape; 0 is unlabelled and does not count."""
    mask: Location | None = None
    """Volume of the same shape; only voxels where it is not 0 count."""
    box: tuple[Vec, Vec] | None = None
    """(start, stop) in voxels, z y x, half-open: nothing outside is read. Default: the whole volume."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """How often it is sampled, relative to the others. Default: its number of voxels."""
    grow: Annotated[int, Field(ge=0, le=16)] = 0
    """Labels grow by up to this many voxels into unlabelled ones: for truths drawn with boundary voxels of label 0."""
    sections: Cut | None = None
    """How to cut it into sections, for a model of serial sections. Default: voxels as they are."""


class Augment(_Strict):
    """Random changes of a sample. Intensities are meant after normalisation to 0..1; 0 switches a change off."""

    flip: tuple[Axis, ...] = ("z", "y", "x")
    """Axes that may be flipped."""
    swap: tuple[Axis, ...] = ("y", "x")
    """Axes that may trade places: all three for isotropic voxels, y and x for sections."""
    elastic: Share = 0.0
    """Share of the samples that are bent smoothly."""
    elastic_spacing: tuple[Positive, Positive, Positive] = (24, 24, 24)
    """Distance between control points of the bending in voxels, z y x."""
    elastic_shift: tuple[NotNegative, NotNegative, NotNegative] = (4, 4, 4)
    """Largest displacement along z, y, x in voxels; 0 along z keeps sections in place."""
    contrast: Share = 0.2
    """Contrast is multiplied by a factor within 1 - contrast..1 + contrast."""
    brightness: Share = 0.1
    """Up to this much is added or taken away."""
    gamma: Annotated[float, Field(ge=0, le=3)] = 0.5
    """Intensities are raised to the power 2**g, g within -gamma..gamma."""
    noise: Share = 0.05
    """Largest standard deviation of Gaussian noise."""
    blurred: Share = 0.0
    """Share of the z sections that are blurred."""
    blur_sigma: Annotated[float, Field(gt=0)] = 2.0
    """Largest standard deviation of the blur in voxels."""
    missing: Share = 0.0
    """Share of the z sections that are blank; their labels stay."""
    misaligned: Share = 0.0
    """Share of the samples with a misalignment: half of them slips of one section, half shifts of all later ones."""
    max_shift: Annotated[int, Field(ge=1)] = 8
    """Largest misalignment in voxels."""
    jitter: NotNegative = 0
    """Every section is displaced along y and x by up to this many voxels of its own."""
    section_contrast: Share = 0.0
    """Contrast of every section is multiplied by a factor of its own within 1 - this..1 + this."""
    section_brightness: Share = 0.0
    """Up to this much is added to or taken away from every section."""
    edges: Share = 0.0
    """Share of the samples that are a slab across one axis, mirrored beyond it: what is seen at a volume's faces."""


class Descriptors(_Strict):
    """Local shape descriptors as an auxiliary task: ten more output channels, which only teach."""

    sigma: tuple[Width, Width, Width]
    """Deviation of the Gaussian window in voxels, z y x: about half the width of a neurite."""
    weight: Width = 1.0
    """Weight of their mean squared error beside the loss of the affinities."""


class TrainingConfig(_Strict):
    """Everything about a training."""

    output: Path
    """Folder for checkpoints, logs and the exported models `best` and `last`."""
    description: str = ""
    """What the exported model is for and what it learnt from; travels with it."""
    samples: Annotated[tuple[Source, ...], Field(min_length=1)]
    """What to learn from."""
    validation: tuple[Source, ...] = ()
    """Held-out parts, predicted and scored every `validate_every` steps; they choose `best`."""

    network: Architecture
    """Levels, features, kernels and pooling."""
    offsets: Annotated[tuple[Vec, ...], Field(min_length=3)] = NEAREST
    """Edge offset of each output channel, z y x; the first three are the nearest neighbours."""
    descriptors: Descriptors | None = None
    """Local shape descriptors, whose channels follow those of the offsets. Default: none."""
    normalisation: tuple[float, float] = (0.0, 255.0)
    """Intensities (low, high) that become -1 and 1."""
    lattice: Lattice
    """Patch and context in which the exported model, and validation, predicts."""

    patch_shape: Vec
    """Shape of a training sample, z y x, a multiple of the product of the poolings."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Samples a step, over all processes."""
    augment: Augment = Augment()
    """Random changes of the samples."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the first weights, the samples and their changes."""

    steps: Annotated[int, Field(ge=1)]
    """Length of the training. While the learning rate is at its plateau, changing it and resuming gives exactly the
    training that was asked for in the first place."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """The plateau: reached after `warmup_steps`, left `decay_steps` before the end along half a cosine to 0."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps of linear increase."""
    decay_steps: Annotated[int, Field(ge=0)] = 1000
    """Steps of decrease."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """What is scored and exported is an exponential moving average of the weights, of which each step keeps this share
    (0.999 averages the last thousand steps or so; a training's first steps keep less). 0: the weights themselves."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """cpu, cuda or cuda:N."""
    precision: Precision = "float32"
    """bfloat16 (mixed) is faster where the hardware has it, and far slower on CPUs without."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of the network."""
    loaders: Annotated[int, Field(ge=1)] = 1
    """Threads that prepare samples ahead."""
    preload_gib: Annotated[float, Field(ge=0)] = 2.0
    """Boxes are read into memory at the start if all together need at most this; else each sample is read from disk."""

    log_every: Annotated[int, Field(ge=1)] = 50
    """Steps between two lines of the log."""
    validate_every: Annotated[int, Field(ge=1)] = 500
    """Steps between two validations (and exports of `last`)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many checkpoints stay."""

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if self.offsets[:3] != NEAREST:
            raise ValueError(f"the first three offsets must be {NEAREST}, got {self.offsets[:3]}")
        channels = len(self.offsets) + (DESCRIPTORS if self.descriptors else 0)
        if channels != self.network.out_channels:
            raise ValueError(
                f"network.out_channels is {self.network.out_channels}, but {len(self.offsets)} offsets"
                f"{f' and {DESCRIPTORS} descriptors' if self.descriptors else ''} need {channels}"
            )
        multiple = self.network.multiple
        for name, shape in (("patch_shape", self.patch_shape), ("lattice.patch", self.lattice.patch)):
            if any(side < m or side % m for side, m in zip(shape, multiple, strict=True)):
                raise ValueError(f"{name} {shape} is not a multiple of the poolings' product {multiple}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} exceed steps = {self.steps}"
            )
        if not self.normalisation[0] < self.normalisation[1]:
            raise ValueError(f"normalisation {self.normalisation} must be (low, high) with low < high")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: a pure function, so that resuming needs no scheduler state."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        left = self.steps - step
        if left >= self.decay_steps:
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left / self.decay_steps))


def source_box(source: Source, shape: Vec) -> Box:
    """The box of a source in a volume of `shape`."""
    return Box.of_shape(shape) if source.box is None else Box(*source.box)


def load_config(path: Path) -> TrainingConfig:
    """Read a training configuration from a YAML file; raises `WorkflowError` of one line."""
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise WorkflowError(f"cannot read {path}: {error.strerror}; check the path") from error
    except yaml.YAMLError as error:
        raise WorkflowError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return parse_config(values, str(path))


def parse_config(values: Any, source: str = "training configuration") -> TrainingConfig:
    """Check plain values; raises `WorkflowError` naming the first field that is wrong and what it is for."""
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known are {', '.join(_siblings(first['loc']))}"
        raise WorkflowError(f"{source}: {key}: {message}") from error


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "samples": Source,
        "validation": Source,
        "augment": Augment,
        "descriptors": Descriptors,
        "network": Architecture,
    }
    if "sections" in loc[:-1]:
        return sorted(Cut.model_fields)
    model = models.get(str(loc[0]), TrainingConfig) if len(loc) > 1 else TrainingConfig
    return sorted(model.model_fields)


def difference(old: TrainingConfig, new: TrainingConfig) -> str | None:
    """The first key, dotted, in which two configurations of one training differ; None if they may be mixed."""
    return _difference(
        {key: value for key, value in old.model_dump(mode="json").items() if key not in FREE},
        {key: value for key, value in new.model_dump(mode="json").items() if key not in FREE},
    )


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return None
    return None if old == new else f"{where} (was {old}, is {new})"
