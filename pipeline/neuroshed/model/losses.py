"""Training losses: binary cross entropy in which edges inside and between neurons weigh the same, and descriptors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A patch with hardly any boundary must not let a handful of edges decide the step (the limits of gunpowder's
# BalanceLabels).
RAREST = 0.05


def descriptor_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the descriptors sigmoid(logits), over targets that are not NaN; a float scalar.

    Both are float `(n, 10, z, y, x)`; a batch without any target has loss 0.
    """
    counts = targets.isfinite()
    errors = (logits.float().sigmoid() - targets.nan_to_num()).square() * counts
    return errors.sum() / counts.sum().clamp(min=1)


def balanced_loss(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Mean binary cross entropy over the edges that count, balanced in each channel; a float scalar.

    `logits` float, `targets` and `counts` bool, all `(n, channels, z, y, x)`. In each channel the two classes get the
    weights 1 / (2 f) and 1 / (2 (1 - f)), where f is the share of edges with affinity 1 among those that count,
    clipped to 0.05..0.95. A batch in which nothing counts has loss 0.

    >>> zeros = torch.zeros(1, 1, 1, 1, 4)
    >>> float(balanced_loss(zeros, zeros > 0, zeros > 0))
    0.0
    """
    every = (0, 2, 3, 4)
    total = counts.sum(every, dtype=torch.float32)
    share = (targets & counts).sum(every, dtype=torch.float32) / total.clamp(min=1)
    share = share.clamp(RAREST, 1 - RAREST).view(1, -1, 1, 1, 1)
    weights = torch.where(targets, 0.5 / share, 0.5 / (1 - share)) * counts
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), weights, reduction="sum")
    return losses / total.sum().clamp(min=1)
