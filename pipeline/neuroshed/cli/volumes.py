"""Commands about volumes: volume info, crop, compare, check."""

from __future__ import annotations

import sys

import click

from neuroshed.cli.base import (
    box_of,
    box_option,
    cluster_of,
    cluster_option,
    command,
    json_option,
    main,
    show,
    work_option,
)
from neuroshed.terminal.bars import Bars
from neuroshed.terminal.volumes import print_checked, print_compared, print_volume


@main.group()
def volume() -> None:
    """Look at volumes, copy parts of them, compare and check them.

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


@volume.command()
@click.argument("path", metavar="VOLUME")
@click.argument("target")
@box_option("The part. Default: all of it")
@click.option("--block", type=int, default=None, nargs=3, metavar="Z Y X", help="Voxels of one task and file.")
@cluster_option
@command
def crop(
    path: str, target: str, box: tuple[int, ...] | None, block: tuple[int, int, int] | None, cluster: str | None
) -> None:
    """Write a part of VOLUME (Zarr) as the OME-Zarr volume TARGET, with its channels, type and place in space.

    Example: neuroshed volume crop a.zarr part.zarr --box 0 0 0 100 512 512
    """
    from neuroshed import api

    with Bars() as bars:
        made = api.volume_crop(path, target, box_of(box), block_shape=block, cluster=cluster_of(cluster), watch=bars)
    click.echo(f"wrote {made}")


@volume.command()
@click.argument("left", metavar="A")
@click.argument("right", metavar="B")
@click.option("--labels", is_flag=True, help="Labels may have other names in A than in B; 0 is 0 in both.")
@work_option
@cluster_option
@json_option
@command
def compare(left: str, right: str, labels: bool, work: str | None, cluster: str | None, as_json: bool) -> None:
    """Tell whether the volumes A and B (Zarr) hold the same: shape, type, voxel size, offset and every voxel.

    How they are stored does not matter: chunks, codecs, order of bytes. Exit code 0 if they do, 1 if not, 2 if that
    cannot be known, as `cmp` does.

    Example: neuroshed volume compare run1/segment-0123456789ab/0.5.zarr other.zarr --labels
    """
    from neuroshed import api

    with Bars() as bars:
        found = api.volume_compare(left, right, labels=labels, work=work, cluster=cluster_of(cluster), watch=bars)
    show(found, as_json, print_compared)
    sys.exit(0 if found["same"] else 1)


@volume.command()
@click.argument("path", metavar="VOLUME")
@click.option("--redo", is_flag=True, help="Of a run's volume: forget the blocks that are damaged; resume redoes them.")
@work_option
@cluster_option
@json_option
@command
def check(path: str, redo: bool, work: str | None, cluster: str | None, as_json: bool) -> None:
    """Read every file of VOLUME (Zarr), and tell which are missing, empty or damaged, and how they come back.

    Exit code 0 if none is, 1 if some are, 2 if that cannot be known. A missing file stands for fill values; it is
    damage in volumes of which all was written: those of import and crop, and those of runs where blocks are done.

    Example: neuroshed volume check run1/segment-0123456789ab/0.5.zarr
    """
    from neuroshed import api

    with Bars() as bars:
        found = api.volume_check(path, redo=redo, work=work, cluster=cluster_of(cluster), watch=bars)
    show(found, as_json, print_checked)
    sys.exit(1 if found["damaged"] else 0)
