"""Models of others: what is declared of them. What can run code when it is loaded needs `trust: true`."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.errors import InputError
from neuroshed.geometry import Vec, sub
from neuroshed.kernels.across import NEAREST
from neuroshed.kernels.conventions import Convention, opposite, providers
from neuroshed.model.foreign import Answers, Channel, ForeignNetwork, Interface, check_interface, scaled
from neuroshed.model.lattice import Lattice
from neuroshed.model.networks import Precision
from neuroshed.storage.bioimage import open_package
from neuroshed.storage.loaders import Kind, Source, open_source, read_model_file

SUFFIXES: dict[str, Kind | Literal["bioimage.io"]] = {".pt2": "torch.export", ".onnx": "onnx", ".zip": "bioimage.io"}
NOT_HASHED = {"path", "weights", "trust", "memory_gb", "voxel_size"}
UNKNOWN_BYTES = 1000
"""Memory for each voxel of a patch of a network of which nothing is known: ten feature maps, several times over."""
Side = Annotated[int, Field(ge=1)]
Shape = tuple[Side, Side, Side]
Size = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class ForeignModel(BaseModel):
    """A network that somebody else trained; conventions are declared, not guessed. Lengths are in voxels, z y x."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    path: str
    """File of torch.export (.pt2), TorchScript, ONNX (.onnx), a bioimage.io package (folder with rdf.yaml, or .zip), or
    `package.module:callable`, which is called with `arguments` and gives a torch module or a function on tensors."""
    kind: Kind | Literal["bioimage.io"] | None = None
    """Which of these it is. Default: by the ending of `path`; TorchScript has none of its own."""
    trust: bool = False
    """Whether whoever made the model may run code here: needed for torch.export, TorchScript and callables, and for
    packages that hold one of them."""
    weights: str | None = None
    """Of a callable's module: its state dict, a .safetensors file or a file that torch.load takes without code."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Of a callable."""

    input_shape: Shape | None = None
    """Voxels of a patch. Needed, but of a package the default is the smallest that it takes."""
    output_shape: Shape | None = None
    """Voxels of the answer, in the middle of the patch; fewer for valid convolutions. Default: `input_shape`."""
    context: tuple[int, int, int] = (0, 0, 0)
    """Voxels of the answer on each side that are not kept, since they saw too little around them."""
    input_axes: str | None = None
    """Order of the axes that go in. Default: bczyx, or what the package says."""
    output_axes: str | None = None
    """Order of the axes that come out. Default: bczyx, or what the package says."""
    channels: Literal["zyx", "xyz"] | None = None
    """The first three channels are the edges to the nearest neighbours along these axes, in this order."""
    sign: Literal["negative", "positive"] | None = None
    """With `channels`: whether their offsets are -1 or +1."""
    offsets: tuple[Vec, ...] | None = None
    """Instead of both: the offset of each of the first channels."""
    stored_at: Literal["source", "destination"] = "source"
    """The value at voxel p is the edge between p and p + offset (source) or between p - offset and p (destination)."""
    inverted: bool = False
    """High values mean boundaries."""
    output: Answers
    """Whether a sigmoid is still to be applied (logits) or not (probabilities)."""
    intensity: tuple[float, float] = (0.0, 255.0)
    """Image values that become the two of `scaled_to`; a package has pre-processing of its own instead."""
    scaled_to: tuple[float, float] = (-1.0, 1.0)
    """Numbers that the network takes for them."""
    clip: bool = True
    """Whether image values beyond `intensity` are clipped."""
    voxel_size: Size | None = None
    """Voxel size in nm of the images it was trained on."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory that a patch takes while it goes through the network, as `neuroshed model check` measures it. Default:
    1 KB a voxel."""

    @model_validator(mode="after")
    def _check(self) -> ForeignModel:
        if (self.offsets is None) == (self.channels is None) or (self.channels is None) != (self.sign is None):
            raise ValueError("declare what the channels are: either channels and sign, or offsets")
        if self.intensity[0] == self.intensity[1]:
            raise ValueError(f"intensity {list(self.intensity)} must be two values that differ")
        if min(self.context) < 0:
            raise ValueError(f"context {list(self.context)} must be 0 or more")
        return self

    @property
    def actual_kind(self) -> Kind | Literal["bioimage.io"]:
        """`kind`, or what the path tells. Raises `InputError` if it tells nothing."""
        if self.kind:
            return self.kind
        path = Path(self.path)
        if ":" in self.path and "/" not in self.path:
            return "callable"
        if path.name == "rdf.yaml" or path.is_dir():
            return "bioimage.io"
        if path.suffix in SUFFIXES:
            return SUFFIXES[path.suffix]
        raise InputError(
            f"model {self.path}: its ending does not tell what it is; declare kind: torchscript, torch.export, onnx, "
            "bioimage.io or callable"
        )

    @property
    def declared_offsets(self) -> tuple[Vec, ...]:
        """The offset of each channel."""
        if self.offsets is not None:
            return self.offsets
        nearest = [NEAREST["zyx".index(axis)] for axis in self.channels or "zyx"]
        return tuple(map(opposite, nearest) if self.sign == "positive" else nearest)


@dataclass(frozen=True)
class Foreign:
    """A foreign model that was looked at, but not loaded: nothing of it has run."""

    declared: ForeignModel
    source: Source
    interface: Interface
    lattice: Lattice

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Voxel size in nm of the images it was trained on, if declared."""
        return self.declared.voxel_size

    @property
    def normalisation(self) -> tuple[float, float]:
        """Image values that become the two of `scaled_to`."""
        return self.declared.intensity

    @property
    def spread(self) -> tuple[float, float] | None:
        """Nothing is known of the images it learnt from."""
        return None

    @property
    def scales_intensities(self) -> bool:
        """Whether image values are scaled by what is declared or asked for, and not by the model itself."""
        return self.source.scaling is None

    def patch_bytes(self, lattice: Lattice) -> int:
        """Roughly the memory in bytes that a patch takes while it goes through the network."""
        gigabytes = self.declared.memory_gb
        return round(gigabytes * 1e9) if gigabytes else UNKNOWN_BYTES * math.prod(lattice.patch)

    def describe(self) -> str:
        """What is known of it, as JSON."""
        return self.declared.model_dump_json(indent=2)

    @cached_property
    def network_sha256(self) -> str:
        """Of its files, and of all that is declared: its identity in a fingerprint."""
        text = json.dumps(self.declared.model_dump(mode="json", exclude=NOT_HASHED), sort_keys=True)
        digest = hashlib.sha256(text.encode())
        for file in self.source.files:
            digest.update(hashlib.sha256(read_model_file(file)).digest())
        return digest.hexdigest()

    def network(self, intensity: tuple[float, float], device: str, precision: Precision) -> ForeignNetwork:
        """The network on a device; `intensity` stands for the declared one. Raises `InputError` if it cannot load."""
        prepare = self.source.scaling or scaled(intensity, self.declared.scaled_to, self.declared.clip)
        return ForeignNetwork(self.source.load(device), prepare, self.interface, device, precision)


def open_foreign(declared: ForeignModel) -> Foreign:
    """Look at a model without loading it; raises `InputError` if it is missing, not trusted, or declared wrongly."""
    kind = declared.actual_kind
    source = open_package(Path(declared.path)) if kind == "bioimage.io" else open_source(declared, kind)
    if source.runs_code and not declared.trust:
        raise InputError(
            f"model {declared.path} is {source.name}, which can run any code when it is loaded; set trust: true if you "
            "trust whoever made it, or take its weights as safetensors or ONNX"
        )
    for file in source.files:
        if not file.is_file():
            raise InputError(f"model {declared.path}: there is no file {file}; check the path")
    input_shape = declared.input_shape or source.smallest
    if input_shape is None:
        raise InputError(f"model {declared.path}: declare input_shape, the voxels of a patch, z y x")
    offsets = declared.declared_offsets
    convention = Convention(offsets, declared.stored_at, declared.inverted, (0.0, 1.0))
    try:
        found = providers(convention, NEAREST)
    except ValueError as error:
        raise InputError(f"model {declared.path}: {error}") from error
    interface = Interface(
        input_shape=input_shape,
        output_shape=declared.output_shape or sub(input_shape, source.lost),
        input_axes=declared.input_axes or source.input_axes,
        output_axes=declared.output_axes or source.output_axes,
        answers=declared.output,
        inverted=declared.inverted,
        channels=tuple(Channel(provider.channel, provider.shift) for provider in found),
        declared_channels=len(offsets),
    )
    try:
        check_interface(interface)
        lattice = _lattice(interface, declared.context, source.halo)
    except ValueError as error:
        raise InputError(f"model {declared.path}: {error}") from error
    return Foreign(declared, source, interface, lattice)


def _lattice(interface: Interface, context: Vec, halo: Vec) -> Lattice:
    z, y, x = (
        max(least, border + max(more, own))
        for border, least, more, own in zip(interface.border, interface.least_context, context, halo, strict=True)
    )
    return Lattice(interface.input_shape, (z, y, x))
