"""The workflow file: what a user may write, its defaults, and finding, reading and overriding it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from neuroshed.engine.attempts import FailureOptions
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.kernels.across import check_offsets
from neuroshed.kernels.adjust import MAX_SMOOTH
from neuroshed.kernels.scores import Score
from neuroshed.kernels.waterz import SCORES
from neuroshed.stages.affinities import AffinityConvention
from neuroshed.stages.masks import MaskOptions
from neuroshed.stages.semantics import MAX_CLASSES
from neuroshed.storage.declared import ForeignModel
from neuroshed.storage.locations import Location
from neuroshed.workflow.monitor import MonitorOptions

DECLARED = "declared"
"""Tag of a model that is declared, which errors leave out."""
MAX_DECIMALS = 24
"""More than any floating-point number needs, few enough for the name of a file."""


def decimal_text(value: Any) -> str:
    """A fraction in 0..1 as the shortest decimal text, so that thresholds are exact and name files.

    >>> decimal_text(0.30), decimal_text("5e-1")
    ('0.3', '0.5')
    """
    try:
        exact = Decimal(str(value))
        within = 0 <= exact <= 1 and int(exact.as_tuple().exponent) >= -MAX_DECIMALS
    except (InvalidOperation, TypeError):
        within = False
    if not within:
        raise ValueError(f"needed is a number in 0..1 of at most {MAX_DECIMALS} decimals, got {value!r}")
    text = f"{abs(exact):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _positive(value: Vec) -> Vec:
    if min(value) < 1:
        raise ValueError(f"sides must be at least 1, got {list(value)}")
    return value


def _check_score(name: str) -> None:
    try:
        Score.parse(name)
    except ValueError as error:
        raise ValueError(f"agglomerate.score: {error}") from error


def _not_negative(value: Vec) -> Vec:
    if min(value) < 0:
        raise ValueError(f"voxels of context must be 0 or more, got {list(value)}")
    return value


Keep = Literal["segmentation", "fragments", "merges", "affinities"]
Affinity = Annotated[str, BeforeValidator(decimal_text)]
Shape = Annotated[Vec, AfterValidator(_positive)]
Halo = Annotated[Vec, AfterValidator(_not_negative)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictOptions(_Strict):
    """`predict:` how the network runs. Every field may change single values by rounding, so all are fixed for a run."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Patches that go through the network at once. `auto`: the fastest of a few, measured when the run is planned, and
    kept as long as its folder holds results of it."""
    patch: Shape | None = None
    """Voxels of a patch, z y x, of one of our models: larger ones compute less twice and take more memory. Default:
    what the model was made with."""
    threads: int = Field(default=1, ge=1)
    """Processor threads of one task."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is cuda where the planning machine has it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    deterministic: bool = True
    """Whether a GPU uses only algorithms that give the same numbers each time. Without, it may be faster, and labels
    may differ from run to run; CPUs always are deterministic."""
    flips: tuple[Literal["z", "y", "x"], ...] = ()
    """Axes along which patches are also predicted flipped, and the answers averaged: each axis doubles the time."""
    intensity: tuple[float, float] | None = None
    """Image values that the network sees as darkest and brightest. Default: those with which 64 samples of the volume
    are as bright and as rich in contrast as what the model learnt from."""
    drift: Shape | None = None
    """Where brightness and contrast drift slowly: the sides of cells, in voxels z y x, that each have a range of their
    own, interpolated between their centres. Some hundred voxels at least. Default: one range for the whole volume."""
    inverted: bool = False
    """Whether membranes are bright in the image: if so it is turned round, with the default `intensity`."""

    @model_validator(mode="after")
    def _check(self) -> PredictOptions:
        if self.intensity is not None and self.intensity[0] == self.intensity[1]:
            raise ValueError(f"intensity must be [low, high] with two values that differ, got {list(self.intensity)}")
        if self.intensity is not None and self.inverted:
            raise ValueError("inverted goes with the default intensity; with your own, write the larger value first")
        if self.intensity is not None and self.drift:
            raise ValueError("drift finds the intensities of each place; leave intensity out")
        if len(set(self.flips)) < len(self.flips):
            raise ValueError(f"flips {list(self.flips)} name an axis twice")
        return self


class FragmentOptions(_Strict):
    """`fragments:` the watershed, and what becomes of small basins."""

    method: Literal["watershed", "mutex"] = "watershed"
    """`mutex`: mutex watershed within blocks, of `long_range` affinities too; depends on the blocks. Needs
    `pip install neuroshed[mutex]`."""
    biases: tuple[float, ...] | None = None
    """Of the mutex watershed, one a channel: affinities above it attract, others repel. Default: 0 for the nearest
    neighbours, 1 for long-range ones."""
    context: Halo = (16, 16, 16)
    """Voxels around a block that the mutex watershed or waterz sees too, z y x."""
    low: Affinity = "0.1"
    """Edges of a lower affinity join nothing."""
    high: Affinity = "0.98"
    """Edges of at least this affinity always join."""
    small: int = Field(default=200, ge=0)
    """Fragments of fewer voxels join their best neighbour."""
    dust: int = Field(default=50, ge=0)
    """Fragments of fewer voxels that found no neighbour become background."""
    smooth: float = Field(default=0.0, ge=0, le=MAX_SMOOTH)
    """Standard deviation in voxels of a smoothing of the affinities before all else; 0 for none."""
    bias: float = Field(default=0.0, ge=-1, le=1)
    """Added to all affinities (in 0..1) after smoothing; below 0 splits more, above 0 merges more."""


class SemanticOptions(_Strict):
    """`semantics:` classes of tissue that are not merged with each other."""

    path: Location
    """Label volume of classes, at the resolution of the affinities or coarser by whole numbers."""
    classes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """The labels that count, such as those of soma, glia and vessel; all others are of no class."""

    @model_validator(mode="after")
    def _check(self) -> SemanticOptions:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} name one twice")
        return self


class AgglomerateOptions(_Strict):
    """`agglomerate:` the merge tree."""

    score: str = "mean"
    """How an edge between fragments is scored by the affinities between them: mean, max, min or quantile_P
    (P percent, about 2 KB an edge); with `engine: waterz` the name of any of waterz's scoring functions."""

    lowest_threshold: Affinity = "0.2"
    """Merges are recorded down to this score; no threshold may lie below it. Lower takes more memory."""

    long_range: bool = False
    """Whether the affinities of the `long_range` channels count in scores like those of neighbours."""
    max_size: int = Field(default=0, ge=0)
    """Merges that would make a segment of more voxels are refused; 0 for any size."""
    graph_gb: float = Field(default=8.0, gt=0)
    """Memory for the region graph of a tree node, in GB; a larger graph is taken in windows of falling score, from
    files in the folder that TMPDIR names. Changes no result."""
    alarm_share: float = Field(default=0.5, gt=0, le=1)
    """The summary warns of a segment that holds more than this share of the region: most likely a false merge."""


class Workflow(_Strict):
    """A segmentation workflow: from an image, or from affinities that are there already, to neurons."""

    image: Location | None = None
    """OME-Zarr image of 8 or 16 bits."""
    affinities: Location | None = None
    """Instead of an image: a volume of affinities of any network, as `convention` says."""
    convention: AffinityConvention = AffinityConvention()
    """How the given affinities are stored. Default: uint8, channel c at voxel p joins p and p - e_c."""
    output: Location
    """The run folder."""
    model: Annotated[
        Annotated[str, Tag("")] | Annotated[ForeignModel, Tag(DECLARED)],
        Discriminator(lambda value: "" if isinstance(value, str) else DECLARED),
    ] = "fibsem"
    """Name of a shipped model, path of one of yours, or what is declared of somebody else's (see `ForeignModel`)."""
    block_shape: Shape = (128, 128, 128)
    """Voxels of one task, z y x."""
    shard_shape: Shape | None = None
    """Voxels of one file, z y x; a block is made of whole shards. Default: the block."""
    thresholds: Annotated[tuple[Affinity, ...], Field(min_length=1)] = ("0.3", "0.5")
    """One segmentation for each: fragments join where their score is at least this."""
    keep: tuple[Keep, ...] = ("segmentation", "merges", "affinities")
    """What is there at the end: `segmentation` always; `fragments`, the labels before any merge, are written only if
    they are named; `merges`, from which `cut` makes other thresholds, and predicted `affinities`, which other
    parameters need, are deleted block by block as soon as nothing reads them any more, unless they are named.
    """
    pyramid: bool | Annotated[int, Field(ge=1)] = False
    """Whether each segmentation gets smaller levels for viewers beside it, down to 128 voxels a side; a number: so many
    levels."""
    semantics: SemanticOptions | None = None
    """Classes of tissue that are not merged with each other."""
    masks: tuple[MaskOptions, ...] = ()
    """Which voxels are segmented: those that every mask allows. The others have label 0, and no edge leads to them.
    Blocks without any are left out of the run."""
    box: Box | None = None
    """Trial region: [[z0, y0, x0], [z1, y1, x1]], half-open. Default: the whole volume."""
    cluster: ClusterConfig = ClusterConfig()
    failures: FailureOptions = FailureOptions()
    monitor: MonitorOptions = MonitorOptions()
    predict: PredictOptions = PredictOptions()
    engine: Literal["exact", "waterz"] = "exact"
    """`waterz`: waterz on blocks with context, merged by connected components of its scores; depends on the blocks.
    Needs `pip install neuroshed[waterz]`."""
    long_range: tuple[Vec, ...] = ()
    """Offsets (z y x) of further channels of the given affinities: for `fragments.method: mutex`, for scores if
    `agglomerate.long_range`, or for both."""
    fragments: FragmentOptions = FragmentOptions()
    agglomerate: AgglomerateOptions = AgglomerateOptions()

    @model_validator(mode="before")
    @classmethod
    def _box_from_pair(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("box"), (list, tuple)):
            pair = values["box"]
            if len(pair) != 2:
                raise ValueError(f"box must be [[z0, y0, x0], [z1, y1, x1]], got {pair}")
            return values | {"box": {"start": pair[0], "stop": pair[1]}}
        return values

    @model_validator(mode="after")
    def _check(self) -> Workflow:
        if (self.image is None) == (self.affinities is None):
            raise ValueError("exactly one of `image` and `affinities` must be given")
        if self.engine == "exact":
            _check_score(self.agglomerate.score)
        elif self.agglomerate.score not in SCORES:
            raise ValueError(
                f"agglomerate.score {self.agglomerate.score!r} is none of waterz's; known are mean, size_similarity, "
                "quantile_P and quantile_P_max with P from 10 to 95 in steps of 5"
            )
        if self.engine == "waterz" and min(self.fragments.context) < 1:
            raise ValueError(
                f"fragments.context is {list(self.fragments.context)}; waterz joins nothing across the faces of blocks "
                "without context, give it at least 1 voxel, better 16"
            )
        if self.engine == "waterz" and self.fragments.method != "watershed":
            raise ValueError("engine waterz has its own watershed; leave fragments.method out")
        self._check_long_range()
        self._check_fragments_keys()
        if self.masks and Fraction(self.fragments.low) == 0:
            raise ValueError("fragments.low is 0, so that any edge joins, also one under a mask; with masks, raise it")
        if self.image is not None and self.convention != AffinityConvention():
            raise ValueError("convention is that of given affinities; an image has none")
        if Fraction(self.fragments.low) > Fraction(self.fragments.high):
            raise ValueError(f"fragments.low {self.fragments.low} is above fragments.high {self.fragments.high}")
        below = [t for t in self.thresholds if Fraction(t) < Fraction(self.agglomerate.lowest_threshold)]
        if below:
            raise ValueError(
                f"threshold {below[0]} is below agglomerate.lowest_threshold {self.agglomerate.lowest_threshold}; "
                "lower that one or leave the threshold out"
            )
        if "segmentation" not in self.keep:
            raise ValueError(f"keep {list(self.keep)} lacks segmentation; name all that is to be there at the end")
        if len(set(self.thresholds)) < len(self.thresholds):
            raise ValueError(f"thresholds {list(self.thresholds)} name one twice")
        return self

    def _check_fragments_keys(self) -> None:
        options = self.fragments
        if options.biases is not None and options.method != "mutex":
            raise ValueError("fragments.biases are those of fragments.method mutex; leave them out")
        if options.context != FragmentOptions().context and self.engine == "exact" and options.method == "watershed":
            raise ValueError(
                f"fragments.context is {list(options.context)}; it is of method mutex and engine waterz, leave it out"
            )

    def _check_long_range(self) -> None:
        if self.long_range and self.image is not None:
            raise ValueError("long_range channels are those of given affinities; an image has none")
        if self.agglomerate.long_range:
            if not self.long_range or self.engine != "exact":
                raise ValueError("agglomerate.long_range needs the offsets in long_range, and engine exact")
            check_offsets(self.long_range, self.block_shape)
        elif self.long_range and self.fragments.method != "mutex":
            raise ValueError(
                "nothing uses the long_range channels: set agglomerate.long_range to have them count in scores, or "
                "fragments.method to mutex"
            )


def shipped() -> dict[str, Traversable]:
    """The workflow files that come with neuroshed, by name."""
    folder = resources.files("neuroshed") / "workflows"
    files = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return dict(sorted(files.items()))


def find(name_or_path: str) -> str:
    """The text of a workflow file, by path or by the name of a shipped one. Raises `WorkflowError` if there is none."""
    with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return Location.of(name_or_path).read_bytes().decode()
    known = shipped()
    if name_or_path in known:
        return known[name_or_path].read_text()
    raise WorkflowError(f"no workflow {name_or_path}: neither a file nor one of {', '.join(known)}")


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Workflow:
    """Read and check a workflow; `overrides` are `a.b=value` with the value in YAML.

    Raises `WorkflowError` in one line: which key, what it got, what is needed.
    """
    values = read_yaml(name_or_path)
    for override in overrides:
        _override(values, override)
    return parse(values, name_or_path)


def read_yaml(name_or_path: str) -> dict[str, Any]:
    """The keys and values of a workflow file; raises `WorkflowError` in one line."""
    try:
        values = yaml.safe_load(find(name_or_path)) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise WorkflowError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise WorkflowError(f"{name_or_path} cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(values, dict):
        raise WorkflowError(f"{name_or_path} must hold keys and values, got {type(values).__name__}")
    return values


def parse(values: dict[str, Any], source: str = "workflow") -> Workflow:
    """Check a workflow given as plain values; raises `WorkflowError` in one line."""
    try:
        return Workflow.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        location = tuple(part for part in first["loc"] if part != DECLARED)
        where = ".".join(str(part) for part in location) or "workflow"
        if first["type"] == "extra_forbidden":
            raise WorkflowError(f"{source}: unknown key {where}; known are {', '.join(_known(location))}") from error
        # What a missing key is missing from would be too long; a list that is too short is shown.
        missing_key = first["type"] == "missing" and not isinstance(first["loc"][-1], int)
        got = "" if missing_key or first["type"] == "value_error" else f", got {first['input']!r}"
        text = first["msg"].removeprefix("Value error, ")
        raise WorkflowError(f"{source}: {where}: {text}{got}") from error


def _known(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Workflow
    for part in location[:-1]:
        # Names in mappings and numbers in lists are no keys of ours.
        if str(part) not in model.model_fields:
            continue
        annotation = model.model_fields[str(part)].annotation
        # A section that may be missing is a union with None.
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return sorted(model.model_fields)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise WorkflowError(f"--set {override!r} must be key=value, such as thresholds=[0.3,0.5]")
    *path, last = key.split(".")
    for part in path:
        child = values.setdefault(part, {})
        if not isinstance(child, dict):
            raise WorkflowError(f"--set {override!r}: {part} holds {child!r}, which has no keys of its own")
        values = child
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WorkflowError(f"--set {override!r}: the value is not YAML") from error
