"""Commands that begin, go on with and stop runs: run, submit, resume, retry, cancel."""

from __future__ import annotations

from typing import Any

import click

from neuroshed.cli.base import at_work, command, json_option, main, run_argument, settings_option, show
from neuroshed.geometry import Vec
from neuroshed.terminal.state import print_ended, print_submitted
from neuroshed.terminal.tables import print_summary

verify_writes_option = click.option(
    "--verify-writes", is_flag=True, help="Read back all that is written, and compare. Slower."
)
detach_option = click.option("--detach", is_flag=True, help="In the background, as `submit` does.")


where_option = click.option(
    "--cluster", help="Where: a word such as slurm, an address, or a YAML file. The same as --set cluster=..."
)
elsewhere_option = click.option(
    "--cluster", help="Where from now on: a word such as local, an address, or a YAML file."
)


def _with_cluster(settings: tuple[str, ...], cluster: str | None) -> tuple[str, ...]:
    return settings if cluster is None else (*settings, f"cluster={cluster}")


@main.command()
@click.argument("workflow")
@settings_option
@where_option
@verify_writes_option
@json_option
@command
def run(workflow: str, settings: tuple[str, ...], cluster: str | None, verify_writes: bool, as_json: bool) -> None:
    """Run WORKFLOW: a YAML file, or the name of a shipped one. Run again, it does only what is missing.

    Ctrl-C finishes the blocks that are at work and stops, a second one stops at once; either way all that was done is
    kept.

    Example: neuroshed run segment --set image=a.zarr --set output=run1 --set block_shape=[64,64,64]
    """
    from neuroshed import api

    with at_work() as (control, watch):
        summary = api.run(
            workflow, _with_cluster(settings, cluster), watch, verify_writes=verify_writes, control=control
        )
    show(summary, as_json, print_summary)


@main.command()
@click.argument("workflow")
@settings_option
@where_option
@verify_writes_option
@json_option
@command
def submit(workflow: str, settings: tuple[str, ...], cluster: str | None, verify_writes: bool, as_json: bool) -> None:
    """Run WORKFLOW in the background, so that it goes on when this terminal is closed; with `--cluster slurm` as a job.

    The workflow is checked first; returns when the run has begun. `status --watch` follows it, `cancel` stops it.

    Example: neuroshed submit segment --set image=a.zarr --set output=run1
    """
    from neuroshed import api

    show(api.submit(workflow, _with_cluster(settings, cluster), verify_writes=verify_writes), as_json, print_submitted)


@main.command()
@run_argument
@verify_writes_option
@detach_option
@elsewhere_option
@json_option
@command
def resume(run_folder: str, verify_writes: bool, detach: bool, cluster: str | None, as_json: bool) -> None:
    """Go on with RUN where it stopped; failed blocks are tried again. `--cluster`: elsewhere than before.

    Example: neuroshed resume run1
    """
    from neuroshed import api

    chosen: dict[str, Any] = {"verify_writes": verify_writes, "cluster": cluster}
    if detach:
        show(api.resume(run_folder, **chosen, detach=True), as_json, print_submitted)
        return
    with at_work() as (control, watch):
        summary = api.resume(run_folder, watch, **chosen, control=control)
    show(summary, as_json, print_summary)


def _block(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[Vec]:
    blocks: list[Vec] = []
    for value in values:
        try:
            z, y, x = map(int, value.strip("[]() ").split(","))
        except ValueError:
            raise click.BadParameter(f"got {value!r}; needed are three numbers such as 0,1,2") from None
        blocks.append((z, y, x))
    return blocks


@main.command()
@run_argument
@click.option("--stage", help="Only blocks of this stage, as `status` names it.")
@click.option("--blocks", multiple=True, metavar="Z,Y,X", callback=_block, help="Only this block. Repeatable.")
@verify_writes_option
@detach_option
@elsewhere_option
@json_option
@command
def retry(
    run_folder: str,
    stage: str | None,
    blocks: list[Vec],
    verify_writes: bool,
    detach: bool,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Go on with RUN, but of the blocks that failed try only some again, and leave the others set aside.

    Example: neuroshed retry run1 --stage predict --blocks 0,1,2
    """
    from neuroshed import api

    chosen: dict[str, Any] = {"stage": stage, "blocks": blocks, "verify_writes": verify_writes, "cluster": cluster}
    if detach:
        show(api.retry(run_folder, **chosen, detach=True), as_json, print_submitted)
        return
    with at_work() as (control, watch):
        summary = api.retry(run_folder, watch, **chosen, control=control)
    show(summary, as_json, print_summary)


@main.command()
@run_argument
@click.option("--drain", is_flag=True, help="Finish the blocks that are at work first.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait for an answer. Default: 60.")
@json_option
@command
def cancel(run_folder: str, drain: bool, timeout: float | None, as_json: bool) -> None:
    """Stop RUN, from any terminal or machine that sees its folder. All that was done is kept.

    Example: neuroshed cancel run1 --drain
    """
    from neuroshed import api

    summary = api.cancel(run_folder, drain=drain, timeout=timeout, tell=lambda text: click.echo(text, err=True))
    show(summary, as_json, print_ended)
