"""What changes while a network learns: weights, their average, the optimiser; one step of it; its checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neuroshed.errors import RunFailedError
from neuroshed.model.losses import balanced_loss, descriptor_loss
from neuroshed.model.unet import UNet, new_network
from neuroshed.storage.models import fill_weights, load_model
from neuroshed.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from neuroshed.training.config import TrainingConfig
from neuroshed.training.ranks import Ranks
from neuroshed.training.samples import Batch


class Learner:
    """A network in training, after `step` steps; begun anew, from other weights, or from its newest checkpoint."""

    def __init__(self, config: TrainingConfig, ranks: Ranks, start_from: Path | None) -> None:
        self._config, self._ranks = config, ranks
        newest = newest_checkpoint(checkpoint_folder(config))
        torch.set_num_threads(config.threads)
        self.net = new_network(config.network, config.seed)
        if start_from and not newest:
            _fill_from(self.net, start_from)
        self.net.to(ranks.device).train()
        self._average = copy.deepcopy(self.net) if config.average else None
        self._optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.step, self.best = 0, -math.inf
        if newest:
            checkpoint = load_checkpoint(newest)
            checkpoint.restore(self.net, self._average, self._optimiser)
            self.step, self.best = checkpoint.step, checkpoint.best_score
        self._shared = ranks.share(self.net)

    @property
    def result(self) -> UNet:
        """What is scored and exported: the averaged network if there is one."""
        return self._average or self.net

    def learn(self, batch: Batch) -> float:
        """Take one step; returns the loss of this process's samples. Raises `RunFailedError` if it is not finite."""
        config = self._config
        for group in self._optimiser.param_groups:
            group["lr"] = config.rate(self.step)
        loss = self._loss(batch.to(self._ranks.device))
        value = loss.item()
        if not math.isfinite(value):
            raise RunFailedError(
                f"the loss is {value} at step {self.step} with learning rate {config.rate(self.step):.2g}; checkpoints "
                f"before it are kept in {checkpoint_folder(config)}: lower learning_rate and train with --from one of "
                "them"
            )
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.gradient_clip)
        self._optimiser.step()
        if self._average:
            _move(self._average, self.net, self.step, config.average)
        self.step += 1
        return value

    def save(self) -> None:
        """Write a checkpoint."""
        config = self._config
        save_checkpoint(
            checkpoint_folder(config),
            self.step,
            self.net,
            self._average,
            self._optimiser,
            self.best,
            config.keep_checkpoints,
        )

    def _loss(self, batch: Batch) -> Tensor:
        config = self._config
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits = self._shared(batch.image)
        affinities = len(config.offsets)
        loss = balanced_loss(logits[:, :affinities], batch.targets, batch.counts)
        if config.descriptors:
            loss = loss + config.descriptors.weight * descriptor_loss(logits[:, affinities:], batch.descriptors)
        return loss


def checkpoint_folder(config: TrainingConfig) -> Path:
    """Where a training keeps its checkpoints."""
    return config.output / "checkpoints"


@torch.no_grad()
def _move(average: UNet, net: UNet, step: int, share: float) -> None:
    """Move averaged weights towards the net's; early steps keep less than `share`, to forget the random start."""
    kept = min(share, (1 + step) / (10 + step))
    for old, new in zip(average.parameters(), net.parameters(), strict=True):
        old.lerp_(new, 1 - kept)


def _fill_from(net: UNet, source: Path) -> None:
    if source.suffix == ".pt":
        checkpoint = load_checkpoint(source)
        weights: Mapping[str, Tensor] = checkpoint.average or checkpoint.weights
    else:
        weights = load_model(source).net.state_dict()
    fill_weights(net, weights, str(source))
