"""The verbs of the command line as functions. Each raises a `NeuroshedError` with a one-line message if it cannot do
its work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.control import Control
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Watcher
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box, Vec
from neuroshed.stages.evaluate import score_table
from neuroshed.storage.declared import ForeignModel
from neuroshed.storage.locations import Location
from neuroshed.workflow import clean as cleaning
from neuroshed.workflow import config as workflows
from neuroshed.workflow import cut as cuts
from neuroshed.workflow import launch, listing, requests
from neuroshed.workflow import run as runs_
from neuroshed.workflow import status as state
from neuroshed.workflow import sweep as sweeps
from neuroshed.workflow import verify as verifying
from neuroshed.workflow.check import volume_check as volume_check
from neuroshed.workflow.exports import export as export
from neuroshed.workflow.importing import import_volume as import_volume
from neuroshed.workflow.levels import pyramid as pyramid
from neuroshed.workflow.plan import Plan, make_plan
from neuroshed.workflow.slurm_job import launcher_for
from neuroshed.workflow.volumes import volume_compare as volume_compare
from neuroshed.workflow.volumes import volume_crop as volume_crop

PathLike = str | os.PathLike[str]
"""A path, or text that is one or a URL of a bucket: `s3://`, `gs://` or `az://`."""
Summary = dict[str, Any]


def quiet(progress: object) -> None:
    """The watcher that says nothing."""


def run(
    workflow: PathLike,
    settings: Sequence[str] = (),
    watch: Watcher = quiet,
    *,
    verify_writes: bool = False,
    control: Control | None = None,
) -> Summary:
    """Run a workflow, by path or by the name of a shipped one; what its output folder holds already is not done again.

    `settings` override keys of the file: `"thresholds=[0.3,0.5]"`. `watch` is called with a `Progress` every second and
    whenever blocks end. With `verify_writes` all that is written is read back and compared. Another thread may ask
    `control` to drain or stop.
    Returns the summary: status, blocks by stage, paths of all outputs (`segmentations` by threshold).
    Raises `RunFailedError`, with the summary as its `summary`, if blocks failed, and `RunStoppedError`, with the same,
    if the run was asked to stop.
    """
    return runs_.start(_plan(workflow, settings), _options(watch, verify_writes, control))


def submit(workflow: PathLike, settings: Sequence[str] = (), *, verify_writes: bool = False) -> Summary:
    """Run a workflow as a process of its own, or a job of Slurm if it runs there, which goes on when this one ends.
    Returns when that has begun, or waits in a queue.

    The workflow is checked here first. Returns the run, its `state` (running, queued, or done if it took but a moment),
    who holds it, and where its log is. Raises `RunFailedError` with what it said if it ended otherwise.
    """
    plan = _plan(workflow, settings)
    words = [word for setting in settings for word in ("--set", setting)]
    command = ["run", os.fspath(workflow), *words, *_flags(verify_writes)]
    return launch.submit(command, plan.run_folder, launcher_for(plan.workflow.cluster))


def plan(workflow: PathLike, settings: Sequence[str] = ()) -> Summary:
    """What a workflow would do: blocks, voxels, bytes and memory by stage, and redundant compute. Writes nothing."""
    return _plan(workflow, settings).describe()


def resume(
    run_folder: PathLike,
    watch: Watcher = quiet,
    *,
    verify_writes: bool = False,
    control: Control | None = None,
    detach: bool = False,
    cluster: str | None = None,
) -> Summary:
    """Go on with a run where it stopped; failed blocks are tried again. Returns and raises as `run`, or with `detach`
    as `submit`. `cluster`, a word or a YAML file: where from now on.
    """
    folder = Location.of(run_folder)
    if detach:
        launcher = launcher_for(runs_.resumed(folder, cluster).workflow.cluster)
        return launch.submit(["resume", str(folder), *_flags(verify_writes, cluster)], folder, launcher)
    return runs_.resume(folder, _options(watch, verify_writes, control), cluster)


def retry(
    run_folder: PathLike,
    watch: Watcher = quiet,
    *,
    stage: str | None = None,
    blocks: Sequence[Vec] = (),
    verify_writes: bool = False,
    control: Control | None = None,
    detach: bool = False,
    cluster: str | None = None,
) -> Summary:
    """Go on with a run, but of the blocks that failed try only those of `stage` and among `blocks` (z y x) again; the
    others stay set aside. Returns and raises as `run`, or with `detach` as `submit`.

    Raises `WorkflowError` if no failed block is meant.
    """
    folder = Location.of(run_folder)
    if detach:
        runs_.check_retry(folder, stage, blocks)
        launcher = launcher_for(runs_.resumed(folder, cluster).workflow.cluster)
        words = ["--stage", stage] if stage else []
        words += [word for block in blocks for word in ("--blocks", ",".join(map(str, block)))]
        return launch.submit(["retry", str(folder), *words, *_flags(verify_writes, cluster)], folder, launcher)
    return runs_.retry(folder, stage, blocks, _options(watch, verify_writes, control), cluster)


def cancel(
    run_folder: PathLike, *, drain: bool = False, timeout: float | None = None, tell: Callable[[str], None] = quiet
) -> Summary:
    """Ask whoever works on a run to stop, and wait until that is so; with `drain` blocks at work are finished first.

    Works from any machine that sees the run folder. `timeout` in seconds, by default 60; with `drain` there is none
    once the request was heard. `tell` is called with what is waited for. Returns how the run stands then, as `status`.
    Raises `WorkflowError` if nobody works on the run, `RunFailedError` if there is no answer.
    """
    folder = Location.of(run_folder)
    requests.cancel(folder, drain=drain, timeout=timeout, tell=tell)
    return state.status_or_nothing(folder)


def status(run_folder: PathLike) -> Summary:
    """How a run stands, at work or not: the summary from its journal, its `state`, who holds it, and under `live` what
    that one shows of itself. Never disturbs a coordinator at work.
    """
    return state.status(Location.of(run_folder))


def follow(run_folder: PathLike, seconds: float = state.FOLLOW_SECONDS) -> Iterator[Summary]:
    """How a run stands, every so many seconds, until nobody works on it any more; quicker than `status`, since it
    believes what the coordinator shows.
    """
    return state.follow(Location.of(run_folder), seconds)


def runs(folder: PathLike = ".") -> list[Summary]:
    """The runs directly in a folder: name, state, who works on it, blocks done, failed and in all, started, changed."""
    return listing.runs(Location.of(folder))


def clean(
    run_folder: PathLike, *, dry_run: bool = False, confirm: Callable[[Summary], bool] = lambda found: True
) -> Summary:
    """Remove what a run folder holds and no run needs: stages of earlier parameters (their segmentations too), what
    broken-off calls left, and intermediate blocks that are not kept and that nothing reads any more.

    `confirm` is shown the finds and says whether they go; with `dry_run` nothing goes. Returns the finds with their
    bytes. Raises `WorkflowError` if somebody works on the run.
    """
    return cleaning.clean(Location.of(run_folder), dry_run=dry_run, confirm=confirm)


def _plan(workflow: PathLike, settings: Sequence[str]) -> Plan:
    return make_plan(workflows.load(os.fspath(workflow), settings))


def _options(watch: Watcher, verify_writes: bool, control: Control | None) -> Options:
    return Options(watch=watch, verify_writes=verify_writes, control=control or Control())


def _flags(verify_writes: bool, cluster: str | None = None) -> list[str]:
    return [*(["--verify-writes"] if verify_writes else []), *(["--cluster", cluster] if cluster else [])]


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


def evaluate(
    segmentation: PathLike,
    truth: PathLike,
    *,
    box: Box | None = None,
    block_shape: Vec | None = None,
    work: PathLike | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Score a segmentation against a truth of the same shape: VOI split and merge (bits), adapted Rand in named
    variants.

    Voxels of truth 0 are left out. The contingency table is summed block by block; what is counted is kept in a folder
    `work` until the answer is there: broken off, the same call goes on.
    """
    used = cluster or ClusterConfig(kind="in-process")
    volumes = Location.of(segmentation), Location.of(truth)
    return score_table(sweeps.count_pairs(*volumes, box, used, watch, block_shape, work)).as_json()


def sweep(
    run_folder: PathLike,
    truth: PathLike,
    *,
    thresholds: Sequence[str | float] = (),
    box: Box | None = None,
    plot: PathLike | None = None,
    cluster: ClusterConfig | None = None,
    watch: Watcher = quiet,
) -> Summary:
    """Score a run at many thresholds (default: 0.05, 0.1, ... from the lowest recorded) without writing segmentations.

    `plot` is a PNG of VOI split against merge. Returns `best_threshold` (lowest VOI) and the `scores`, each as of
    `evaluate`. The run's fragments before any merge are written if they are not there.
    """
    from neuroshed.report.sweep_figure import draw_sweep

    scores = sweeps.sweep(Location.of(run_folder), Location.of(truth), thresholds, box, cluster, watch)
    found = sweeps.as_json(scores)
    if plot is not None:
        heading = f"{Path(os.fspath(run_folder)).name} against {Path(os.fspath(truth)).name}"
        found["plot"] = str(draw_sweep(Path(plot), scores, found["best_threshold"], heading))
    return found


def cluster_certificates(folder: PathLike, *, days: int = 365, at: PathLike | None = None) -> dict[str, Path]:
    """Write certificates, their key and Dask's settings for a scheduler of one's own; returns the files by name.

    Raises `WorkflowError` if one of them is there already, or the folder cannot be written.
    """
    from neuroshed.engine.certificates import write_certificates

    return write_certificates(Path(folder), days, None if at is None else Path(at))


def doctor(
    cluster: ClusterConfig | str,
    folder: PathLike,
    *,
    seconds: float = 300.0,
    tell: Callable[[str], None] = quiet,
) -> Summary:
    """Examine the workers of a cluster: versions, reading and writing of `folder`, memory, GPUs, disk, clocks, limits.

    A worker of each pool is started, and waited for up to `seconds`; of other clusters one a host is taken. Returns
    `lines` (pool, host, check, ok, told, remedy) and `faults`, how many are not ok. Raises `WorkflowError` for a
    cluster that cannot be reached and a folder that cannot be written here.
    """
    from neuroshed.workflow.doctor import doctor as examine

    try:
        used = ClusterConfig.model_validate(cluster)
    except ValueError as error:
        raise WorkflowError(f"{cluster!r} is no cluster: {' '.join(str(error).split())}") from error
    return examine(used, Location.of(folder), seconds=seconds, tell=tell)


def volume_info(volume: PathLike, *, samples: int = 64) -> Summary:
    """What a Zarr volume is and holds: layout, codecs, size on its store, missing files, and values of so many small
    boxes (`neuroshed.storage.inspection.describe`). Raises `InputError` if it cannot be opened.
    """
    from neuroshed.storage.inspection import describe
    from neuroshed.storage.volumes import open_volume

    return describe(open_volume(Location.of(volume)), samples)


def check_model(model: PathLike | ForeignModel, image: PathLike, *, trust: bool = False, **predict: Any) -> Summary:
    """Run one patch of an image through a model and report what that shows.

    `model` is a name or path of ours, a YAML file that declares another, or the declaration itself; `trust` says that
    the file's model may run code. `predict` takes the keys of a workflow's `predict` section.

    Returns shapes, the range of each channel, `neighbour` (which neighbour's edges it holds by what the image shows),
    `shift` of all channels, `seam` (border of a patch against the middle of another, in 1/255), seconds a patch by
    batch size, memory, `suggested` batch size and context, and `faults`, lines that say what is most likely wrong.
    """
    from neuroshed.storage.networks import read_declaration
    from neuroshed.workflow.model_check import check_model as check

    if not isinstance(model, ForeignModel):
        path = Path(model)
        declared = path.suffix in (".yaml", ".yml") and path.name != "rdf.yaml"
        model = read_declaration(path, trust=trust) if declared else os.fspath(model)
    options = workflows.parse({"image": os.fspath(image), "output": "none", "predict": predict}, "options").predict
    return check(model, Location.of(image), options)


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
