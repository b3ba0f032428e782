"""Models of others, opened as they are declared. What can run code when it is loaded needs `trust: true`."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neuroshed.errors import InputError
from neuroshed.geometry import Vec, sub
from neuroshed.kernels.across import NEAREST
from neuroshed.kernels.conventions import Convention, providers
from neuroshed.model.foreign import Channel, ForeignNetwork, Interface, check_interface, scaled
from neuroshed.model.lattice import Lattice
from neuroshed.model.words import Precision
from neuroshed.storage.bioimage import open_package
from neuroshed.storage.declared import ForeignModel
from neuroshed.storage.loaders import Source, open_source, read_model_file

NOT_HASHED = {"path", "weights", "trust", "memory_gb", "voxel_size"}
UNKNOWN_BYTES = 1000
"""Memory for each voxel of a patch of a network of which nothing is known: ten feature maps, several times over."""


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
