"""The network: a symmetric 3-D residual U-Net that turns an image into one logit for each affinity channel.

It follows Lee, Zung, Li, Jain and Seung, "Superhuman accuracy on the SNEMI3D connectomics challenge" (2017,
arXiv:1706.00120): residual modules, skip connections that add instead of concatenate, convolutions that keep the
size, and kernels and pooling that may leave out the coarse axis of anisotropic images. Unlike the paper it
normalises with GroupNorm, so that a patch gives the same result whatever else is in the batch.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from neuroshed.geometry import Vec, mul


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
    groups: Annotated[int, Field(ge=1)] = 8
    """Groups of GroupNorm; every number of features must be a multiple."""

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
        if any(count % self.groups for count in self.features):
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
        features, kernels, groups = architecture.features, architecture.kernels, architecture.groups
        self.stem = _convolution(1, features[0], kernels[0])
        self.down = nn.ModuleList(Residual(n, k, groups) for n, k in zip(features, kernels, strict=True))
        self.widen = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in itertools.pairwise(features))
        self.narrow = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in itertools.pairwise(features))
        self.up = nn.ModuleList(Residual(n, k, groups) for n, k in zip(features[:-1], kernels[:-1], strict=True))
        self.norm = nn.GroupNorm(groups, features[0])
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
            x = module(_repeat(narrow(x), pool) + skips.pop())
        logits: Tensor = self.head(F.relu(self.norm(x)))
        return logits


class Residual(nn.Module):
    """Two convolutions on normalised activations, added to their input (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, features: int, kernel: Vec, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, features)
        self.conv1 = _convolution(features, features, kernel)
        self.norm2 = nn.GroupNorm(groups, features)
        self.conv2 = _convolution(features, features, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Float `(n, features, z, y, x)`, same shape out."""
        y: Tensor = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return x + y


def _convolution(before: int, after: int, kernel: Vec) -> nn.Conv3d:
    # No bias: whatever reads the sum of these outputs normalises it first, and GroupNorm has one.
    return nn.Conv3d(before, after, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2), bias=False)


def _repeat(x: Tensor, pool: Vec) -> Tensor:
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
