"""Affinities of a box, from arrays: patches of the lattice, reflection at the volume's edge, batches, rounding.

A block computes every patch that touches its box, in batches of one fixed size, so the uint8 result does not depend on
how the volume was divided.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Vec, add, sub
from neuroshed.model.lattice import Lattice, read_box
from neuroshed.model.networks import Network
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Architecture

Image = npt.NDArray[np.integer]
# Channels of the result: the edges to the nearest neighbour along z, y and x.
CHANNELS = len(NEAREST)
# Copies of its feature maps that a level has in memory at once, and of the logits (measured, rounded up).
LIVE_FEATURES = 6
LIVE_LOGITS = 4
_QUEUE = threading.Lock()
_FINITE_ADVICE = "check the model's weights, and try predict.precision float32 if it is bfloat16"


@dataclass(frozen=True)
class Predictor:
    """A network over a lattice of patches, `batch_size` of them at once, on `threads` processor threads.

    Batch size, threads, device and precision may change single values by rounding: keep them fixed through a run.
    """

    network: Network
    lattice: Lattice
    batch_size: int = 1
    threads: int = 1
    deterministic: bool = True
    """Whether a GPU gives the same numbers each time; if not, cuDNN tries which of its algorithms is fastest."""

    def predict(self, image: Image, image_box: Box, box: Box, volume_shape: Vec) -> npt.NDArray[np.uint8]:
        """The affinities of `box`, uint8 `(3, z, y, x)`: round(255 * affinity).

        `image`, integers `(z, y, x)`, holds the voxels of `image_box`, which is `read_box(box, ...)` or more. Outside
        the volume, and only there, a patch sees its own part of the image reflected. The number of threads is set for
        the calling thread.

        Raises `BlockError` if memory runs out or the net gives NaN or infinity in a patch, ValueError if `image_box`
        is too small.
        """
        wanted = read_box(box, volume_shape, self.lattice)
        if not image_box.contains(wanted) or image.shape != image_box.shape:
            raise ValueError(f"patches of {box} need the image in {wanted}, got {image.shape} voxels of {image_box}")
        torch.set_num_threads(self.threads)
        affinities = np.empty((CHANNELS, *box.shape), np.uint8)
        try:
            for cells, answers, sound in self._answers(image, image_box, box, volume_shape):
                for cell, answer, finite in zip(cells, answers, sound, strict=False):
                    part = cell.intersect(box)
                    if not finite:
                        raise BlockError(f"the network gives NaN or infinity in {part}; {_FINITE_ADVICE}")
                    affinities[:, *part.slices(box.start)] = answer[:, *part.slices(cell.start)]
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise BlockError(_memory_advice(box, self.batch_size, self.lattice)) from error
        return affinities

    def _answers(
        self, image: Image, image_box: Box, box: Box, volume_shape: Vec
    ) -> Iterator[tuple[list[Box], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        """Cells, what the net says of each slot, and whether all of it is finite: as uint8, NaN would be some number.

        A GPU works while the next batch is gathered and the one before is written.
        """
        every = list(self.lattice.cells(box))
        waiting: tuple[list[Box], _Answer] | None = None
        for first in range(0, len(every), self.batch_size):
            cells = every[first : first + self.batch_size]
            batch = _gather(image, image_box, cells, volume_shape, self.lattice, self.batch_size)
            asked = cells, self._ask(batch)
            if waiting:
                yield waiting[0], *waiting[1].arrays()
            waiting = asked
        if waiting:
            yield waiting[0], *waiting[1].arrays()

    def _algorithms(self) -> AbstractContextManager[None]:
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
            enabled=True, benchmark=not self.deterministic, deterministic=self.deterministic
        )
        return flags

    def _ask(self, batch: Image) -> _Answer:
        kept = Box(self.lattice.context, add(self.lattice.context, self.lattice.stride))
        device = self.network.device
        on_gpu = device.startswith("cuda")
        # Tasks that share a GPU queue up whole batches, so that only one at a time has its activations in memory.
        with torch.inference_mode(), _QUEUE if on_gpu else nullcontext(), self._algorithms():
            values = torch.from_numpy(batch)
            values = values.pin_memory().to(device, non_blocking=True) if on_gpu else values
            affinities = self.network.affinities(values, kept)
            finite = affinities.isfinite().flatten(1).all(1)
            rounded = (affinities * 255).round().to(torch.uint8)
            if not on_gpu:
                return _Answer(rounded, finite, None)
            answer = rounded.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)
            return _Answer(*answer, torch.cuda.current_stream(device).record_event())


@dataclass(frozen=True)
class _Answer:
    """What a batch will be, uint8 `(n, 3, z, y, x)`, and whether each slot is finite; there once `done` is."""

    affinities: Tensor
    finite: Tensor
    done: torch.cuda.Event | None

    def arrays(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        if self.done:
            self.done.synchronize()
        return self.affinities.numpy(), self.finite.numpy()


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


def _out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a bare RuntimeError of its allocator.
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _memory_advice(box: Box, batch_size: int, lattice: Lattice) -> str:
    got = f"out of memory at box {box} with batch_size {batch_size} of patch {lattice.patch}"
    if batch_size > 1:
        return f"{got}; set batch_size to {batch_size // 2}"
    return f"{got}, the smallest batch; run fewer tasks at once on the device or give the worker more memory"


def predicted_bytes(patch: int, lattice: Lattice, block_shape: Vec, batch_size: int, *, image_bytes: int = 1) -> int:
    """Roughly the memory, in bytes, that `Predictor.predict` takes for one block on top of the program and its weights.

    `patch` is what one patch takes, `image_bytes` the size of one voxel of the image.
    """
    # A block that is not aligned to the lattice touches up to one stride more on each side, plus the context.
    seen = math.prod(b + s + p for b, s, p in zip(block_shape, lattice.stride, lattice.patch, strict=True))
    return seen * image_bytes + CHANNELS * math.prod(block_shape) + batch_size * patch


def patch_bytes(architecture: Architecture, lattice: Lattice) -> int:
    """Roughly the memory, in bytes, that a patch takes on its way through a U-Net.

    Meant for float32 on a CPU, where it was 4 % to 46 % more than measured for nets of 8 to 32 features; bfloat16 takes
    about half.
    """
    peak, skips, share = 0.0, 0.0, 1.0
    for features, pool in zip(architecture.features, (*architecture.pools, (1, 1, 1)), strict=True):
        peak = max(peak, skips + LIVE_FEATURES * features * share)
        skips += features * share
        share /= math.prod(pool)
    peak = max(peak, LIVE_FEATURES * architecture.features[0] + LIVE_LOGITS * architecture.out_channels)
    return round(4 * math.prod(lattice.patch) * peak)
