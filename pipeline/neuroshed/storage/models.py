"""Trained networks on disk: `NAME.safetensors` has the weights, `NAME.json` everything else needed to use them.

Neither file can run code when loaded, and the JSON holds the SHA-256 of the weights, so a pair never mixes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.model.descriptors import COUNT as DESCRIPTORS
from neuroshed.model.inference import patch_bytes
from neuroshed.model.lattice import Lattice
from neuroshed.model.networks import UNetNetwork
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Architecture, UNet
from neuroshed.model.words import Precision
from neuroshed.storage.files import make_folder, replace_file

FORMAT_VERSION = 1
Share = Annotated[float, Field(ge=0, le=1)]


class ModelCard(BaseModel):
    """What `NAME.json` says about a network."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    description: str = ""
    """What the network is for and what it learnt from."""
    architecture: Architecture
    offsets: tuple[Vec, ...]
    """Edge offset of each output channel, voxels z y x; the first three are the nearest neighbours."""
    descriptors: bool = False
    """Whether ten channels of local shape descriptors follow; they only taught."""
    lattice: Lattice
    """Patches in which the network is applied."""
    normalisation: tuple[float, float]
    """Intensities (low, high) that become -1 and 1."""
    spread: tuple[Share, Share] | None = None
    """2 % and 98 % quantiles of the images it learnt from, where `normalisation` is 0..1: to those of another image
    they are matched."""
    voxel_size: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """Voxel size in nm, z y x, of the images it was trained on."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How it was trained, for people: data, steps, scores."""
    weights_sha256: str = ""
    """SHA-256 of the weights file, hexadecimal."""

    @model_validator(mode="after")
    def _check(self) -> ModelCard:
        if self.offsets[:3] != NEAREST:
            raise ValueError(f"the first three offsets must be {NEAREST}, got {self.offsets[:3]}")
        channels = len(self.offsets) + (DESCRIPTORS if self.descriptors else 0)
        if channels != self.architecture.out_channels:
            raise ValueError(
                f"{channels} offsets and descriptors, but {self.architecture.out_channels} output channels"
            )
        if any(side % m for side, m in zip(self.lattice.patch, self.architecture.multiple, strict=True)):
            raise ValueError(f"patch {self.lattice.patch} is not a multiple of {self.architecture.multiple}")
        if not self.normalisation[0] < self.normalisation[1]:
            raise ValueError(f"normalisation {self.normalisation} must be (low, high) with low < high")
        if self.spread and not self.spread[0] < self.spread[1]:
            raise ValueError(f"spread {self.spread} must be (low, high) with low < high")
        return self


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode, ready for `UNetNetwork`, and its card."""

    net: UNet
    card: ModelCard

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return self.card.weights_sha256

    @property
    def lattice(self) -> Lattice:
        """Patches in which the network is applied."""
        return self.card.lattice

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """Voxel size in nm of the images it was trained on."""
        return self.card.voxel_size

    @property
    def normalisation(self) -> tuple[float, float]:
        """Intensities that become -1 and 1."""
        return self.card.normalisation

    @property
    def spread(self) -> tuple[float, float] | None:
        """Quantiles of the images it learnt from."""
        return self.card.spread

    @property
    def scales_intensities(self) -> bool:
        """Always: it has no scaling of its own."""
        return True

    def network(self, intensity: tuple[float, float], device: str, precision: Precision) -> UNetNetwork:
        """The network on a device; `intensity` are the image values that become -1 and 1."""
        return UNetNetwork(self.net, intensity, device, precision)

    def patch_bytes(self, lattice: Lattice) -> int:
        """Roughly the memory in bytes that a patch takes while it goes through the network."""
        return patch_bytes(self.card.architecture, lattice)

    def describe(self) -> str:
        """What is known of it, as JSON."""
        return self.card.model_dump_json(indent=2)

    @property
    def network_sha256(self) -> str:
        """SHA-256 of weights and architecture, which decide what the network gives: its identity in a fingerprint."""
        architecture = json.dumps(self.card.architecture.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(f"{self.weights_sha256} {architecture}".encode()).hexdigest()


def save_model(path: str | os.PathLike[str], card: ModelCard, weights: Mapping[str, Tensor]) -> Path:
    """Write `path.safetensors` and `path.json` (a suffix of `path` is replaced); returns the path of the JSON.

    Existing files are replaced, each at once. A crash between the two leaves a pair that `load_model` refuses.
    """
    stem = _stem(Path(path))
    make_folder(stem.parent)
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()})
    text = json.dumps(card.model_dump(mode="json"), indent=2) + "\n"
    replace_file(_with_suffix(stem, ".safetensors"), data)
    return replace_file(_with_suffix(stem, ".json"), text.encode())


def shipped_models() -> list[str]:
    """Names of the models that come with neuroshed, for `load_model`."""
    names = (file.name for file in _assets().iterdir())
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


def load_model(path_or_name: str | os.PathLike[str]) -> Model:
    """Load a shipped model by name (`fibsem`), or any by path: either file, both without suffix, or a folder of one.

    Raises `InputError` if a file is missing, unreadable, or does not belong to the other.
    """
    card_file, weights_file = _find(path_or_name)
    try:
        card = ModelCard.model_validate_json(card_file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(
            f"{card_file} does not describe a model of format {FORMAT_VERSION}: {where}: {first['msg']}; "
            "take the file that was exported with the weights"
        ) from error
    data = weights_file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != card.weights_sha256:
        raise InputError(
            f"{weights_file} has SHA-256 {found[:12]}..., its JSON says {card.weights_sha256[:12]}...; "
            "the pair is damaged or mixed: copy both files again"
        )
    net = UNet(card.architecture)
    fill_weights(net, _tensors(weights_file, data), str(weights_file))
    return Model(net.eval(), card)


def fill_weights(net: UNet, weights: Mapping[str, Tensor], source: str) -> None:
    """Put `weights` into `net`; raises `InputError` naming the first tensor that is missing, left over, misshapen or
    not finite.
    """
    own = net.state_dict()
    for name in sorted({*own, *weights}):
        got = tuple(weights[name].shape) if name in weights else "nothing"
        needed = tuple(own[name].shape) if name in own else "nothing"
        if got != needed:
            raise InputError(
                f"{source} does not fit the architecture: {name} is {got}, the network needs {needed}; "
                "use the architecture that the weights were trained with"
            )
        if not weights[name].isfinite().all():
            raise InputError(f"{source} holds NaN or infinity in {name}; export it from an earlier checkpoint")
    net.load_state_dict(dict(weights))


def _tensors(file: Traversable, data: bytes) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}); export the model again") from error
    return tensors


def _find(path_or_name: str | os.PathLike[str]) -> tuple[Traversable, Traversable]:
    path = Path(path_or_name)
    if path.is_dir():
        pairs = [file for file in sorted(path.glob("*.json")) if file.with_suffix(".safetensors").exists()]
        if len(pairs) != 1:
            names = ", ".join(file.stem for file in pairs) or "none"
            raise InputError(f"folder {path} should hold one model, found {names}; name the model's JSON file")
        return pairs[0], pairs[0].with_suffix(".safetensors")
    name = os.fspath(path_or_name)
    if not _with_suffix(_stem(path), ".json").exists() and name in shipped_models():
        return _assets() / f"{name}.json", _assets() / f"{name}.safetensors"
    card, weights = (_with_suffix(_stem(path), suffix) for suffix in (".json", ".safetensors"))
    for file in (card, weights):
        if not file.is_file():
            known = ", ".join(shipped_models()) or "none"
            raise InputError(f"no model at {path}: {file} is missing; give a path or a shipped name ({known})")
    return card, weights


def _assets() -> Traversable:
    return resources.files("neuroshed") / "assets"


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".json", ".safetensors") else path


def _with_suffix(stem: Path, suffix: str) -> Path:
    # `Path.with_suffix` would cut a name such as `fibsem-1.2` at its dot.
    return stem.with_name(stem.name + suffix)
