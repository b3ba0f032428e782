"""The network: a symmetric 3-D residual U-Net that turns an image into one logit for each affinity channel.

It follows Lee, Zung, Li, Jain and Seung, "Superhuman accuracy on the SNEMI3D connectomics challenge" (2017,
arXiv:1706.00120): residual modules, skip connections that add instead of concatenate, convolutions that keep the
size, and kernels and pooling that may leave out the coarse axis of anisotropic images. Unlike the paper nothing in it
depends on what else is in the batch. With `norm: weights` nothing depends on the rest of the patch either: weights are
standardised instead of activations (Qiao et al. 2019, arXiv:1903.10520; Brock et al. 2021, arXiv:2101.08692), so a
voxel's answer is a function of the voxels around it alone, and at inference there is nothing left to normalise.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from neuroshed.geometry import Vec, mul

Norm = Literal["group", "weights"]
# Standard deviation of relu(x) for x of deviation 1 is sqrt((1 - 1 / pi) / 2); weights make up for it.
_RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


class Architecture(BaseModel):
    """Everything that decides the shape of the network's weights; travels with them as JSON.

    >>> architecture = Architecture(features=(8, 16), kernels=((1, 3, 3), (3, 3, 3)), pools=((1, 2, 2),))
    >>> Architecture.model_validate_json(architecture.model_dump_json()) == architecture
    True
    >>> architecture.multiple
    (1, 2, 2)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    features: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Number of feature maps at each level, finest first."""
    kernels: tuple[Vec, ...]
    """Kernel of each level, z y x, odd: (1, 3, 3) keeps sections apart, (3, 3, 3) is isotropic."""
    pools: tuple[Vec, ...]
    """Pooling between each level and the next coarser one, z y x: one fewer than there are levels."""
    out_channels: Annotated[int, Field(ge=1)] = 3
    """Number of affinity channels."""
    norm: Norm = "group"
    """What keeps activations in range: group (GroupNorm over the patch) or weights (standardised weights, faster)."""
    groups: Annotated[int, Field(ge=1)] = 8
    """Groups of GroupNorm; with `norm: group` every number of features must be a multiple."""

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        if len(self.kernels) != len(self.features) or len(self.pools) != len(self.features) - 1:
            raise ValueError(
                f"{len(self.features)} levels of features need as many kernels and one pooling fewer, "
                f"got {len(self.kernels)} kernels and {len(self.pools)} poolings"
            )
        if any(side < 1 or side % 2 == 0 for kernel in self.kernels for side in kernel):
            raise ValueError(f"kernel sides must be odd, got {self.kernels}")
        if any(side < 1 for pool in self.pools for side in pool):
            raise ValueError(f"pooling must be at least 1, got {self.pools}")
        if self.norm == "group" and any(count % self.groups for count in self.features):
            raise ValueError(f"features {self.features} must be multiples of groups = {self.groups}")
        return self

    @property
    def multiple(self) -> Vec:
        """Patch sides must be multiples of this (the product of all poolings), z y x."""
        total = (1, 1, 1)
        for pool in self.pools:
            total = mul(total, pool)
        return total


class UNet(nn.Module):
    """The network that an `Architecture` describes, with random weights."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        features, kernels, norm = architecture.features, architecture.kernels, architecture.norm
        residual = functools.partial(Residual, norm=norm, groups=architecture.groups)
        self.stem = _convolution(1, features[0], kernels[0], norm)
        self.down = nn.ModuleList(residual(n, k) for n, k in zip(features, kernels, strict=True))
        self.widen = nn.ModuleList(_pointwise(a, b, norm) for a, b in itertools.pairwise(features))
        self.narrow = nn.ModuleList(_pointwise(b, a, norm) for a, b in itertools.pairwise(features))
        self.up = nn.ModuleList(residual(n, k) for n, k in zip(features[:-1], kernels[:-1], strict=True))
        self.norm = _norm(features[0], norm, architecture.groups)
        self.head = nn.Conv3d(features[0], architecture.out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits float `(n, out_channels, z, y, x)` of a float image `(n, 1, z, y, x)` in -1..1.

        The sides z, y, x must be multiples of `architecture.multiple`.
        """
        pools = self.architecture.pools
        x = self.down[0](self.stem(image))
        skips = []
        for pool, widen, module in zip(pools, self.widen, self.down[1:], strict=True):
            skips.append(x)
            x = module(widen(F.max_pool3d(x, pool, pool)))
        for pool, narrow, module in reversed(list(zip(pools, self.narrow, self.up, strict=True))):
            # A nearest-neighbour repeat is exact in every precision and on every device, unlike interpolation.
            x = module(repeat(narrow(x), pool) + skips.pop())
        logits: Tensor = self.head(F.relu(self.norm(x)))
        return logits


class Residual(nn.Module):
    """Two convolutions on rectified activations, added to their input (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, features: int, kernel: Vec, norm: Norm, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(features, norm, groups)
        self.conv1 = _convolution(features, features, kernel, norm, _RELU_GAIN)
        self.norm2 = _norm(features, norm, groups)
        self.conv2 = _convolution(features, features, kernel, norm, _RELU_GAIN)
        # Without normalised activations a module starts as the identity (De and Smith 2020, arXiv:2002.10444).
        self.gain = nn.Parameter(torch.zeros(())) if norm == "weights" else None

    def forward(self, x: Tensor) -> Tensor:
        """Float `(n, features, z, y, x)`, same shape out."""
        y: Tensor = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return x + (y if self.gain is None else y * self.gain)


class StandardisedConv3d(nn.Module):
    """A 3-D convolution that keeps the size, whose kernels have mean 0 and norm `gain * scale` whatever `weight` is."""

    def __init__(self, before: int, after: int, kernel: Vec, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # Kernels of norm 1: only their direction counts, and the shorter they are the faster a step turns it.
        self.weight = nn.Parameter(torch.randn(after, before, *kernel) / math.sqrt(before * math.prod(kernel)))
        self.gain = nn.Parameter(torch.ones(after))
        self.bias = nn.Parameter(torch.zeros(after))

    def kernel(self) -> Tensor:
        """The kernels that are applied, `(after, before, z, y, x)`."""
        sides = (1, 2, 3, 4)
        centred = self.weight - self.weight.mean(sides, keepdim=True)
        norm = centred.square().sum(sides, keepdim=True).add(1e-4).sqrt()
        return centred * ((self.gain * self.scale).view(-1, 1, 1, 1, 1) / norm)

    def forward(self, x: Tensor) -> Tensor:
        """Float `(n, before, z, y, x)` to `(n, after, z, y, x)`."""
        return F.conv3d(x, self.kernel(), self.bias, padding=_padding(self.weight.shape[2:]))


def _convolution(before: int, after: int, kernel: Vec, norm: Norm, scale: float = 1.0) -> nn.Module:
    # A kernel of one voxel and one feature has no deviation to standardise.
    if norm == "weights" and before * math.prod(kernel) > 1:
        return StandardisedConv3d(before, after, kernel, scale)
    # No bias: whatever reads the sum of these outputs normalises it first, and GroupNorm has one.
    return nn.Conv3d(before, after, kernel, padding=_padding(kernel), bias=norm == "weights")


def _pointwise(before: int, after: int, norm: Norm) -> nn.Module:
    return _convolution(before, after, (1, 1, 1), norm) if norm == "weights" else nn.Conv3d(before, after, 1)


def _norm(features: int, norm: Norm, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, features) if norm == "group" else nn.Identity()


def _padding(kernel: Sequence[int]) -> Vec:
    return kernel[0] // 2, kernel[1] // 2, kernel[2] // 2


def repeat(x: Tensor, pool: Vec) -> Tensor:
    """Features `(n, c, z, y, x)` in which each voxel is repeated `pool` times along z, y, x."""
    repeated: Tensor = F.interpolate(x, scale_factor=[float(side) for side in pool], mode="nearest")
    return repeated


def parameter_count(net: nn.Module) -> int:
    """Number of trained numbers in a network.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def new_network(architecture: Architecture, seed: int) -> UNet:
    """A network with random weights that depend only on `architecture` and `seed`; torch's own state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(architecture)
