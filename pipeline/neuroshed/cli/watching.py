"""Commands that only look: plan, status, runs."""

from __future__ import annotations

from contextlib import suppress

import click
from rich.live import Live

from neuroshed.cli.base import command, json_option, main, print_json, run_argument, settings_option, show
from neuroshed.terminal.state import print_runs, print_status, screen
from neuroshed.terminal.tables import print_plan


@main.command()
@click.argument("workflow")
@settings_option
@json_option
@command
def plan(workflow: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Say what WORKFLOW would do: blocks, bytes, memory per task, redundant compute. Writes nothing.

    Example: neuroshed plan segment --set image=a.zarr --set output=run1
    """
    from neuroshed import api

    show(api.plan(workflow, settings), as_json, print_plan)


@main.command()
@run_argument
@click.option("--watch", is_flag=True, help="Show it anew every two seconds until the run ends.")
@click.option(
    "--errors", type=click.IntRange(min=0), default=0, metavar="N", help="Tracebacks and logs of the last N failures."
)
@json_option
@command
def status(run_folder: str, watch: bool, errors: int, as_json: bool) -> None:
    """Say how RUN stands, at work or not. With --watch and --json, a line of JSON every two seconds.

    Example: neuroshed status run1 --watch
    """
    from neuroshed import api

    if not watch:
        show(api.status(run_folder), as_json, lambda summary: print_status(summary, errors))
        return
    # Ctrl-C ends the looking, not the run.
    with suppress(KeyboardInterrupt):
        if as_json:
            for summary in api.follow(run_folder):
                print_json(summary)
            return
        with Live(auto_refresh=False) as display:
            for summary in api.follow(run_folder):
                display.update(screen(summary), refresh=True)


@main.command()
@click.argument("folder", default=".")
@json_option
@command
def runs(folder: str, as_json: bool) -> None:
    """List the runs in FOLDER (default: this one), and how each stands.

    Example: neuroshed runs results
    """
    from neuroshed import api

    show(api.runs(folder), as_json, print_runs)
