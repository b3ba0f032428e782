"""Commands about volumes: volume info, pyramid."""

from __future__ import annotations

import click

from neuroshed.cli.base import cluster_of, cluster_option, command, json_option, main, show
from neuroshed.terminal.bars import Bars
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


@main.command()
@click.argument("path", metavar="VOLUME")
@click.option(
    "--labels/--image", default=None, help="Most frequent label, or mean. Default: labels from 32-bit integers on."
)
@click.option(
    "--levels", type=click.IntRange(min=1), help="How many. Default: until no side is longer than 128 voxels."
)
@cluster_option
@json_option
@command
def pyramid(path: str, labels: bool | None, levels: int | None, cluster: str | None, as_json: bool) -> None:
    """Add smaller levels to VOLUME, one of neuroshed's, for viewers; readers see them when all are whole.

    Example: neuroshed pyramid a.zarr
    """
    from neuroshed import api

    with Bars() as bars:
        found = api.pyramid(path, labels=labels, levels=levels, cluster=cluster_of(cluster), watch=bars)
    show(found, as_json, lambda told: click.echo(f"{told['volume']} has {len(told['shapes'])} levels"))
