"""What the command line shows: a progress bar for each stage, and tables of plans, states and scores."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from neuroshed.kernels.metrics import RAND_VARIANTS


class Bars:
    """A bar for each stage on standard error; call it with a coordinator's progress."""

    def __init__(self) -> None:
        self._bars = Progress(
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
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, progress: Any) -> None:
        """Show the state of a run (an `engine.coordinator.Progress`)."""
        for fingerprint, counts in progress.stages.items():
            if fingerprint not in self._tasks:
                title = progress.titles[fingerprint]
                self._tasks[fingerprint] = self._bars.add_task(title, total=counts.total, note="", start=False)
            task = self._tasks[fingerprint]
            if counts.done or counts.running:
                self._bars.start_task(task)
            note = f"[red]{counts.failed} failed[/red]" if counts.failed else ""
            self._bars.update(task, completed=counts.done, note=note)
            if counts.done == counts.total:
                self._bars.stop_task(task)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3 * 2**30)
    '3.0 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def print_plan(plan: dict[str, Any]) -> None:
    """A table of stages, and what the network computes twice."""
    table = Table(title=f"{plan['run']}: {plan['voxels']:,} voxels in {plan['region']}, blocks {plan['block_shape']}")
    for column in ("stage", "blocks", "memory per task", "output (uncompressed)"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in plan["stages"]:
        table.add_row(row["stage"], f"{row['blocks']:,}", size(row["memory_bytes"]), size(row["output_bytes"]))
    console = Console()
    console.print(table)
    if plan["redundant_compute"] is not None:
        console.print(
            f"redundant compute: {plan['redundant_compute']:.2f} voxels go through the network for each voxel written; "
            f"blocks that are multiples of {plan['suggested_block_multiple']} need the least"
        )


def print_status(summary: dict[str, Any]) -> None:
    """A table of stages and the failures."""
    table = Table(title=f"{summary['run']}: {summary['status']}")
    for column in ("stage", "done", "of", "failed", "task seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for title, row in summary["stages"].items():
        table.add_row(title, f"{row['done']:,}", f"{row['blocks']:,}", f"{row['failed']:,}", f"{row['seconds']:,.1f}")
    console = Console()
    console.print(table)
    for alarm in summary["alarms"]:
        console.print(f"ALARM: {alarm}", markup=False, highlight=False)
    for failure in summary["failures"][:10]:
        where = f"{failure['stage']} {failure['step']} {failure['block']}"
        console.print(f"failed: {where}: {failure['error']}", markup=False, highlight=False)


def print_summary(summary: dict[str, Any]) -> None:
    """How a run ended and where its outputs are."""
    console = Console(soft_wrap=True)
    computed = sum(row["done"] for row in summary["stages"].values()) - summary["restored_blocks"]
    console.print(
        f"{summary['status']}: {computed} blocks computed, {summary['restored_blocks']} were done before, "
        f"{summary['wall_seconds']:.1f} s",
        highlight=False,
    )
    for alarm in summary["alarms"]:
        console.print(f"ALARM: {alarm}", markup=False, highlight=False)
    for name in ("affinities", "fragments"):
        if name in summary:
            console.print(f"{name}: {summary[name]}", markup=False, highlight=False)
    for threshold, path in summary.get("segmentations", {}).items():
        console.print(f"segmentation at {threshold}: {path}", markup=False, highlight=False)


def print_verified(summary: dict[str, Any]) -> None:
    """How many blocks of each step were computed again, all equal."""
    console = Console(soft_wrap=True)
    for title, row in summary["stages"].items():
        console.print(f"{title}: {row['done']:,} blocks equal", highlight=False)
    for title in summary["unfinished"]:
        console.print(f"not verified, since it is not done: {title}", highlight=False)


def print_scores(scores: dict[str, dict[str, Any]]) -> None:
    """A table of scores, a row for each threshold."""
    table = Table(title="VOI in bits (split + merge) and adapted Rand errors; lower is better", title_justify="left")
    for column in ("threshold", "split", "merge", "VOI", *RAND_VARIANTS, "labels / truth"):
        table.add_column(column, justify="right", no_wrap=True)
    for threshold, row in scores.items():
        rand = (f"{row['adapted_rand'][variant]['error']:.3f}" for variant in RAND_VARIANTS)
        numbers = (f"{row[name]:.3f}" for name in ("voi_split", "voi_merge", "voi"))
        table.add_row(threshold, *numbers, *rand, f"{row['segments']} / {row['truth_labels']}")
    Console().print(table)
