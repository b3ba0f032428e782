"""The command that a run gives to the machines that work for it; nobody else calls it."""

from __future__ import annotations

import click

from neuroshed.cli.base import main
from neuroshed.errors import NeuroshedError


@main.command(hidden=True)
@click.argument("invitation")
@click.option("--name", required=True, help="By which the run knows it.")
@click.option("--cores", type=int, required=True, help="Blocks at a time.")
@click.option("--memory-gb", type=float, required=True, help="That they share.")
@click.option("--gpus", type=int, default=0, help="A process for each.")
def worker(invitation: str, name: str, cores: int, memory_gb: float, gpus: int) -> None:
    """Work for the run whose INVITATION this is (a file, or - for standard input), until it is over."""
    from neuroshed.engine.joining import join

    try:
        join(invitation, name, cores, memory_gb, gpus)
    except NeuroshedError as error:
        raise click.ClickException(str(error)) from error
