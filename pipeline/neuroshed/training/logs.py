"""What a training leaves to read: a log of JSON lines, TensorBoard events and a picture of the loss."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from neuroshed.storage.files import make_folder, replace_file


class TrainingLog:
    """Appends events to `log.jsonl` and `tensorboard/` in the output folder; draws `loss.png` from the former.

    Every event goes to `progress` as well. Opened at step `start`, it drops what a killed run logged beyond its last
    checkpoint.
    """

    def __init__(self, folder: Path, start: int, progress: Callable[[dict[str, Any]], None] | None = None) -> None:
        make_folder(folder)
        self.folder = folder
        self.path = folder / "log.jsonl"
        self.events = [event for event in read_log(self.path) if event["step"] <= start]
        replace_file(self.path, "".join(json.dumps(event) + "\n" for event in self.events).encode())
        self._progress = progress
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, kind: str, step: int, **values: float) -> None:
        """Log an event of a kind after `step` steps, and report it."""
        event = {"event": kind, "step": step, **values}
        self.events.append(event)
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)
        if self._progress:
            self._progress(event)

    def draw(self) -> Path:
        """Draw training loss and held-out scores against the step; returns the PNG's path."""
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for kind, key in (("train", "loss"), ("validation", "loss"), ("validation", "boundary_precision")):
            points = [(e["step"], e[key]) for e in self.events if e["event"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), label=f"{kind}: {key.replace('_', ' ')}")
        axes.set(xlabel="step", ylim=(0, 1))
        axes.legend()
        axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        return replace_file(self.folder / "loss.png", buffer.getbuffer())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a `log.jsonl`; a line that a crash cut short is left out, a missing file is empty."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
