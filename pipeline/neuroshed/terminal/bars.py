"""A progress bar for each stage of a run that works in this terminal."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from neuroshed.engine.control import Control, Wish


class _WithFooter(Progress):
    """Bars with a line below them."""

    footer: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.footer:
            yield Text(self.footer)


class Bars:
    """A bar for each stage on standard error; call it with a coordinator's progress."""

    def __init__(self, control: Control | None = None) -> None:
        """`control` is that of the run, of which is told when it stops."""
        self._control = control or Control()
        self._wish = Wish.RUN
        self._bars = _WithFooter(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("blocks"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.footer = ""
        if self._tasks:
            self._bars.stop()

    def __call__(self, progress: Any) -> None:
        """Show the state of a run (an `engine.progress.Progress`)."""
        # Not before there is anything to show: an empty display leaves an empty line.
        if not self._tasks:
            self._bars.start()
        for fingerprint, counts in progress.stages.items():
            if fingerprint not in self._tasks:
                title = progress.titles[fingerprint]
                self._tasks[fingerprint] = self._bars.add_task(title, total=counts.total, note="", start=False)
            task = self._tasks[fingerprint]
            if counts.done or counts.running:
                self._bars.start_task(task)
            note = f"[red]{counts.failed} failed[/red]" if counts.failed else ""
            total = counts.total - counts.skipped
            self._bars.update(task, completed=counts.done, total=total, note=note)
            if counts.done == total:
                self._bars.stop_task(task)
        self._foot(progress)

    def _foot(self, progress: Any) -> None:
        wish = self._control.wish
        text = progress.note
        if wish == Wish.DRAIN:
            running = sum(counts.running for counts in progress.stages.values())
            text = (
                f"{self._control.reason}: finishing up to {running} blocks that are at work; Ctrl-C again stops at once"
            )
        elif wish == Wish.STOP:
            text = f"{self._control.reason}: stopping"
        # Where bars cannot be drawn again in place, as in a log file, only what is new.
        if wish != self._wish and not self._bars.console.is_terminal:
            self._bars.console.print(text, markup=False, highlight=False)
        self._wish = wish
        self._bars.footer = text
