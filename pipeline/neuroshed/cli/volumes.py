"""Commands about volumes: volume info."""

from __future__ import annotations

import click

from neuroshed.cli.base import command, json_option, main, show
from neuroshed.terminal.volumes import print_volume


@main.group()
def volume() -> None:
    """Look at volumes.

    Example: neuroshed volume info a.zarr
    """


@volume.command()
@click.argument("path", metavar="VOLUME")
@click.option(
    "--samples", type=click.IntRange(min=1), default=64, show_default=True, help="Boxes whose values are looked at."
)
@json_option
@command
def info(path: str, samples: int, as_json: bool) -> None:
    """Tell layout, codecs, size on its store, what is empty, and values of samples of VOLUME (Zarr).

    Example: neuroshed volume info a.zarr
    """
    from neuroshed import api

    show(api.volume_info(path, samples=samples), as_json, print_volume)
