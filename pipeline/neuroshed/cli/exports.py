"""Commands that make volumes ready for other programs: pyramid, export."""

from __future__ import annotations

from typing import Any

import click

from neuroshed.cli.base import cluster_of, cluster_option, command, json_option, main, show
from neuroshed.terminal.bars import Bars


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


@main.command()
@click.argument("source", metavar="VOLUME")
@click.argument("target")
@click.option(
    "--format",
    "form",
    type=click.Choice(["ome-zarr", "precomputed", "tiff"]),
    default="ome-zarr",
    show_default=True,
    help="precomputed is Neuroglancer's, sharded; tiff a folder of sections, or one file if TARGET ends in .tif.",
)
@click.option("--threshold", help="Which segmentation, if VOLUME is a run with several.")
@click.option("--image", help="OME-Zarr: write this image, with VOLUME among its labels.")
@click.option("--labels/--no-labels", default=None, help="What VOLUME holds. Default: labels from 32-bit integers on.")
@click.option(
    "--encoding", type=click.Choice(["raw", "png", "jpeg"]), help="Precomputed images. Default: raw, lossless."
)
@click.option(
    "--voxel-offset",
    type=int,
    nargs=3,
    metavar="Z Y X",
    help="Precomputed: of the first voxel. Default: VOLUME's.",
)
@click.option("--compression", type=click.Choice(["none", "zlib"]), help="One TIFF. Default: none.")
@cluster_option
@command
def export(
    source: str,
    target: str,
    form: Any,
    threshold: str | None,
    image: str | None,
    labels: bool | None,
    encoding: Any,
    voxel_offset: tuple[int, int, int] | None,
    compression: Any,
    cluster: str | None,
) -> None:
    """Write VOLUME, or the segmentation of a run, to TARGET for other programs; TARGET (a folder, s3://, gs:// or
    az://) appears when it is whole.

    Example: neuroshed export run1 run1.precomputed --threshold 0.5 --format precomputed

    Image and labels in one OME-Zarr: neuroshed export run1 both.zarr --threshold 0.5 --image a.zarr
    """
    from neuroshed import api

    with Bars() as bars:
        path = api.export(
            source,
            target,
            format=form,
            image=image,
            threshold=threshold,
            labels=labels,
            encoding=encoding,
            voxel_offset=voxel_offset,
            compression=compression,
            cluster=cluster_of(cluster),
            watch=bars,
        )
    click.echo(f"wrote {path}")
