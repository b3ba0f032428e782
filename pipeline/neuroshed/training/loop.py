"""The training loop. Start here: `train` takes a configuration and ends with an exported model.

Samples (`samples.py`, `augment.py`) -> U-Net (`model.unet`) -> balanced loss (`model.losses`) -> AdamW; every so often
a held-out score (`scores.py`), a checkpoint (`checkpoints.py`) and an export (`storage.models`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.model.losses import balanced_loss
from neuroshed.model.unet import UNet, new_network, parameter_count
from neuroshed.storage.files import make_folder, replace_file
from neuroshed.storage.models import ModelCard, fill_weights, load_model, save_model
from neuroshed.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from neuroshed.training.config import TrainingConfig, difference
from neuroshed.training.logs import TrainingLog
from neuroshed.training.samples import Region, Sampler, open_regions
from neuroshed.training.scores import check_held_out, validate

Batch = tuple[Tensor, Tensor, Tensor]


def train(
    config: TrainingConfig,
    *,
    resume: bool = True,
    start_from: Path | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train a network, or go on with the training that is in `config.output`; returns the JSON of the best model.

    `start_from` is a checkpoint or model that gives the first weights (the optimiser starts afresh); it has no effect
    on a training that is resumed. `progress` gets every event that is logged. On SIGINT and SIGTERM the step is
    finished and a checkpoint written before KeyboardInterrupt or SystemExit is raised.

    Raises `WorkflowError` if the folder holds a training with another configuration, or any training and `resume` is
    False; `InputError` for unusable data or weights; `RunFailedError` if the loss is no longer finite.
    """
    newest = _claim(config, resume)
    regions, held_out = open_regions(config.samples, config.preload_gib), open_regions(config.validation, 0)
    check_held_out(held_out)
    torch.set_num_threads(config.threads)
    net = new_network(config.network, config.seed)
    if start_from and not newest:
        _fill_from(net, start_from)
    net.to(config.device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    step, best = 0, -math.inf
    if newest:
        checkpoint = load_checkpoint(newest)
        checkpoint.restore(net, optimiser)
        step, best = checkpoint.step, checkpoint.best_score

    with TrainingLog(config.output, step, progress) as log, _stop_signals() as received:
        recent, since = [], time.perf_counter()
        for batch in Sampler(regions, config).batches(step, config.steps):
            recent.append(_learn(net, optimiser, batch, step, config))
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                seconds = (time.perf_counter() - since) / len(recent)
                log.write("train", step, loss=sum(recent) / len(recent), rate=config.rate(step - 1), seconds=seconds)
                recent.clear()
                since = time.perf_counter()
            if step % config.validate_every == 0 or step == config.steps:
                scores = validate(net, held_out, config) if held_out else {}
                net.train()
                if held_out:
                    log.write("validation", step, **scores)
                log.draw()
                card = _card(config, regions, net, step, scores)
                save_model(config.output / "last", card, net.state_dict())
                if scores.get("boundary_precision", math.inf) >= best:
                    best = scores.get("boundary_precision", -math.inf)
                    save_model(config.output / "best", card, net.state_dict())
            if step % config.checkpoint_every == 0 or step == config.steps or received:
                save_checkpoint(_checkpoints(config), step, net, optimiser, best, config.keep_checkpoints)
            if received:
                raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    return config.output / "best.json"


def _learn(net: UNet, optimiser: torch.optim.Optimizer, batch: Batch, step: int, config: TrainingConfig) -> float:
    for group in optimiser.param_groups:
        group["lr"] = config.rate(step)
    image, targets, counts = (tensor.to(config.device) for tensor in batch)
    with torch.autocast(image.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits = net(image)
    loss = balanced_loss(logits, targets, counts)
    value = loss.item()
    if not math.isfinite(value):
        raise RunFailedError(
            f"the loss is {value} at step {step} with learning rate {config.rate(step):.2g}; checkpoints before it are "
            f"kept in {_checkpoints(config)}: lower learning_rate and train with --from one of them"
        )
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(net.parameters(), config.gradient_clip)
    optimiser.step()
    return value


def _checkpoints(config: TrainingConfig) -> Path:
    return config.output / "checkpoints"


def _claim(config: TrainingConfig, resume: bool) -> Path | None:
    """Write the configuration to the output folder, if it agrees with one there; the newest checkpoint, if any."""
    file, newest = config.output / "config.json", newest_checkpoint(_checkpoints(config))
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
    return newest


def _fill_from(net: UNet, source: Path) -> None:
    weights = load_checkpoint(source).weights if source.suffix == ".pt" else load_model(source).net.state_dict()
    fill_weights(net, weights, str(source))


def _card(config: TrainingConfig, regions: list[Region], net: UNet, step: int, scores: dict[str, float]) -> ModelCard:
    return ModelCard(
        description=config.description,
        architecture=config.network,
        offsets=config.offsets,
        lattice=config.lattice,
        normalisation=config.normalisation,
        voxel_size=regions[0].volumes[0].voxel_size,
        training={
            "steps": step,
            "seed": config.seed,
            "batch_size": config.batch_size,
            "patch_shape": config.patch_shape,
            "precision": config.precision,
            "parameters": parameter_count(net),
            "samples": [{"image": region.volumes[0].path.name, "box": str(region.box)} for region in regions],
            "held_out": {name: round(score, 4) for name, score in scores.items()},
        },
    )


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
