"""Held-out scores of a network: whole boxes are predicted as a run would predict them, then compared with the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.model.inference import Predictor
from neuroshed.model.lattice import read_box
from neuroshed.model.losses import balanced_loss
from neuroshed.model.networks import UNetNetwork
from neuroshed.model.targets import NEAREST, affinity_targets
from neuroshed.training.config import TrainingConfig
from neuroshed.training.samples import Region

# Inference batches in validation: it fits wherever training does.
BATCH_SIZE = 1


def validate(net: nn.Module, regions: Sequence[Region], config: TrainingConfig) -> dict[str, float]:
    """Scores over all edges of the held-out regions, nearest-neighbour channels only.

    `loss` is the balanced binary cross entropy of the uint8 affinities; `boundary_precision` is the average precision
    with which low affinities find the edges between neurons.
    """
    losses, sizes = [], []
    histograms = np.zeros((2, 256), np.int64)
    for region in regions:
        affinities = predict_region(net, region, config)
        targets, counts = _truth(region)
        losses.append(_loss(affinities, targets, counts))
        sizes.append(int(counts.sum()))
        histograms += [np.bincount(affinities[counts & (targets == joined)], minlength=256) for joined in (False, True)]
    return {
        "loss": float(np.average(losses, weights=sizes)),
        "boundary_precision": average_precision(histograms[0], histograms[1]),
    }


def check_held_out(regions: Sequence[Region]) -> None:
    """Raise `InputError` if a region has no contact between two neurons, and so no boundary to find."""
    for region in regions:
        targets, counts = _truth(region)
        if not (counts & ~targets).any():
            raise InputError(
                f"validation box {region.box} of {region.labels.path} has no two labels that touch, so it cannot "
                "be scored; choose another box, or `grow` labels that were drawn with gaps"
            )


def _truth(region: Region) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    mask = region.mask.read(region.box) != 0 if region.mask else None
    return affinity_targets(region.labels.read(region.box), NEAREST, mask)


def predict_region(net: nn.Module, region: Region, config: TrainingConfig) -> npt.NDArray[np.uint8]:
    """Affinities uint8 `(3, z, y, x)` of a region's box, which sees the image around it as in a run."""
    image = region.image
    seen: Box = read_box(region.box, image.shape, config.lattice)
    network = UNetNetwork(net, config.normalisation, config.device, config.precision)
    predictor = Predictor(network, config.lattice, BATCH_SIZE, config.threads)
    return predictor.predict(image.read(seen), seen, region.box, image.shape)


def _loss(affinities: npt.NDArray[np.uint8], targets: npt.NDArray[np.bool_], counts: npt.NDArray[np.bool_]) -> float:
    # 0 and 255 stand for whatever rounds to them: half a step from certainty.
    logits = torch.from_numpy(affinities).float().div(255).clamp(0.5 / 255, 1 - 0.5 / 255).logit()
    return float(balanced_loss(logits[None], torch.from_numpy(targets)[None], torch.from_numpy(counts)[None]))


def average_precision(wanted: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> float:
    """Area under the precision-recall curve, both counts by uint8 score, of finding the wanted by low scores.

    Ties share one point of the curve, as in scikit-learn's `average_precision_score`. NaN if nothing is wanted.

    >>> average_precision(np.array([1, 0]), np.array([0, 3]))
    1.0
    """
    found = np.cumsum(wanted)
    claimed = found + np.cumsum(others)
    if found[-1] == 0:
        return float("nan")
    return float(np.sum(wanted * found / np.maximum(claimed, 1)) / found[-1])
