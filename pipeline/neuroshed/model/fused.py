"""The U-Net in the form in which it predicts: the same numbers, up to rounding, in less time.

For a net with standardised weights all of them, gains included, are folded into plain convolutions once; features of a
voxel lie side by side, 1 x 1 x 1 convolutions are matrix products, sums and rectifications happen in place, and the way
up computes only what the kept part of the patch depends on. (GroupNorm needs the whole patch: such a net is applied as
it is.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuroshed.geometry import Box, Grid, Vec, add, mul, sub
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Residual, StandardisedConv3d, UNet, repeat

CHANNELS_LAST = torch.channels_last_3d


class Fused(nn.Module):
    """Logits of the nearest-neighbour channels of a `UNet` with `norm: weights`, which is copied, not changed."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.kernels, self.pools = net.architecture.kernels, net.architecture.pools
        self.stem = _Convolution.of(net.stem)
        self.down = nn.ModuleList(_Module.of(module) for module in net.down)
        self.up = nn.ModuleList(_Module.of(module) for module in net.up)
        self.widen = nn.ModuleList(_Pointwise.of(module) for module in net.widen)
        self.narrow = nn.ModuleList(_Pointwise.of(module) for module in net.narrow)
        head = _Pointwise.of(net.head)
        self.head = _Pointwise(head.weight[: len(NEAREST)], head.bias[: len(NEAREST)])

    def forward(self, image: Tensor, kept: Box) -> Tensor:
        """Float `(n, 3, *kept.shape)` of the part `kept` of an image `(n, 1, z, y, x)` in -1..1."""
        window = image.shape[2], image.shape[3], image.shape[4]
        x = self.down[0](self.stem(image.to(memory_format=CHANNELS_LAST)))
        skips = []
        for pool, widen, module in zip(self.pools, self.widen, self.down[1:], strict=True):
            skips.append(x)
            x = module(widen(F.max_pool3d(x, pool, pool)))
        spans = _spans(self.kernels, self.pools, window, kept)
        origin = (0, 0, 0)
        for level in reversed(range(len(self.up))):
            span, pool = spans[level], self.pools[level]
            x = repeat(self.narrow[level](x), pool)
            x = x[:, :, *span.read.slices(mul(origin, pool))] + skips.pop()[:, :, *span.read.slices()]
            x = self.up[level](x, span.valid)
            origin = span.made.start
        logits: Tensor = self.head(x.relu_())
        return logits[:, :, *kept.slices(origin)]


@dataclass(frozen=True)
class _Span:
    """What a level of the way up reads and makes, in its own voxels; `valid` axes lose a border, others keep size."""

    read: Box
    made: Box
    valid: tuple[bool, bool, bool]


@functools.lru_cache(maxsize=64)
def _spans(kernels: tuple[Vec, ...], pools: tuple[Vec, ...], window: Vec, kept: Box) -> list[_Span]:
    """Spans of the levels, finest first: each makes what the one before it needs."""
    spans, needed, shape = [], kept, window
    for kernel, pool in zip(kernels, pools, strict=False):
        border = sub(kernel, (1, 1, 1))  # two convolutions, half a kernel each
        grown = needed.grow(border)
        inside = [a >= 0 and b <= side for a, b, side in zip(grown.start, grown.stop, shape, strict=True)]
        read, made = (
            Box(_where(inside, part.start, (0, 0, 0)), _where(inside, part.stop, shape)) for part in (grown, needed)
        )
        spans.append(_Span(read, made, (inside[0], inside[1], inside[2])))
        below = Grid(read, pool)
        needed = Box(below.first, add(below.first, below.counts))
        shape = Grid(Box.of_shape(shape), pool).counts
    return spans


class _Convolution(nn.Module):
    """A plain 3-D convolution with bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(memory_format=CHANNELS_LAST), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.radius = [side // 2 for side in weight.shape[2:]]

    @staticmethod
    def of(module: nn.Module, gain: float | Tensor = 1.0) -> _Convolution:
        weight, bias = _folded(module)
        return _Convolution(weight * gain, bias * gain)

    def forward(self, x: Tensor, valid: tuple[bool, bool, bool] = (False, False, False)) -> Tensor:
        padding = [0 if cut else radius for cut, radius in zip(valid, self.radius, strict=True)]
        return F.conv3d(x, self.weight, self.bias, padding=padding)


class _Pointwise(nn.Module):
    """A 1 x 1 x 1 convolution as a matrix product."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().flatten(1).clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    @staticmethod
    def of(module: nn.Module) -> _Pointwise:
        return _Pointwise(*_folded(module))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 4, 1), self.weight, self.bias).permute(0, 4, 1, 2, 3)


class _Module(nn.Module):
    """A residual module with its gain folded into the second convolution."""

    def __init__(self, conv1: _Convolution, conv2: _Convolution) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv1, conv2

    @staticmethod
    def of(module: nn.Module) -> _Module:
        assert isinstance(module, Residual)
        assert module.gain is not None
        return _Module(_Convolution.of(module.conv1), _Convolution.of(module.conv2, module.gain))

    def forward(self, x: Tensor, valid: tuple[bool, bool, bool] = (False, False, False)) -> Tensor:
        y: Tensor = self.conv1(F.relu(x), valid).relu_()
        y = self.conv2(y, valid)
        borders = [2 * radius if cut else 0 for cut, radius in zip(valid, self.conv1.radius, strict=True)]
        inner = tuple(slice(border, side - border) for border, side in zip(borders, x.shape[2:], strict=True))
        return y.add_(x[:, :, *inner])


def _folded(module: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(module, StandardisedConv3d | nn.Conv3d)
    weight = module.kernel() if isinstance(module, StandardisedConv3d) else module.weight
    assert module.bias is not None
    return weight, module.bias


def _where(which: list[bool], yes: Vec, no: Vec) -> Vec:
    z, y, x = (a if chosen else b for chosen, a, b in zip(which, yes, no, strict=True))
    return z, y, x
