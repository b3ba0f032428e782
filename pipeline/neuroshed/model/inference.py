"""Affinities of a box, from arrays: the lattice of patches, reflection at the volume's edge, batches, rounding.

The lattice belongs to the volume, never to the block: a block computes every patch that touches its box, in batches of
one fixed size, so the uint8 result does not depend on how the volume was divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec, add, mul, sub
from neuroshed.model.unet import Architecture

Precision = Literal["float32", "bfloat16"]
Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
# Channels of the result: the edges to the nearest neighbour along z, y and x.
CHANNELS = 3
# Copies of its feature maps that a level has in memory at once, and of the logits (measured, rounded up).
LIVE_FEATURES = 6
LIVE_LOGITS = 4
_FINITE_ADVICE = "check the model's weights, and try predict.precision float32 if it is bfloat16"


@dataclass(frozen=True, slots=True)
class Lattice:
    """Patches of one shape, of which all but `context` voxels on each side are kept; anchored at the volume's origin.

    >>> Lattice(patch=(96, 96, 96), context=(16, 16, 16)).stride
    (64, 64, 64)
    """

    patch: Vec
    context: Vec

    def __post_init__(self) -> None:
        if min(self.context) < 0 or min(self.stride) < 1:
            raise ValueError(f"patch {self.patch} must be larger than twice its context {self.context}")

    @property
    def stride(self) -> Vec:
        """Sides of what a patch contributes: the patch without its context."""
        return sub(self.patch, add(self.context, self.context))

    def cells(self, box: Box) -> Iterator[Box]:
        """What each patch that touches `box` contributes, whole and so possibly reaching out of it, in raster order.

        >>> [cell.start for cell in Lattice((4, 4, 4), (1, 1, 1)).cells(Box((3, 0, 0), (5, 2, 2)))]
        [(2, 0, 0), (4, 0, 0)]
        """
        for index in Grid(box, self.stride):
            start = mul(index, self.stride)
            yield Box(start, add(start, self.stride))


def read_box(box: Box, volume_shape: Vec, lattice: Lattice) -> Box:
    """The part of the image that the patches touching `box` see, clipped to the volume.

    >>> read_box(Box((64, 0, 0), (128, 64, 64)), (500, 500, 70), Lattice((96, 96, 96), (16, 16, 16)))
    Box(start=(48, 0, 0), stop=(144, 80, 70))
    """
    grid = Grid(box, lattice.stride)
    touched = Box(mul(grid.first, lattice.stride), mul(add(grid.first, grid.counts), lattice.stride))
    return touched.grow(lattice.context).intersect(Box.of_shape(volume_shape))


def normalise(image: Tensor, low: float, high: float) -> Tensor:
    """Intensities low..high as float32 -1..1, those outside clipped.

    >>> normalise(torch.tensor([0, 50, 255], dtype=torch.uint8), 0, 100).tolist()
    [-1.0, 0.0, 1.0]
    """
    return ((image.to(torch.float32) - low) / (high - low)).clamp(0, 1) * 2 - 1


def predict_box(
    net: nn.Module,
    image: Image,
    image_box: Box,
    box: Box,
    volume_shape: Vec,
    lattice: Lattice,
    batch_size: int,
    normalisation: tuple[float, float],
    threads: int,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
) -> npt.NDArray[np.uint8]:
    """The affinities of `box`, uint8 `(3, z, y, x)`: round(255 * sigmoid) of the net's first three channels.

    `image`, uint8 or uint16 `(z, y, x)`, holds the voxels of `image_box`, which is `read_box(box, ...)` or more.
    Outside the volume, and only there, a patch sees its own part of the image reflected. `normalisation` is the
    (low, high) of `normalise`. The net is moved to `device` and put into evaluation mode; `threads` is set for the
    calling thread.

    Batch size, threads, device and precision may change single values by rounding: keep them fixed through a run.

    Raises `BlockError` if memory runs out or the net gives NaN or infinity in a patch, ValueError if `image_box` is too
    small.
    """
    wanted = read_box(box, volume_shape, lattice)
    if not image_box.contains(wanted) or image.shape != image_box.shape:
        raise ValueError(f"patches of {box} need the image in {wanted}, got {image.shape} voxels of {image_box}")
    torch.set_num_threads(threads)
    affinities = np.empty((CHANNELS, *box.shape), np.uint8)
    try:
        net = net.to(device).eval()
        every = list(lattice.cells(box))
        for first in range(0, len(every), batch_size):
            cells = every[first : first + batch_size]
            batch = _gather(image, image_box, cells, volume_shape, lattice, batch_size)
            answers, sound = _forward(net, batch, lattice, normalisation, device, precision)
            for cell, answer, finite in zip(cells, answers, sound, strict=False):
                part = cell.intersect(box)
                if not finite:
                    raise BlockError(f"the network gives NaN or infinity in {part}; {_FINITE_ADVICE}")
                affinities[:, *part.slices(box.start)] = answer[:, *part.slices(cell.start)]
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise BlockError(_memory_advice(box, batch_size, lattice)) from error
    return affinities


def _gather(
    image: Image, image_box: Box, cells: list[Box], volume_shape: Vec, lattice: Lattice, batch_size: int
) -> Image:
    # A fixed batch, its tail zeros: libraries choose their algorithm, and so their rounding, by the size of the batch.
    batch = np.zeros((batch_size, 1, *lattice.patch), image.dtype)
    for slot, cell in enumerate(cells):
        window = cell.grow(lattice.context)
        inside = window.intersect(Box.of_shape(volume_shape))
        before, after = sub(inside.start, window.start), sub(window.stop, inside.stop)
        pixels = image[inside.slices(image_box.start)]
        batch[slot, 0] = np.pad(pixels, list(zip(before, after, strict=True)), mode="reflect")
    return batch


def _forward(
    net: nn.Module,
    batch: Image,
    lattice: Lattice,
    normalisation: tuple[float, float],
    device: str,
    precision: Precision,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """What the net says of each slot, and whether all of it is finite: as uint8, NaN would be some number."""
    keep = Box(lattice.context, add(lattice.context, lattice.stride)).slices()
    with torch.inference_mode():
        x = normalise(torch.from_numpy(batch).to(device), *normalisation)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits: Tensor = net(x)
        kept = logits[:, :CHANNELS, *keep].float()
        finite: npt.NDArray[np.bool_] = torch.isfinite(kept).flatten(1).all(1).cpu().numpy()
        answer: npt.NDArray[np.uint8] = (kept.sigmoid() * 255).round().to(torch.uint8).cpu().numpy()
    return answer, finite


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a bare RuntimeError of its allocator.
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _memory_advice(box: Box, batch_size: int, lattice: Lattice) -> str:
    got = f"out of memory at box {box} with batch_size {batch_size} of patch {lattice.patch}"
    if batch_size > 1:
        return f"{got}; set batch_size to {batch_size // 2}"
    return f"{got}, the smallest batch; run fewer tasks at once on the device or give the worker more memory"


def redundancy(lattice: Lattice, block_shape: Vec) -> float:
    """Voxels that go through the net for each voxel written, on the average over inner blocks.

    Blocks of whole strides compute nothing twice but context; other blocks compute the patches they share twice.

    >>> redundancy(Lattice((96, 96, 96), (16, 16, 16)), (128, 128, 128))
    3.375
    >>> redundancy(Lattice((96, 96, 96), (16, 16, 16)), (96, 128, 128))
    4.5
    """
    ratio = 1.0
    for block, stride, patch in zip(block_shape, lattice.stride, lattice.patch, strict=True):
        period = stride // math.gcd(block, stride)
        cells = sum(-(-(i + 1) * block // stride) - i * block // stride for i in range(period))
        ratio *= cells * patch / (period * block)
    return ratio


def predicted_bytes(
    architecture: Architecture, lattice: Lattice, block_shape: Vec, batch_size: int, *, image_bytes: int = 1
) -> int:
    """Roughly the memory, in bytes, that `predict_box` takes for one block on top of the program and its weights.

    `image_bytes` is the size of one voxel of the image. Meant for float32 on a CPU, where it was 4 % to 46 % more than
    measured for nets of 8 to 32 features; bfloat16 takes about half.
    """
    peak, skips, share = 0.0, 0.0, 1.0
    for features, pool in zip(architecture.features, (*architecture.pools, (1, 1, 1)), strict=True):
        peak = max(peak, skips + LIVE_FEATURES * features * share)
        skips += features * share
        share /= math.prod(pool)
    peak = max(peak, LIVE_FEATURES * architecture.features[0] + LIVE_LOGITS * architecture.out_channels)
    # A block that is not aligned to the lattice touches up to one stride more on each side, plus the context.
    seen = math.prod(b + s + p for b, s, p in zip(block_shape, lattice.stride, lattice.patch, strict=True))
    activations = round(4 * batch_size * math.prod(lattice.patch) * peak)
    return seen * image_bytes + CHANNELS * math.prod(block_shape) + activations
