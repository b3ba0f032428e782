"""Tables and lines that commands print: plans, summaries, scores, what can be removed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neuroshed.kernels.metrics import RAND_VARIANTS
from neuroshed.terminal.units import size


def print_plan(plan: dict[str, Any]) -> None:
    """A table of stages, what they take on disk, and what the network computes twice."""
    table = Table(title=f"{plan['run']}: {plan['voxels']:,} voxels in {plan['region']}, blocks {plan['block_shape']}")
    skipped = ["skipped"] if any(row["skipped"] for row in plan["stages"]) else []
    for column in ("stage", "blocks", *skipped, "memory per task", "output (uncompressed)", "files"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in plan["stages"]:
        counts = (f"{row[name]:,}" for name in ("blocks", *skipped))
        table.add_row(
            row["stage"], *counts, size(row["memory_bytes"]), size(row["output_bytes"]), f"{row['output_files']:,}"
        )
    console = Console()
    console.print(table)
    for line in (_disk(plan), _files(plan)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if plan["redundant_compute"] is not None:
        console.print(
            f"redundant compute: {plan['redundant_compute']:.2f} voxels go through the network for each voxel written; "
            f"blocks that are multiples of {plan['suggested_block_multiple']} need the least"
        )
    for warning in plan["warnings"]:
        console.print(f"WARNING: {warning}", markup=False, highlight=False, soft_wrap=True)


def _disk(plan: dict[str, Any]) -> str:
    """One line: the most that is on disk at a time, and what is there at the end."""
    kept = [row["stage"] for row in plan["stages"] if row["kept"]]
    dropped = [row["stage"] for row in plan["stages"] if not row["kept"]]
    end = f"kept: {', '.join(kept)}"
    end += f"; deleted once nothing reads them: {', '.join(dropped)}" if dropped else ""
    return f"disk: at most {size(plan['peak_disk_bytes'])} at a time before compression; {end}"


def _files(plan: dict[str, Any]) -> str:
    """One line: the most files that are there at a time, and how all of it grows with the input."""
    place = "objects" if "://" in plan["run"] else "files"
    each = f"{size(plan['bytes_per_input_tb'])} and {plan['files_per_input_tb']:,} {place}"
    return f"{place}: at most {plan['peak_files']:,} at a time; for each TB of input at most {each}"


def print_model_check(report: dict[str, Any]) -> None:
    """What a patch through a model showed."""
    console = Console(soft_wrap=True)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    line(f"{report['model']} on {report['image']}, {report['box']}, {report['device']}")
    line(
        f"patch {report['patch']}, context {report['context']}, kept {report['kept']}: "
        f"{report['redundant_compute']:.2f} voxels go through the network for each one kept"
    )
    if report["intensity"]:
        line(f"image values {report['intensity'][0]:g} to {report['intensity'][1]:g} are darkest to brightest")
    table = Table()
    for column in ("channel", "lowest", "mean", "highest", "neighbour", "lag z y x", "correlation"):
        table.add_column(column, justify="left" if column == "channel" else "right", no_wrap=True)
    for row in report["channels"]:
        numbers = (f"{row[name]:.3f}" for name in ("lowest", "mean", "highest"))
        told = row.get("neighbour", "patch too small")
        lag = " ".join(f"{value:+.2f}" for value in row.get("lag", ()))
        table.add_row(row["channel"], *numbers, told or "cannot tell", lag, f"{row.get('correlation', 0):.2f}")
    console.print(table)
    seam = report["seam"]
    line(
        f"seams along {seam['axis']}: border of a patch against the middle of another {seam['border']:.2f}/255, inside "
        f"{seam['inside']:.2f}/255"
        if seam
        else "seams: the volume is too small to tell"
    )
    times = ", ".join(f"{seconds:.3g} s at batch size {size}" for size, seconds in report["seconds"].items())
    line(f"a patch takes {times}: {report['voxels_per_second']:,} voxels/s; memory {size(report['memory_bytes'])}")
    line(f"suggested: {', '.join(f'{key} {value}' for key, value in report['suggested'].items())}")
    for fault in report["faults"]:
        line(f"FAULT: {fault}")


def print_summary(summary: dict[str, Any]) -> None:
    """How a run ended and where its outputs are."""
    console = Console(soft_wrap=True)
    computed = sum(row["done"] for row in summary["stages"].values()) - summary["restored_blocks"]
    skipped = sum(row["skipped"] for row in summary["stages"].values())
    console.print(
        f"{summary['status']}: {computed} blocks computed, {summary['restored_blocks']} were done before, "
        f"{f'{skipped} skipped, ' if skipped else ''}{summary['wall_seconds']:.1f} s",
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
    for title in summary["dropped"]:
        console.print(f"not verified, since what it wrote or read was not kept: {title}", highlight=False)


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


def print_sweep(found: dict[str, Any]) -> None:
    """Scores by threshold, the best one, and where its plot is."""
    print_scores(found["scores"])
    console = Console(soft_wrap=True)
    best = found["best_threshold"]
    console.print(f"lowest VOI {found['scores'][best]['voi']:.3f} at threshold {best}", highlight=False)
    if "plot" in found:
        console.print(f"plot: {found['plot']}", markup=False, highlight=False)


def print_finds(found: dict[str, Any]) -> None:
    """What can be removed, and how much that frees, by reason."""
    console = Console()
    if not found["finds"]:
        console.print(f"nothing to remove in {found['run']}", markup=False, highlight=False)
        return
    table = Table()
    for column in ("what", "why", "size"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in found["finds"]:
        name = row["path"].removeprefix(found["run"]).lstrip("/")
        name += f" ({row['files']:,} files)" if row["files"] else ""
        table.add_row(name, row["reason"], size(row["bytes"]))
    console.print(table)
    by_reason = ", ".join(f"{reason} {size(count)}" for reason, count in found["by_reason"].items())
    console.print(f"in all {size(found['bytes'])}: {by_reason}", markup=False, highlight=False)


def print_cleaned(found: dict[str, Any]) -> None:
    """How much was freed."""
    if not found["finds"]:
        print_finds(found)
        return
    told = f"freed {size(found['bytes'])}" if found["removed"] else "nothing was removed"
    Console(soft_wrap=True).print(f"{told} in {found['run']}", markup=False, highlight=False)


def print_doctor(report: dict[str, Any]) -> None:
    """A line for each check of each worker, with the remedy below what is wrong."""
    console = Console(soft_wrap=True)
    for row in report["lines"]:
        mark = "[green]ok  [/]" if row["ok"] else "[red]FAIL[/]"
        where = " ".join(part for part in (row["pool"], row["host"]) if part)
        console.print(f"{mark} {where:20} {row['check']:10} {escape(row['told'])}", highlight=False, soft_wrap=True)
        if row["remedy"]:
            console.print(f"     {escape(row['remedy'])}", highlight=False, soft_wrap=True)
