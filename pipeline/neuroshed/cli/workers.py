"""Commands about clusters: doctor, cluster certs, and the processes that work for runs."""

from __future__ import annotations

from pathlib import Path

import click

from neuroshed.cli.base import cluster_of, cluster_option, command, json_option, main, show
from neuroshed.engine.settings import SCHEDULER_PORT
from neuroshed.errors import NeuroshedError
from neuroshed.terminal.tables import print_doctor


@main.command()
@cluster_option
@click.option(
    "--output",
    default=".",
    show_default=True,
    help="Folder or bucket, where runs are to be written.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=300, show_default=True, help="Seconds to wait for workers."
)
@json_option
@command
def doctor(cluster: str | None, output: str, timeout: float, as_json: bool) -> None:
    """Examine the workers of a cluster before a run: one line a check, and what to do if it fails. Exit code 1 if one
    does.

    Example: neuroshed doctor --cluster slurm --output /shared/runs
    """
    from neuroshed import api

    used = cluster_of(cluster or "local")
    report = api.doctor(used, output, seconds=timeout, tell=lambda text: click.echo(text, err=True))
    show(report, as_json, print_doctor)
    if report["faults"]:
        raise SystemExit(1)


@main.group()
def cluster() -> None:
    """Prepare a cluster of one's own.

    Example: neuroshed cluster certs ~/neuroshed-certs
    """


@cluster.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True, help="How long they are valid.")
@click.option("--at", type=click.Path(path_type=Path), help="Where FOLDER will be on those machines, if elsewhere.")
@command
def certs(folder: Path, days: int, at: Path | None) -> None:
    """Write certificates for a Dask scheduler of your own into FOLDER, and Dask's settings for them.

    Copy FOLDER, under the same path, to every machine of the cluster, readable by you alone: whoever has it can run
    code there.

    Example: neuroshed cluster certs ~/neuroshed-certs
    """
    from neuroshed import api

    for name, file in api.cluster_certificates(folder, days=days, at=at).items():
        click.echo(f"{name:16} {file}")
    click.echo(f"use them    export DASK_CONFIG={(at or folder.resolve()) / 'dask.yaml'}")


@main.command(hidden=True)
@click.argument("invitation")
@click.option("--name", required=True, help="By which the run knows it.")
@click.option("--cores", type=int, required=True, help="Blocks at a time.")
@click.option("--memory-gb", type=float, required=True, help="That they share.")
@click.option("--gpus", type=int, default=0, help="A process for each.")
@click.option("--alive", type=click.Path(path_type=Path), help="File to touch every few seconds.")
def worker(invitation: str, name: str, cores: int, memory_gb: float, gpus: int, alive: Path | None) -> None:
    """Work for the run whose INVITATION this is (a file, or - for standard input), until it is over, or for the
    scheduler of that address, with the certificates of DASK_CONFIG.
    """
    from neuroshed.engine.joining import join

    try:
        join(invitation, name, cores, memory_gb, gpus, alive)
    except NeuroshedError as error:
        raise click.ClickException(str(error)) from error


@main.command(hidden=True)
@click.option("--host", default="", help="Address to listen at; by default all of this machine.")
@click.option("--port", type=int, default=SCHEDULER_PORT, show_default=True, help="For workers and coordinators.")
@click.option("--health", type=int, default=8787, show_default=True, help="Port of /health, for probes; 0: any.")
def scheduler(host: str, port: int, health: int) -> None:
    """Be a scheduler for workers and coordinators that have the certificates of DASK_CONFIG, until told to stop."""
    from neuroshed.engine.serving import serve

    try:
        serve(host, port, health)
    except NeuroshedError as error:
        raise click.ClickException(str(error)) from error
