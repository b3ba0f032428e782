"""Commands before and beside runs: import, init, train, demo."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from neuroshed.cli.base import box_of, box_option, cluster_of, cluster_option, command, json_option, main
from neuroshed.terminal.bars import Bars
from neuroshed.terminal.tables import print_scores


@main.command()
@click.option("--output", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--threshold", "thresholds", multiple=True, default=("0.3", "0.5"), show_default=True, help="Repeatable.")
@click.option("--fresh", is_flag=True, help="Remove an earlier demo's results first.")
@cluster_option
@json_option
@command
def demo(output: Path, thresholds: tuple[str, ...], fresh: bool, cluster: str | None, as_json: bool) -> None:
    """Segment the real volume that ships with neuroshed, and score it.

    Example: neuroshed demo --output demo --threshold 0.3 --threshold 0.5
    """
    from neuroshed.showcase import clear
    from neuroshed.showcase import demo as run_demo

    if fresh:
        clear(output)
    with Bars() as bars:
        result = run_demo(output, thresholds, cluster=cluster_of(cluster), watch=bars)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print_scores(result["scores"])
    click.echo(f"segmentations: {', '.join(result['segmentations'].values())}")
    click.echo(f"figure: {result['figure']}")


@main.command()
@click.argument("name", default="segment")
@click.argument("target", required=False)
@command
def init(name: str, target: str | None) -> None:
    """Write a commented copy of the shipped workflow NAME to TARGET (default: NAME.yaml).

    Example: neuroshed init segment my.yaml
    """
    from neuroshed import api

    click.echo(f"wrote {api.init(name, target or f'{name}.yaml')}")


@main.command(name="import")
@click.argument("source")
@click.argument("target")
@click.option(
    "--voxel-size", type=float, default=None, nargs=3, metavar="Z Y X", help="nm. Default: what SOURCE says of itself."
)
@click.option(
    "--offset",
    type=float,
    default=None,
    nargs=3,
    metavar="Z Y X",
    help="Place of SOURCE's first voxel, nm. Default: what SOURCE says, or 0.",
)
@click.option("--dataset", help="Array in HDF5, N5 or Zarr, or scale of precomputed. Default: the only one or finest.")
@box_option("Import only this box")
@click.option(
    "--downsample", type=int, default=None, nargs=3, metavar="Z Y X", help="Make one of so many voxels of SOURCE."
)
@click.option(
    "--labels/--image",
    default=None,
    help="Downsample to the most frequent label, or to the mean. Default: what SOURCE says of itself, else images have "
    "8 or 16 bits, labels more.",
)
@click.option("--range", "intensity", type=float, nargs=2, metavar="LOW HIGH", help="Rescale these values to 0..255.")
@click.option("--block", type=int, default=None, nargs=3, metavar="Z Y X", help="Voxels of one task and file.")
@click.option("--pyramid", is_flag=True, help="Also write smaller levels, for viewers.")
@cluster_option
@command
def import_(
    source: str,
    target: str,
    voxel_size: tuple[float, float, float] | None,
    offset: tuple[float, float, float] | None,
    dataset: str | None,
    box: tuple[int, ...] | None,
    downsample: tuple[int, int, int] | None,
    labels: bool | None,
    intensity: tuple[float, float] | None,
    block: tuple[int, int, int] | None,
    pyramid: bool,
    cluster: str | None,
) -> None:
    """Bring SOURCE in as the OME-Zarr volume TARGET, a folder or in a bucket.

    SOURCE is a TIFF stack, a folder of TIFF, PNG or JPEG sections, HDF5, MRC or .npy on disk, or Zarr, N5 or
    Neuroglancer precomputed on disk, s3://, gs://, az:// or https://.

    Example: neuroshed import stack.h5 a.zarr --dataset raw --voxel-size 10 10 10

    Example: neuroshed import https://host/em.precomputed part.zarr --box 0 0 0 64 512 512 --downsample 1 2 2
    """
    from neuroshed import api

    with Bars() as bars:
        path = api.import_volume(
            source,
            target,
            voxel_size,
            offset=offset,
            dataset=dataset,
            intensity=intensity,
            box=box_of(box),
            downsample=downsample,
            labels=labels,
            block_shape=block,
            pyramid=pyramid,
            cluster=cluster_of(cluster),
            watch=bars,
        )
    if voxel_size is None:
        told = " x ".join(f"{side:g}" for side in api.volume_info(path, samples=1)["voxel_size"])
        click.echo(f"voxel size {told} nm, {f'by what {source} says' if downsample else f'as {source} says'}")
    click.echo(f"wrote {path}")


@main.command()
@click.argument("config")
@click.option("--from", "start_from", metavar="MODEL", help="Checkpoint or model whose weights to start from.")
@command
def train(config: str, start_from: str | None) -> None:
    """Train a network by the YAML file CONFIG, or go on with the training in its output folder.

    Example: neuroshed init train && neuroshed train train.yaml

    On several GPUs: torchrun --standalone --nproc-per-node 4 -m neuroshed train train.yaml
    """
    from neuroshed import api

    console = Console(stderr=True)

    def show(event: dict[str, Any]) -> None:
        values = (f"{key} {value:.4g}" for key, value in event.items() if isinstance(value, float))
        console.print(f"step {event['step']:>7}  {event['event']}: " + "  ".join(values), highlight=False)

    path = api.train(config, start_from=start_from, progress=show)
    if os.environ.get("RANK", "0") == "0":  # under torchrun one process speaks for all
        click.echo(f"best model: {path}")
