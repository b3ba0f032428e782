"""What turns patches of an image into affinities: our U-Net, and any network with its channels flipped and averaged."""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor, nn

from neuroshed.geometry import Box, Vec
from neuroshed.model.fused import CHANNELS_LAST, Fused
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import UNet
from neuroshed.model.words import Precision


class Network(Protocol):
    """Anything that predicts patches."""

    @property
    def device(self) -> str:
        """Where it computes: cpu, cuda or cuda:N."""

    def affinities(self, batch: Tensor, kept: Box) -> Tensor:
        """Affinities of the part `kept` of each patch, float32 `(n, 3, *kept.shape)` in 0..1, in the convention of
        `neuroshed.model.targets.NEAREST`; NaN where the network gave no finite number.

        `batch` holds raw image values `(n, 1, z, y, x)`, on the network's device.
        """


class UNetNetwork:
    """Our U-Net, ready to predict; `net` is copied. `normalisation` is the (low, high) of `normalise`."""

    def __init__(
        self, net: nn.Module, normalisation: tuple[float, float], device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        folds = isinstance(net, UNet) and net.architecture.norm == "weights"
        self._net = (Fused(net) if isinstance(net, UNet) and folds else Cropped(net)).to(device).eval()
        self._normalisation, self._device, self._precision = normalisation, device, precision

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._device

    def affinities(self, batch: Tensor, kept: Box) -> Tensor:
        """See `Network`."""
        image = normalise(batch, *self._normalisation).to(memory_format=CHANNELS_LAST)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            logits: Tensor = self._net(image, kept)
        logits = logits.float()
        affinities: Tensor = torch.where(logits.isfinite(), logits.sigmoid(), torch.nan)
        return affinities


class Cropped(nn.Module):
    """The nearest-neighbour channels of a part of what a net says."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, kept: Box) -> Tensor:
        """Float `(n, 3, *kept.shape)` of an image `(n, 1, z, y, x)`."""
        answer: Tensor = self.net(image)[:, : len(NEAREST), *kept.slices()]
        return answer


class Flipped:
    """The mean of what a network says of a patch and of its flips along `axes` (0, 1, 2 for z, y, x): 2^n passes.

    The edge of a channel that runs along a flipped axis joins a voxel to the one that was above it, so that channel
    is read one voxel further.
    """

    def __init__(self, network: Network, axes: tuple[int, ...]) -> None:
        self._network, self._axes = network, axes

    @property
    def device(self) -> str:
        """Where it computes."""
        return self._network.device

    def affinities(self, batch: Tensor, kept: Box) -> Tensor:
        """See `Network`; `kept` leaves a voxel of the patch out at the low end of each flipped axis."""
        z, y, x = batch.shape[2:]
        total: Tensor | None = None
        choices = itertools.chain.from_iterable(
            itertools.combinations(self._axes, count) for count in range(len(self._axes) + 1)
        )
        for axes in choices:
            said = self._of_flip(batch, kept, (z, y, x), axes)
            total = said if total is None else total + said
        assert total is not None
        mean: Tensor = total / float(2 ** len(self._axes))
        return mean

    def _of_flip(self, batch: Tensor, kept: Box, window: Vec, axes: tuple[int, ...]) -> Tensor:
        """Of one flip: the part that is kept, in flipped places, and a voxel more beyond it on each flipped axis."""
        start = tuple(window[axis] - kept.stop[axis] if axis in axes else kept.start[axis] for axis in range(3))
        stop = tuple(window[axis] - kept.start[axis] + 1 if axis in axes else kept.stop[axis] for axis in range(3))
        part = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        dims = [axis + 2 for axis in axes]
        # Along a flipped axis of n voxels, place i of the answer is voxel n - 1 - i, counted from the one below `kept`.
        said = self._network.affinities(batch.flip(dims), part).flip(dims)
        channels = []
        for channel in range(len(NEAREST)):
            view = said[:, channel]
            for axis in axes:
                first = 0 if axis == channel else 1
                view = view.narrow(axis + 1, first, kept.shape[axis])
            channels.append(view)
        return torch.stack(channels, 1)


def normalise(image: Tensor, low: float, high: float) -> Tensor:
    """Intensities low..high as float32 -1..1, those outside clipped; `low` above `high` inverts.

    >>> normalise(torch.tensor([0, 50, 255], dtype=torch.uint8), 0, 100).tolist()
    [-1.0, 0.0, 1.0]
    >>> normalise(torch.tensor([0, 50, 255], dtype=torch.uint8), 100, 0).tolist()
    [1.0, 0.0, -1.0]
    """
    return ((image.to(torch.float32) - low) / (high - low)).clamp(0, 1) * 2 - 1
