"""The balanced loss equals its formula written as a loop, and sees only edges that count."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.model.losses import RAREST, balanced_loss


def plain_loss(logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> float:
    total, number = 0.0, 0
    for channel in range(logits.shape[1]):
        edges = [
            (float(x), bool(t))
            for x, t, c in zip(
                logits[:, channel].ravel(), targets[:, channel].ravel(), counts[:, channel].ravel(), strict=True
            )
            if c
        ]
        share = sum(t for _, t in edges) / max(len(edges), 1)
        share = min(max(share, RAREST), 1 - RAREST)
        for x, t in edges:
            probability = 1 / (1 + math.exp(-x))
            total -= math.log(probability) / (2 * share) if t else math.log(1 - probability) / (2 * (1 - share))
        number += len(edges)
    return total / max(number, 1)


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_the_loss_equals_the_plain_formula(seed: int, joined: float, counted: float) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 2, 1, 3, 4)
    logits = torch.from_numpy(rng.normal(0, 3, shape).astype(np.float32))
    targets, counts = (torch.from_numpy(rng.random(shape) < share) for share in (joined, counted))
    assert float(balanced_loss(logits, targets, counts)) == pytest.approx(plain_loss(logits, targets, counts), rel=1e-3)


def test_edges_that_do_not_count_have_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    counts = torch.rand(1, 3, 2, 2, 2) < 0.5
    balanced_loss(logits, torch.rand(1, 3, 2, 2, 2) < 0.5, counts).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, counts)


def test_both_classes_pull_equally_however_rare_one_is() -> None:
    logits = torch.zeros(1, 1, 1, 1, 10, requires_grad=True)
    targets = torch.tensor([True] * 9 + [False]).view(1, 1, 1, 1, 10)
    balanced_loss(logits, targets, torch.ones_like(targets)).backward()
    assert logits.grad is not None
    assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-6)
