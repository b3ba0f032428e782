"""Networks of others: arrays in their axes and units, affinities in our convention out. What they mean is declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Vec, add, sub
from neuroshed.model.words import Answers, Precision

Call = Callable[[Tensor], Tensor]
# Probabilities overshoot 0..1 by rounding, in half precision by this much.
OVERSHOOT = 4e-3


@dataclass(frozen=True)
class Channel:
    """Where one of our channels is: its value at voxel p is that of channel `number` at p + `shift`."""

    number: int
    shift: Vec


@dataclass(frozen=True)
class Interface:
    """What goes into a network and what comes out of it."""

    input_shape: Vec
    """Voxels of a patch, z y x."""
    output_shape: Vec
    """Voxels of the answer, z y x, in the middle of the patch: fewer for valid convolutions."""
    input_axes: str
    """Order of the input's axes, of b (batch), c (channel), z, y, x; c may be missing."""
    output_axes: str
    """Order of the output's axes, of b, c, z, y, x."""
    answers: Answers
    inverted: bool
    """High values mean boundaries."""
    channels: tuple[Channel, ...]
    """Where the edges to the nearest neighbours along z, y and x are."""
    declared_channels: int
    """How many channels the answer has at least."""

    @property
    def border(self) -> Vec:
        """Voxels on each side of a patch that the answer lacks."""
        z, y, x = ((i - o) // 2 for i, o in zip(self.input_shape, self.output_shape, strict=True))
        return z, y, x

    @property
    def least_context(self) -> Vec:
        """The least context of a lattice: the border, and a voxel where a channel is stored at the other end."""
        z, y, x = (b + any(channel.shift[axis] for channel in self.channels) for axis, b in enumerate(self.border))
        return z, y, x


class ForeignNetwork:
    """A `neuroshed.model.networks.Network` of somebody else.

    `call` takes what `prepare` makes of raw image values `(n, 1, z, y, x)`, its axes in the order of the interface, and
    gives a tensor in the order of the interface.
    """

    def __init__(
        self, call: Call, prepare: Call, interface: Interface, device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        self._call, self._prepare, self._interface = call, prepare, interface
        self._device, self._precision = device, precision

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._device

    def affinities(self, batch: Tensor, kept: Box) -> Tensor:
        """See `Network`; raises `BlockError` if the answer is not what the interface declares."""
        answer = self.answer(batch)
        channels = []
        for channel in self._interface.channels:
            place = Box(add(kept.start, channel.shift), add(kept.stop, channel.shift))
            channels.append(answer[:, channel.number, *place.slices(self._interface.border)])
        values = torch.stack(channels, 1)
        values = torch.where(values.isfinite(), self._probabilities(values), torch.nan)
        return 1 - values if self._interface.inverted else values

    def answer(self, batch: Tensor) -> Tensor:
        """What the network gives, float32 `(n, channels, z, y, x)`, of raw image values `(n, 1, z, y, x)`."""
        interface = self._interface
        given = _from_ours(self._prepare(batch.float()), interface.input_axes)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            answer = self._call(given)
        if not isinstance(answer, Tensor):
            raise BlockError(f"the model gives {type(answer).__name__}; needed is one tensor: wrap it")
        if answer.ndim != len(interface.output_axes):
            raise BlockError(
                f"the model gives {answer.ndim} axes of shape {tuple(answer.shape)}, declared are the axes "
                f"{interface.output_axes}; declare output_axes as they are"
            )
        ours = _to_ours(answer, interface.output_axes).float()
        if tuple(ours.shape[2:]) != interface.output_shape:
            raise BlockError(
                f"the model gives {tuple(ours.shape[2:])} voxels for a patch of {interface.input_shape}, declared is "
                f"an output_shape of {interface.output_shape}; declare the shape that it gives"
            )
        if ours.shape[1] < interface.declared_channels:
            raise BlockError(
                f"the model gives {ours.shape[1]} channels, declared are {interface.declared_channels}; declare one "
                "offset for each channel"
            )
        return ours

    def _probabilities(self, values: Tensor) -> Tensor:
        if self._interface.answers == "logits":
            return values.sigmoid()
        finite = values[values.isfinite()]
        if finite.numel() and (finite.min() < -OVERSHOOT or finite.max() > 1 + OVERSHOOT):
            raise BlockError(
                f"the model gives values in {float(finite.min()):.3g} to {float(finite.max()):.3g}, declared are "
                "probabilities; declare `output: logits` if a sigmoid is still to be applied"
            )
        return values.clamp(0, 1)


def scaled(values: tuple[float, float], to: tuple[float, float], clip: bool) -> Call:
    """A `prepare`: image values (low, high) become the two numbers `to`, linearly, those beyond them clipped or not.

    >>> scaled((0, 255), (-1, 1), True)(torch.tensor([0.0, 255.0, 300.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    low, high = values

    def prepare(image: Tensor) -> Tensor:
        share = (image - low) / (high - low)
        return (share.clamp(0, 1) if clip else share) * (to[1] - to[0]) + to[0]

    return prepare


def _from_ours(image: Tensor, axes: str) -> Tensor:
    """A `(b, c, z, y, x)` tensor in another order of axes, without c if that is missing."""
    if "c" not in axes:
        return image[:, 0].permute(*("bzyx".index(axis) for axis in axes))
    return image.permute(*("bczyx".index(axis) for axis in axes))


def _to_ours(answer: Tensor, axes: str) -> Tensor:
    return answer.permute(*(axes.index(axis) for axis in "bczyx"))


def check_interface(interface: Interface) -> None:
    """Raise ValueError for an interface that contradicts itself."""
    given = ("input_axes", interface.input_axes, "bzyx"), ("output_axes", interface.output_axes, "")
    for name, axes, also in given:
        if sorted(axes) not in (sorted("bczyx"), sorted(also)):
            raise ValueError(f"{name} {axes!r} must be an order of b, c, z, y, x")
    lost = sub(interface.input_shape, interface.output_shape)
    if min(lost) < 0 or any(side % 2 for side in lost) or min(interface.output_shape) < 1:
        raise ValueError(
            f"output_shape {interface.output_shape} must lie in the middle of input_shape {interface.input_shape}, so "
            "differ by an even number of voxels"
        )
