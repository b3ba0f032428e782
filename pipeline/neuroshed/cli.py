"""The command line: arguments to one call, progress and results to the terminal.

Exit code 0 means that everything was done, 1 that blocks failed, 2 that the user has something to mend. With
`--json` the result goes to standard output as one JSON object; progress and messages always go to standard error.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from traceback import format_exc
from typing import Any

import click
from rich.console import Console

from neuroshed import __version__
from neuroshed.errors import NeuroshedError
from neuroshed.geometry import Box
from neuroshed.terminal import Bars, print_plan, print_scores, print_status, print_summary, print_verified


def _command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors into one line and an exit code; a traceback only if asked."""

    @click.option("--traceback", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapped(*args: Any, traceback: bool, **options: Any) -> None:
        try:
            function(*args, **options)
        except NeuroshedError as error:
            if options.get("as_json") and (summary := getattr(error, "summary", None)):
                print(json.dumps(summary, indent=2))
            if traceback:
                click.echo(format_exc(), err=True)
            click.echo(f"neuroshed: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("neuroshed: stopped; what is done is kept, the same command goes on", err=True)
            sys.exit(130)

    return wrapped


_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
_CLUSTER = click.option(
    "--cluster", default=None, help="local, local:4 (processes), in-process, or a scheduler address."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="neuroshed")
def main() -> None:
    """Neurons from electron microscopy, the same whatever the chunking."""


@main.command()
@click.option("--output", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder of results.")
@click.option("--threshold", "thresholds", multiple=True, default=("0.3", "0.5"), show_default=True, help="Repeatable.")
@click.option("--fresh", is_flag=True, help="Remove an earlier demo's results first.")
@_CLUSTER
@_JSON
@_command
def demo(output: Path, thresholds: tuple[str, ...], fresh: bool, cluster: str | None, as_json: bool) -> None:
    """Segment the real volume that ships with neuroshed, and score it.

    Example: neuroshed demo --output demo --threshold 0.3 --threshold 0.5
    """
    from neuroshed.showcase import clear
    from neuroshed.showcase import demo as run_demo

    if fresh:
        clear(output)
    with Bars() as bars:
        result = run_demo(output, thresholds, cluster=_cluster(cluster), watch=bars)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print_scores(result["scores"])
    click.echo(f"segmentations: {', '.join(result['segmentations'].values())}")
    click.echo(f"figure: {result['figure']}")


@main.command()
@click.argument("workflow")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the workflow.")
@_JSON
@_command
def run(workflow: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Run WORKFLOW: a YAML file, or the name of a shipped one. Run again, it does only what is missing.

    Example: neuroshed run segment --set image=a.zarr --set output=run1 --set block_shape=[64,64,64]
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.run(workflow, settings, bars)
    _show(summary, as_json, print_summary)


@main.command()
@click.argument("workflow")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of the workflow.")
@_JSON
@_command
def plan(workflow: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Say what WORKFLOW would do: blocks, bytes, memory per task, redundant compute. Writes nothing.

    Example: neuroshed plan segment --set image=a.zarr --set output=run1
    """
    from neuroshed import api

    _show(api.plan(workflow, settings), as_json, print_plan)


@main.command()
@click.argument("name", default="segment")
@click.argument("target", required=False)
@_command
def init(name: str, target: str | None) -> None:
    """Write a commented copy of the shipped workflow NAME to TARGET (default: NAME.yaml).

    Example: neuroshed init segment my.yaml
    """
    from neuroshed import api

    click.echo(f"wrote {api.init(name, target or f'{name}.yaml')}")


@main.command()
@click.argument("run_folder")
@_JSON
@_command
def status(run_folder: str, as_json: bool) -> None:
    """Say how the run in RUN_FOLDER stands.

    Example: neuroshed status run1
    """
    from neuroshed import api

    _show(api.status(run_folder), as_json, print_status)


@main.command()
@click.argument("run_folder")
@_JSON
@_command
def resume(run_folder: str, as_json: bool) -> None:
    """Go on with the run in RUN_FOLDER where it stopped; failed blocks are tried again.

    Example: neuroshed resume run1
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.resume(run_folder, bars)
    _show(summary, as_json, print_summary)


@main.command()
@click.argument("run_folder")
@click.option("--threshold", "thresholds", multiple=True, help="Score in 0..1 at which to cut. Repeatable.")
@click.option("--fragments", is_flag=True, help="Also write the fragments before any merge.")
@_CLUSTER
@_JSON
@_command
def cut(run_folder: str, thresholds: tuple[str, ...], fragments: bool, cluster: str | None, as_json: bool) -> None:
    """Write the segmentation of the run in RUN_FOLDER at other thresholds; no other stage is touched.

    Example: neuroshed cut run1 --threshold 0.4
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.cut(run_folder, thresholds, fragments=fragments, cluster=_cluster(cluster), watch=bars)
    _show(summary, as_json, print_summary)


@main.command()
@click.argument("run_folder")
@click.option("--blocks", type=click.IntRange(min=1), default=3, show_default=True, help="Blocks of each step.")
@click.option("--all", "everything", is_flag=True, help="All blocks instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which blocks are picked.")
@_CLUSTER
@_JSON
@_command
def verify(run_folder: str, blocks: int, everything: bool, seed: int, cluster: str | None, as_json: bool) -> None:
    """Compute some blocks of each stage of the run in RUN_FOLDER again, and compare them with what stands.

    Example: neuroshed verify run1 --blocks 10
    """
    from neuroshed import api

    with Bars() as bars:
        summary = api.verify(
            run_folder, blocks=None if everything else blocks, seed=seed, cluster=_cluster(cluster), watch=bars
        )
    _show(summary, as_json, print_verified)


@main.command(name="import")
@click.argument("source")
@click.argument("target")
@click.option("--voxel-size", type=float, required=True, nargs=3, metavar="Z Y X", help="nm.")
@click.option(
    "--offset", type=float, default=(0.0, 0.0, 0.0), nargs=3, metavar="Z Y X", help="Place of the first voxel, nm."
)
@click.option("--dataset", help="Array inside an HDF5 file.")
@click.option("--range", "intensity", type=float, nargs=2, metavar="LOW HIGH", help="Rescale these values to 0..255.")
@click.option("--block", type=int, default=None, nargs=3, metavar="Z Y X", help="Voxels of one task and file.")
@_CLUSTER
@_command
def import_(
    source: str,
    target: str,
    voxel_size: tuple[float, float, float],
    offset: tuple[float, float, float],
    dataset: str | None,
    intensity: tuple[float, float] | None,
    block: tuple[int, int, int] | None,
    cluster: str | None,
) -> None:
    """Bring SOURCE (TIFF stack or folder, HDF5, PNG folder, .npy) in as the OME-Zarr volume TARGET, block by block.

    Example: neuroshed import stack.h5 a.zarr --dataset raw --voxel-size 10 10 10
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
            block_shape=block,
            cluster=_cluster(cluster),
            watch=bars,
        )
    click.echo(f"wrote {path}")


@main.command()
@click.argument("segmentation")
@click.argument("truth")
@click.option("--box", type=int, nargs=6, metavar="Z0 Y0 X0 Z1 Y1 X1", help="Score only this box (half-open, voxels).")
@_CLUSTER
@_JSON
@_command
def evaluate(segmentation: str, truth: str, box: tuple[int, ...] | None, cluster: str | None, as_json: bool) -> None:
    """Score SEGMENTATION against TRUTH, both label volumes of one shape: VOI (bits) and adapted Rand error.

    Example: neuroshed evaluate run1/segment-0123456789ab/0.5.zarr truth.zarr
    """
    from neuroshed import api

    region = Box((box[0], box[1], box[2]), (box[3], box[4], box[5])) if box else None
    with Bars() as bars:
        scores = api.evaluate(segmentation, truth, box=region, cluster=_cluster(cluster), watch=bars)
    _show(scores, as_json, lambda found: print_scores({"": found}))


@main.command()
@click.argument("config")
@click.option("--from", "start_from", metavar="MODEL", help="Checkpoint or model whose weights to start from.")
@_command
def train(config: str, start_from: str | None) -> None:
    """Train a network by the YAML file CONFIG, or go on with the training in its output folder.

    Example: neuroshed init train && neuroshed train train.yaml
    """
    from neuroshed import api

    console = Console(stderr=True)

    def show(event: dict[str, Any]) -> None:
        values = (f"{key} {value:.4g}" for key, value in event.items() if isinstance(value, float))
        console.print(f"step {event['step']:>7}  {event['event']}: " + "  ".join(values), highlight=False)

    path = api.train(config, start_from=start_from, progress=show)
    click.echo(f"best model: {path}")


def _cluster(word: str | None) -> Any:
    from pydantic import ValidationError

    from neuroshed.engine.clusters import ClusterConfig

    if word is None:
        return None
    try:
        return ClusterConfig.model_validate(word)
    except ValidationError:
        raise click.BadParameter(
            f"got {word!r}; needed is local, local:N, in-process, in-process:N or an address such as tls://host:8786",
            param_hint="--cluster",
        ) from None


def _show(result: dict[str, Any], as_json: bool, printer: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        printer(result)
