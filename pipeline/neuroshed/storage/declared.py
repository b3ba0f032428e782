"""What is declared of a model of others. To say it, or to read what was said, needs nothing that runs networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.kernels.across import NEAREST
from neuroshed.kernels.conventions import opposite
from neuroshed.model.words import Answers, Kind

SUFFIXES: dict[str, Kind | Literal["bioimage.io"]] = {".pt2": "torch.export", ".onnx": "onnx", ".zip": "bioimage.io"}
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
