"""The shipped network as somebody else's, with and without mistakes in what it gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from neuroshed.geometry import Box
from neuroshed.storage.models import load_model

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda answer: answer,
    "shifted": lambda answer: torch.roll(answer, 1, 3),
    "swapped": lambda answer: answer[:, [2, 1, 0]],
    "opposite": lambda answer: torch.stack([torch.roll(answer[:, axis], -1, axis + 1) for axis in range(3)], 1),
    "inverted": lambda answer: 1 - answer,
    "constant": lambda answer: torch.full_like(answer, 0.3),
    "no number": lambda answer: answer.where(answer > 0.02, torch.nan),
    "few channels": lambda answer: answer[:, :2],
}


@cache
def answers() -> Callable[[Tensor], Tensor]:
    """What the network gives for image values. Checks of many mistakes show it the same patches: it sees each once."""
    network = load_model("fibsem").network((0.0, 255.0), "cpu", "float32")
    known: dict[bytes, Tensor] = {}

    def answer(patch: Tensor) -> Tensor:
        z, y, x = patch.shape[1:]
        content = patch.numpy().tobytes()
        if content not in known:
            known[content] = network.affinities(patch[None], Box((0, 0, 0), (z, y, x)))[0]
        return known[content]

    return lambda image: torch.stack([answer(patch) for patch in image])


def fibsem(change: str) -> Callable[[Tensor], Tensor]:
    """A function on raw image values that gives probabilities, changed in one way."""
    return lambda image: CHANGES[change](answers()(image))
