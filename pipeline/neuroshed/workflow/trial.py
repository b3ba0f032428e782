"""A network on a few patches of a volume: what it gives there, how fast it is, and the batch size to choose."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Box, Vec, add, mul, sub
from neuroshed.model.inference import Predictor
from neuroshed.model.lattice import read_box
from neuroshed.stages.predict import Predict
from neuroshed.stages.registry import parse_stage
from neuroshed.storage.volumes import Volume, open_volume

Report = dict[str, Any]
T = TypeVar("T")
BATCHES = (1, 2, 4, 8, 16)
FASTER = 0.95
"""A larger batch is suggested if a patch takes less than this share of its time."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, what a batch may take."""
BATCH_SECONDS = 4.0
"""What a batch may take to be tried: patches that need so long fill the device one by one."""


@dataclass(frozen=True)
class Trial:
    """A model on a volume."""

    image: Volume
    predictor: Predictor
    region: Box
    """What is meant of the image."""

    @property
    def cell(self) -> Box:
        """What the patch in the middle of the region contributes."""
        stride, middle = self.predictor.lattice.stride, add(self.region.start, self.region.stop)
        z, y, x = (place // 2 // step for place, step in zip(middle, stride, strict=True))
        start = mul((z, y, x), stride)
        return Box(start, add(start, stride))

    def predict(self, box: Box, shift: Vec = (0, 0, 0), predictor: Predictor | None = None) -> npt.NDArray[np.uint8]:
        """Affinities of a box, by a lattice that is moved by `shift`; what lies below `shift` is not seen."""
        there, shape = Box(sub(box.start, shift), sub(box.stop, shift)), sub(self.image.shape, shift)
        seen = read_box(there, shape, self.predictor.lattice)
        pixels = self.image.read(Box(add(seen.start, shift), add(seen.stop, shift)))
        return (predictor or self.predictor).predict(pixels, seen, there, shape)

    def seam(self, affinities: npt.NDArray[np.uint8]) -> Report | None:
        """How far the border of the patch is from the middle of a patch that lies across it; None in small volumes."""
        stride = self.predictor.lattice.stride
        for axis in (2, 1, 0):
            half = stride[axis] // 2
            if half < 2 or self.image.shape[axis] < self.cell.stop[axis] + half:
                continue
            z, y, x = (half if own == axis else 0 for own in range(3))
            box = self.cell.intersect(self.image.box)
            start = tuple(box.stop[own] - half if own == axis else box.start[own] for own in range(3))
            other = self.predict(Box((start[0], start[1], start[2]), box.stop), (z, y, x))
            mine = np.moveaxis(affinities, axis + 1, 1)[:, -half:].astype(np.int64)
            planes = np.abs(mine - np.moveaxis(other, axis + 1, 1)).mean((0, 2, 3))
            return {
                "axis": "zyx"[axis],
                "border": round(float(planes[-1]), 2),
                "inside": round(float(planes[half // 2]), 2),
            }
        return None

    def speed(self, patch_bytes: int) -> tuple[dict[int, float], int]:
        """Seconds of a patch by batch size, as far as memory and patience go and it gets faster; and the best size."""
        seconds: dict[int, float] = {}
        best = BATCHES[0]
        for size in BATCHES:
            too_large = size * patch_bytes > MEMORY_SHARE * _free(self.predictor.network.device)
            if size > 1 and (too_large or size * seconds[best] > BATCH_SECONDS):
                break
            predictor = replace(self.predictor, batch_size=size)
            begin = time.perf_counter()
            # Zeros fill the batch, so that the image need not have so many patches.
            self.predict(self.cell.intersect(self.image.box), predictor=predictor)
            seconds[size] = (time.perf_counter() - begin) / size
            if seconds[size] > FASTER * seconds[best] and size > 1:
                break
            best = size
        return seconds, best


def _free(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def with_batch_size(predict: Predict, batch_size: int) -> Predict:
    """The same stage with another batch size."""
    # Built anew, not copied: a copy would keep the fingerprint.
    fields = {name: getattr(predict, name) for name in Predict.model_fields}
    return Predict(**fields | {"batch_size": batch_size})


def with_best_batch_size(predict: Predict) -> Predict:
    """The stage with the batch size that its run folder holds results of, or else with the fastest here.

    Raises `WorkflowError` if it is for a GPU and there is none here.
    """
    for batch_size in _used(predict):
        return with_batch_size(predict, batch_size)
    return with_batch_size(predict, _measured(predict))


def _used(predict: Predict) -> Iterator[int]:
    """Batch sizes that the run folder has this stage with."""
    folder = predict.run_folder
    for name in sorted(folder.names()) if folder.exists() else []:
        file = folder / name / "stage.json"
        if not name.startswith(f"{predict.kind}-") or not file.exists():
            continue
        with suppress(InputError):  # of another version
            known = parse_stage(file.read_bytes(), file)
            if isinstance(known, Predict) and _is(known, predict):
                yield known.batch_size


def _is(known: Predict, predict: Predict) -> bool:
    return with_batch_size(predict, known.batch_size).fingerprint == known.fingerprint


def _measured(predict: Predict) -> int:
    if predict.device.startswith("cuda") and not torch.cuda.is_available():
        raise WorkflowError(
            "predict.batch_size: auto is measured where the run is planned, and there is no GPU here; give a number, "
            "as `neuroshed model check` suggests it on a worker"
        )
    return _where_it_runs(_best, predict)


def try_once(predict: Predict) -> None:
    """Send the patch in the middle of the region through the network, unless the run folder has results of it already.

    Raises `InputError` for an answer that is not what is declared, or not finite. Without the GPU that it is for, that
    is left to the first block.
    """
    if any(_used(predict)) or (predict.device.startswith("cuda") and not torch.cuda.is_available()):
        return
    try:
        _where_it_runs(_answer, predict)
    except BlockError as error:
        raise InputError(f"a trial on one patch of {predict.image} failed: {error}") from error


def _where_it_runs(function: Callable[[Predict], T], predict: Predict) -> T:
    if not predict.device.startswith("cuda"):
        return function(predict)
    # A coordinator that has touched a GPU would hold a part of its memory.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, predict).result()


def _answer(predict: Predict) -> None:
    trial = _trial(predict)
    trial.predict(trial.cell.intersect(trial.image.box))


def _best(predict: Predict) -> int:
    return _trial(predict).speed(predict.patch_bytes)[1]


def _trial(predict: Predict) -> Trial:
    return Trial(open_volume(predict.image), predict.predictor, predict.region)
