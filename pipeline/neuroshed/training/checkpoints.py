"""Checkpoints: everything a training needs to go on as if it had never stopped.

Samples and learning rate are pure functions of the step, so weights, their average, optimiser, the step, torch's random
state and the best score so far are all there is. Files are replaced whole and loaded with
`weights_only=True`, which runs no code.
"""

from __future__ import annotations

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroshed.errors import InputError
from neuroshed.storage.files import make_folder, replace_file

FORMAT_VERSION = 2
_NAME = re.compile(r"step_(\d{8})\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; `step` steps are done."""

    path: Path
    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    """Averaged weights; empty if the training averages nothing."""
    optimiser: dict[str, Any]
    random_state: Tensor
    best_score: float

    def restore(self, net: nn.Module, average: nn.Module | None, optimiser: torch.optim.Optimizer) -> None:
        """Put weights, their average, optimiser and random state back."""
        net.load_state_dict(self.weights)
        if average:
            average.load_state_dict(self.average)
        optimiser.load_state_dict(self.optimiser)
        torch.set_rng_state(self.random_state)


def save_checkpoint(
    folder: Path,
    step: int,
    net: nn.Module,
    average: nn.Module | None,
    optimiser: torch.optim.Optimizer,
    best_score: float,
    keep: int,
) -> Path:
    """Write the checkpoint after `step` steps and remove all but the newest `keep`; returns its path."""
    make_folder(folder)
    buffer = io.BytesIO()
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "weights": net.state_dict(),
        "average": average.state_dict() if average else {},
        "optimiser": optimiser.state_dict(),
        "random_state": torch.get_rng_state(),
        "best_score": best_score,
    }
    torch.save(content, buffer)
    path = replace_file(folder / f"step_{step:08d}.pt", buffer.getbuffer())
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to CPU memory; raises `InputError` if it is missing, damaged or of another format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path} has checkpoint format {content['format_version']}, this version reads {FORMAT_VERSION}"
            )
        return Checkpoint(
            path=path,
            step=content["step"],
            weights=content["weights"],
            average=content["average"],
            optimiser=content["optimiser"],
            random_state=content["random_state"],
            best_score=content["best_score"],
        )
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a usable checkpoint ({reason}); use an older one or start anew") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))
