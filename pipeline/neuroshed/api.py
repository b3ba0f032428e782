"""The verbs of the command line as functions. Each raises a `NeuroshedError` with a one-line message if it cannot do
its work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroshed.engine.clusters import ClusterConfig
from neuroshed.engine.coordinator import Watcher
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.stages.evaluate import Contingency, evaluate_tables
from neuroshed.stages.imports import Import
from neuroshed.storage.files import sync_path
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow import config as workflows
from neuroshed.workflow import cut as cuts
from neuroshed.workflow import run as runs
from neuroshed.workflow import verify as verifying
from neuroshed.workflow.plan import make_plan

PathLike = str | os.PathLike[str]
"""A path, or text that is one or an `s3://` URL."""
Summary = dict[str, Any]


def quiet(progress: object) -> None:
    """The watcher that says nothing."""


def run(workflow: PathLike, settings: Sequence[str] = (), watch: Watcher = quiet) -> Summary:
    """Run a workflow, by path or by the name of a shipped one; what its output folder holds already is not done again.

    `settings` override keys of the file: `"thresholds=[0.3,0.5]"`. `watch` is called with a `Progress` whenever
    blocks end.
    Returns the summary: status, blocks by stage, paths of all outputs (`segmentations` by threshold).
    Raises `RunFailedError`, with the summary as its `summary`, if blocks failed.
    """
    return runs.start(make_plan(workflows.load(os.fspath(workflow), settings)), watch)


def plan(workflow: PathLike, settings: Sequence[str] = ()) -> Summary:
    """What a workflow would do: blocks, voxels, bytes and memory by stage, and redundant compute. Writes nothing."""
    return make_plan(workflows.load(os.fspath(workflow), settings)).describe()


def resume(run_folder: PathLike, watch: Watcher = quiet) -> Summary:
    """Go on with a run where it stopped; failed blocks are tried again. Returns and raises as `run`."""
    return runs.resume(Location.of(run_folder), watch)


def status(run_folder: PathLike) -> Summary:
    """How a run stands: the summary from its folder alone. Never disturbs a coordinator at work."""
    return runs.status(Location.of(run_folder))


def cut(
    run_folder: PathLike,
    thresholds: Sequence[str | float] = (),
    *,
    fragments: bool = False,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Write more segmentations of a run, at other thresholds, from the merges that it has recorded, and the unmerged
    fragments if asked. No other stage is touched. Returns and raises as `run`.
    """
    return cuts.cut(Location.of(run_folder), thresholds, fragments, cluster, watch)


def verify(
    run_folder: PathLike,
    *,
    blocks: int | None = 3,
    seed: int = 0,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Compute some blocks of each step of a run again (None: all), and compare them with what stands.

    Returns how many blocks of each step were equal. Raises `RunFailedError`, with the failures in its `summary`, if any
    differs or cannot be computed again. The run's own files are only read.
    """
    return verifying.verify(Location.of(run_folder), blocks, seed, cluster, watch)


def init(name: str, target: PathLike) -> Path:
    """Write a commented copy of a shipped workflow. Raises `WorkflowError` if `target` exists."""
    path = Path(target)
    if path.exists():
        raise WorkflowError(f"{path} exists already; choose another name or remove it")
    text = workflows.find(name)
    try:
        path.write_text(text)
    except OSError as error:
        raise WorkflowError(f"{path} cannot be written ({error.strerror}); choose another place") from error
    return path


def import_volume(
    source: PathLike,
    target: PathLike,
    voxel_size: tuple[float, float, float],
    *,
    dataset: str | None = None,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    intensity: tuple[float, float] | None = None,
    block_shape: Vec | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Path:
    """Bring a TIFF, HDF5, PNG or NumPy volume in as OME-Zarr, block by block; returns the path of the new volume.

    `voxel_size` and `offset` are in nm, z y x; `intensity` (low, high) rescales to uint8, as floating-point images
    need. The volume appears under its name when it is whole. Broken off, the same call goes on. Raises `InputError`
    for a source that cannot be imported, `WorkflowError` if the target is there already.
    """
    goal = Location.of(target).local
    if goal.exists():
        raise WorkflowError(f"target {goal} exists already; choose another or remove it")
    # Beside the target, so that a second call finds what the first one did, and gone at the end.
    run_folder = goal.with_name(f".{goal.name}.import")
    stage = Import.of(
        Location.of(run_folder),
        Path(source).expanduser(),
        goal.name,
        voxel_size,
        offset=offset,
        dataset=dataset,
        intensity=intensity,
        block_shape=block_shape,
    )
    runs.run_stages(stage.run_folder, [stage], cluster or ClusterConfig(), watch, again="the same import goes on")
    stage.target.local.rename(goal)
    sync_path(goal.parent)
    shutil.rmtree(run_folder)
    return goal


def evaluate(
    segmentation: PathLike,
    truth: PathLike,
    *,
    box: Box | None = None,
    block_shape: Vec | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Score a segmentation against a truth of the same shape: VOI split and merge (bits), adapted Rand in named
    variants.

    Voxels of truth 0 are left out. The contingency table is summed block by block.
    """
    shape = block_shape or _evaluation_blocks(open_volume(segmentation).shard_shape)
    with tempfile.TemporaryDirectory(prefix="neuroshed-evaluate-") as folder:
        scratch = Location.of(folder)
        stage = Contingency.of(scratch, Location.of(segmentation), Location.of(truth), shape, box)
        used = cluster or ClusterConfig(kind="in-process")
        runs.run_stages(scratch, [stage], used, watch, again="evaluate again")
        return evaluate_tables(stage).as_json()


def _evaluation_blocks(shard_shape: Vec) -> Vec:
    """Whole shards, of about 256 voxels a side."""
    z, y, x = (side * max(256 // side, 1) for side in shard_shape)
    return z, y, x


def train(
    config: PathLike,
    *,
    start_from: PathLike | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train a network by a YAML configuration, or go on with the training in its output folder; returns the best
    model's JSON.

    `start_from` is a checkpoint or model to fine-tune.
    """
    from neuroshed.training.config import parse_config
    from neuroshed.training.loop import train as loop

    path = Path(config)
    if not path.is_file() and os.fspath(config) not in workflows.shipped():
        raise InputError(f"no training configuration at {path}; `neuroshed init train` writes one to start from")
    values = workflows.read_yaml(os.fspath(config))
    return loop(
        parse_config(values, str(config)), start_from=Path(start_from) if start_from else None, progress=progress
    )
