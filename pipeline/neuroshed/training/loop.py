"""The training loop. Start here: `train` takes a configuration and ends with an exported model.

Samples (`samples.py`, `augment.py`, `elastic.py`) -> U-Net (`model.unet`) -> loss (`model.losses`) -> AdamW
(`learner.py`); every so often a held-out score (`scores.py`), a checkpoint (`checkpoints.py`) and an export
(`storage.models`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from neuroshed.errors import WorkflowError
from neuroshed.model.unet import UNet, parameter_count
from neuroshed.storage.files import make_folder, replace_file
from neuroshed.storage.intensity import image_spread
from neuroshed.storage.models import ModelCard, save_model
from neuroshed.training.checkpoints import newest_checkpoint
from neuroshed.training.config import Source, TrainingConfig, difference
from neuroshed.training.learner import Learner, checkpoint_folder
from neuroshed.training.logs import TrainingLog
from neuroshed.training.ranks import joined
from neuroshed.training.samples import Region, Sampler, open_regions
from neuroshed.training.scores import check_held_out, validate

Progress = Callable[[dict[str, Any]], None]


def train(
    config: TrainingConfig,
    *,
    resume: bool = True,
    start_from: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a network, or go on with the training that is in `config.output`; returns the JSON of the best model.

    `start_from` is a checkpoint or model that gives the first weights (the optimiser starts afresh); it has no effect
    on a training that is resumed. `progress` gets every event that is logged. On SIGINT and SIGTERM the step is
    finished and a checkpoint written before KeyboardInterrupt or SystemExit is raised. Under torchrun each process
    takes its share of every batch.

    Raises `WorkflowError` if the folder holds a training with another configuration, or any training and `resume` is
    False, or if batches cannot be shared out; `InputError` for unusable data or weights; `RunFailedError` if the loss
    is no longer finite.
    """
    with joined(config.device) as ranks:
        if config.batch_size % ranks.count:
            raise WorkflowError(
                f"batch_size {config.batch_size} cannot be shared out among {ranks.count} processes; make it a multiple"
            )
        if ranks.leads:
            _claim(config, resume)
        ranks.wait()
        regions = open_regions(config.samples, config.preload_gib)
        learner = Learner(config, ranks, start_from)
        keeper = _Keeper(config, regions, learner, progress) if ranks.leads else None
        with keeper or nullcontext(), _stop_signals() as received:
            for batch in Sampler(regions, config, ranks.index, ranks.count).batches(learner.step, config.steps):
                loss = learner.learn(batch)
                if keeper:
                    keeper.after_step(loss)
                if ranks.any(bool(received)):
                    if keeper:
                        learner.save()
                    number = received[0] if received else signal.SIGTERM
                    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
    return config.output / "best.json"


class _Keeper:
    """Logs, scores, exports and saves what a learner has learnt, each at its steps."""

    def __init__(
        self, config: TrainingConfig, regions: list[Region], learner: Learner, progress: Progress | None
    ) -> None:
        self._config, self._regions, self._learner = config, regions, learner
        self._held_out = open_regions(config.validation, 0)
        check_held_out(self._held_out)
        self._log = TrainingLog(config.output, learner.step, progress)
        self._losses: list[float] = []
        self._since = time.perf_counter()

    def __enter__(self) -> None:
        self._log.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._log.__exit__(*error)

    def after_step(self, loss: float) -> None:
        """Do what is due after a step."""
        config, step = self._config, self._learner.step
        last = step == config.steps
        self._losses.append(loss)
        if step % config.log_every == 0 or last:
            seconds = (time.perf_counter() - self._since) / len(self._losses)
            mean = sum(self._losses) / len(self._losses)
            self._log.write("train", step, loss=mean, rate=config.rate(step - 1), seconds=seconds)
            self._losses.clear()
            self._since = time.perf_counter()
        if step % config.validate_every == 0 or last:
            self._validate()
        if step % config.checkpoint_every == 0 or last:
            self._learner.save()

    def _validate(self) -> None:
        config, learner = self._config, self._learner
        scores = validate(learner.result, self._held_out, config) if self._held_out else {}
        if scores:
            self._log.write("validation", learner.step, **scores)
        self._log.draw()
        card = _card(config, self._regions, learner.net, learner.step, scores)
        weights = learner.result.state_dict()
        save_model(config.output / "last", card, weights)
        if scores.get("boundary_precision", math.inf) >= learner.best:
            learner.best = scores.get("boundary_precision", -math.inf)
            save_model(config.output / "best", card, weights)


def _claim(config: TrainingConfig, resume: bool) -> None:
    """Write the configuration to the output folder, if it agrees with one there."""
    file, newest = config.output / "config.json", newest_checkpoint(checkpoint_folder(config))
    if newest and file.exists():
        if not resume:
            raise WorkflowError(f"{config.output} holds a training already; resume it or choose another output folder")
        changed = difference(TrainingConfig.model_validate_json(file.read_bytes()), config)
        if changed:
            raise WorkflowError(
                f"{config.output} holds a training with another {changed}; "
                "change it back to resume, or choose another output folder"
            )
    make_folder(config.output)
    replace_file(file, config.model_dump_json(indent=2).encode())


def _card(config: TrainingConfig, regions: list[Region], net: UNet, step: int, scores: dict[str, float]) -> ModelCard:
    return ModelCard(
        description=config.description,
        architecture=config.network,
        offsets=config.offsets,
        descriptors=config.descriptors is not None,
        lattice=config.lattice,
        normalisation=config.normalisation,
        spread=_spread(config, regions),
        voxel_size=regions[0].image.voxel_size,
        training={
            "steps": step,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "patch_shape": config.patch_shape,
            "precision": config.precision,
            "parameters": parameter_count(net),
            "samples": [_told(source) for source in config.samples],
            "held_out": {name: round(score, 4) for name, score in scores.items()},
        },
    )


def _told(source: Source) -> dict[str, Any]:
    told = {"box", "grow", "sections"}
    return {"image": source.image.name} | source.model_dump(mode="json", include=told, exclude_defaults=True)


def _spread(config: TrainingConfig, regions: list[Region]) -> tuple[float, float]:
    """How bright the training images are on the average, by voxels, in units of the normalisation."""
    low, high = config.normalisation
    found = np.array([image_spread(region.image, region.box) for region in regions])
    mean = np.average((found - low) / (high - low), axis=0, weights=[region.weight for region in regions])
    dark, bright = (round(float(share), 4) for share in mean.clip(0, 1))
    return dark, bright


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying from them; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        restore()
