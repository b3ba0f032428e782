"""Commands that work on what runs have made: cut, verify, evaluate, sweep, clean."""

from __future__ import annotations

from typing import Any

import click

from neuroshed.cli.base import (
    box_of,
    box_option,
    cluster_of,
    cluster_option,
    command,
    json_option,
    main,
    run_argument,
    show,
    work_option,
)
from neuroshed.terminal.bars import Bars
from neuroshed.terminal.tables import (
    print_cleaned,
    print_finds,
    print_scores,
    print_summary,
    print_sweep,
    print_verified,
)


@main.command()
@run_argument
@click.option("--threshold", "thresholds", multiple=True, help="Score in 0..1 at which to cut. Repeatable.")
@click.option("--fragments", is_flag=True, help="Also write the fragments before any merge.")
@cluster_option
@json_option
@command
def cut(run_folder: str, thresholds: tuple[str, ...], fragments: bool, cluster: str | None, as_json: bool) -> None:
    """Write the segmentation of RUN at other thresholds; no other stage is touched.

    Example: neuroshed cut run1 --threshold 0.4
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.cut(run_folder, thresholds, fragments=fragments, cluster=cluster_of(cluster), watch=bars)
    show(summary, as_json, print_summary)


@main.command()
@run_argument
@click.option("--blocks", type=click.IntRange(min=1), default=3, show_default=True, help="Blocks of each step.")
@click.option("--all", "everything", is_flag=True, help="All blocks instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which blocks are picked.")
@cluster_option
@json_option
@command
def verify(run_folder: str, blocks: int, everything: bool, seed: int, cluster: str | None, as_json: bool) -> None:
    """Compute some blocks of each stage of RUN again, and compare them with what stands.

    Example: neuroshed verify run1 --blocks 10
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.verify(
            run_folder, blocks=None if everything else blocks, seed=seed, cluster=cluster_of(cluster), watch=bars
        )
    show(summary, as_json, print_verified)


@main.command()
@click.argument("segmentation")
@click.argument("truth")
@box_option("Score only this box")
@work_option
@cluster_option
@json_option
@command
def evaluate(
    segmentation: str, truth: str, box: tuple[int, ...] | None, work: str | None, cluster: str | None, as_json: bool
) -> None:
    """Score SEGMENTATION against TRUTH, both label volumes of one shape: VOI (bits) and adapted Rand error.

    Example: neuroshed evaluate run1/segment-0123456789ab/0.5.zarr truth.zarr
    """
    from neuroshed import api

    region = box_of(box)
    with Bars() as bars:
        scores = api.evaluate(segmentation, truth, box=region, work=work, cluster=cluster_of(cluster), watch=bars)
    show(scores, as_json, lambda found: print_scores({"": found}))


@main.command()
@run_argument
@click.argument("truth")
@click.option("--threshold", "thresholds", multiple=True, help="Score in 0..1. Repeatable. Default: 0.05, 0.1, ...")
@box_option("Score only this box")
@click.option("--plot", help="PNG of VOI split against merge.")
@cluster_option
@json_option
@command
def sweep(
    run_folder: str,
    truth: str,
    thresholds: tuple[str, ...],
    box: tuple[int, ...] | None,
    plot: str | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Score RUN against TRUTH at many thresholds, without writing segmentations, and say which is best.

    Example: neuroshed sweep run1 truth.zarr --plot sweep.png
    """
    from neuroshed import api

    options: dict[str, Any] = {"thresholds": thresholds, "box": box_of(box), "plot": plot}
    with Bars() as bars:
        found = api.sweep(run_folder, truth, **options, cluster=cluster_of(cluster), watch=bars)
    show(found, as_json, print_sweep)


@main.command()
@run_argument
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@command
def clean(run_folder: str, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Free what RUN holds and no run needs: stages of earlier parameters, leftovers, intermediates that nothing reads.

    Says what and how much, and asks. Segmentations of earlier parameters go too.

    Example: neuroshed clean run1 --dry-run
    """
    from neuroshed import api

    if as_json and not (yes or dry_run):
        raise click.UsageError("--json cannot ask; give --yes or --dry-run as well")

    def confirm(found: dict[str, Any]) -> bool:
        if not as_json:
            print_finds(found)
        return yes or click.confirm("remove them?", err=True)

    show(api.clean(run_folder, dry_run=dry_run, confirm=confirm), as_json, print_finds if dry_run else print_cleaned)
