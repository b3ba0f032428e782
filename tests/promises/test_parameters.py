"""Promise 5: change a parameter, redo only what depends on it. Every key of a workflow has its case."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import zarr
from pydantic import BaseModel

import neuroshed
from neuroshed.storage.models import load_model, save_model
from neuroshed.storage.volumes import create_volume, open_volume
from neuroshed.workflow.config import Workflow, parse
from neuroshed.workflow.plan import Plan, make_plan

from .chunks import random_affinities, write_affinities

SHAPE = (6, 8, 10)
FAR = ((0, 0, -3), (0, -3, 0))
NOTHING: frozenset[str] = frozenset()
SEGMENTS = frozenset({"segment 0.3", "segment 0.5"})
TREE = SEGMENTS | {"agglomerate"}
FRAGMENTS = TREE | {"fragments"}
GIVEN = FRAGMENTS | {"affinities"}
PREDICTED = FRAGMENTS | {"predict"}
MUTEX = TREE | {"mutex_fragments"}
SCORED = TREE | {"waterz_scores"}
WATERZ = SCORED | {"waterz_fragments"}

# Files are named after the folder of inputs, which stands for IN.
COMMON: dict[str, Any] = {"output": "IN/run", "block_shape": [4, 4, 4], "cluster": "in-process:2"}
GIVEN_VALUES = COMMON | {"affinities": "IN/affinities.zarr"}
MUTEX_VALUES = GIVEN_VALUES | {
    "long_range": [[0, 0, -3]],
    "fragments": {"method": "mutex"},
    "agglomerate": {"long_range": True},
}
BASES: dict[str, dict[str, Any]] = {
    "image": COMMON | {"image": "IN/image.zarr", "predict": {"device": "cpu"}},
    "affinities": GIVEN_VALUES,
    # Their metadata say nothing, so that it can be declared.
    "bare": COMMON | {"affinities": "IN/bare.zarr"},
    "semantics": GIVEN_VALUES | {"semantics": {"path": "IN/classes.zarr", "classes": [1, 2]}},
    "masked": GIVEN_VALUES | {"masks": [{"path": "IN/classes.zarr", "keep": [1, 2]}]},
    "far": GIVEN_VALUES | {"long_range": [[0, 0, -3]], "agglomerate": {"long_range": True}},
    "mutex": MUTEX_VALUES,
    "quantile": GIVEN_VALUES | {"agglomerate": {"score": "quantile_50"}},
    "waterz": GIVEN_VALUES | {"engine": "waterz"},
    "slurm": GIVEN_VALUES
    | {"cluster": {"kind": "slurm", "pools": {"cpu": {"memory_gb": 8}}, "coordinator": {"memory_gb": 4}}},
    "address": GIVEN_VALUES | {"cluster": {"kind": "address", "address": "tcp://nowhere:1"}},
}


@dataclass(frozen=True)
class Case:
    """What is computed anew when `field` of the workflow `base` becomes `value`."""

    field: str
    base: str
    value: Any
    redone: frozenset[str]
    """Titles of stages."""

    def __str__(self) -> str:
        return f"{self.base}-{self.field}={self.value}".replace(" ", "")


def cases(base: str, values: dict[str, list[tuple[Any, frozenset[str]]]]) -> list[Case]:
    return [Case(field, base, value, redone) for field, found in values.items() for value, redone in found]


CASES = [
    *cases(
        "image",
        {
            "image": [
                ("IN/other-image.zarr", PREDICTED),
                # An image is known by samples and by its place.
                ("IN/copy.zarr", PREDICTED),
            ],
            "output": [("IN/elsewhere", NOTHING)],
            "model": [("IN/other-model", PREDICTED), ("IN/same-model", NOTHING)],
            "block_shape": [([8, 8, 8], PREDICTED)],
            "shard_shape": [([4, 4, 4], NOTHING), ([2, 4, 4], PREDICTED)],
            # Predicted blocks are whole, whatever the region.
            "box": [([[0, 0, 0], [6, 8, 10]], NOTHING), ([[1, 0, 0], [5, 8, 9]], FRAGMENTS)],
            "keep": [(["segmentation", "fragments", "merges", "affinities"], frozenset({"segment fragments"}))],
            "predict.batch_size": [(2, PREDICTED)],
            "predict.threads": [(2, PREDICTED)],
            "predict.device": [("cuda", PREDICTED)],
            "predict.precision": [("bfloat16", PREDICTED)],
            "predict.drift": [([4, 4, 4], PREDICTED | {"drift"})],
            "predict.deterministic": [(False, PREDICTED)],
            "predict.patch": [([128, 96, 96], PREDICTED), ([96, 96, 96], NOTHING)],
            "predict.flips": [(["x"], PREDICTED), ([], NOTHING)],
            "predict.intensity": [([10, 200], PREDICTED)],
            "predict.inverted": [(True, PREDICTED)],
            # They say which blocks are predicted, not what is in them.
            "masks": [([{"path": "IN/classes.zarr", "keep": [1]}], FRAGMENTS)],
            "fragments.low": [("0.2", FRAGMENTS)],
        },
    ),
    *cases(
        "affinities",
        {
            "affinities": [("IN/other-affinities.zarr", GIVEN)],
            "block_shape": [([4, 4, 8], FRAGMENTS)],
            "shard_shape": [([4, 2, 4], FRAGMENTS)],
            "thresholds": [
                (["0.50", 0.3], NOTHING),
                ([0.5], NOTHING),
                ([0.3, 0.4, 0.5], frozenset({"segment 0.4"})),
                ([0.6], frozenset({"segment 0.6"})),
            ],
            "keep": [
                (["segmentation"], NOTHING),
                (["segmentation", "fragments"], frozenset({"segment fragments"})),
            ],
            "box": [([[0, 0, 0], [6, 8, 5]], FRAGMENTS)],
            # Of 128 voxels a side and less there are none unless they are asked for.
            "pyramid": [(True, NOTHING), (1, frozenset({"pyramid 0.3", "pyramid 0.5"}))],
            "semantics": [({"path": "IN/classes.zarr", "classes": [1]}, TREE)],
            "cluster.kind": [("local", NOTHING)],
            "cluster.workers": [(3, NOTHING)],
            "cluster.memory_gb": [(1.5, NOTHING)],
            "cluster.patience_seconds": [(1, NOTHING)],
            "failures.attempts": [(9, NOTHING)],
            "failures.backoff_seconds": [(9, NOTHING)],
            "failures.worker_deaths": [(9, NOTHING)],
            "failures.block_seconds": [(9, NOTHING)],
            "failures.on_failure": [("stop", NOTHING)],
            "engine": [("waterz", WATERZ)],
            "fragments.method": [("mutex", MUTEX)],
            # Two texts of one byte.
            "fragments.low": [("0.2", FRAGMENTS), ("0.1001", NOTHING)],
            "fragments.high": [("0.9", FRAGMENTS), ("0.9801", NOTHING)],
            "fragments.small": [(20, FRAGMENTS)],
            "fragments.dust": [(20, FRAGMENTS)],
            "fragments.smooth": [(0.5, FRAGMENTS)],
            "fragments.bias": [(-0.1, FRAGMENTS), (0.001, NOTHING)],
            "agglomerate.score": [("max", TREE), ("quantile_50", FRAGMENTS)],
            "agglomerate.lowest_threshold": [("0.1", TREE), (0.20, NOTHING)],
            "agglomerate.max_size": [(1000, TREE)],
            "agglomerate.graph_gb": [(0.5, NOTHING)],
            "agglomerate.alarm_share": [(0.1, NOTHING)],
        },
    ),
    *cases(
        "bare",
        {
            "convention.channels": [("zyx", NOTHING), ("xyz", GIVEN)],
            "convention.sign": [("negative", NOTHING), ("positive", GIVEN)],
            "convention.offsets": [
                ([[-1, 0, 0], [0, -1, 0], [0, 0, -1]], NOTHING),
                ([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], GIVEN),
            ],
            "convention.stored_at": [("destination", GIVEN)],
            "convention.inverted": [(True, GIVEN)],
            "convention.value_range": [([0, 255], NOTHING), ([0, 200], GIVEN)],
            "convention.array_axes": [("xyz", GIVEN)],
            "convention.channel_axis": [("last", GIVEN)],
        },
    ),
    *cases(
        "semantics",
        {
            # Like images.
            "semantics.path": [("IN/other-classes.zarr", TREE), ("IN/same-classes.zarr", TREE)],
            "semantics.classes": [([1], TREE), ([1, 3], TREE)],
            "fragments.small": [(20, FRAGMENTS)],
            "thresholds": [([0.3, 0.4], frozenset({"segment 0.4"}))],
        },
    ),
    *cases(
        "masked",
        {
            "masks": [
                ([], FRAGMENTS),
                ([{"path": "IN/classes.zarr", "keep": [1, 3]}], FRAGMENTS),
                ([{"path": "IN/other-classes.zarr", "keep": [1, 2]}], FRAGMENTS),
                ([{"path": "IN/classes.zarr", "keep": [1, 2]}, {"path": "IN/classes.zarr", "drop": [2]}], FRAGMENTS),
            ],
            "engine": [("waterz", WATERZ)],
            "thresholds": [([0.3, 0.4], frozenset({"segment 0.4"}))],
        },
    ),
    *cases("far", {"long_range": [([[0, -3, 0]], GIVEN), ([[0, 0, -3], [0, -3, 0]], GIVEN)]}),
    *cases(
        "mutex",
        {
            "long_range": [([[0, -3, 0]], MUTEX | {"affinities"})],
            "agglomerate.long_range": [(False, MUTEX)],
            "fragments.biases": [([0, 0, 0, 0.5], MUTEX), ([0, 0, 0, 1], NOTHING)],
            "fragments.context": [([2, 2, 2], MUTEX)],
            "fragments.low": [("0.2", MUTEX)],
            # It has no such rule.
            "fragments.high": [("0.9", NOTHING)],
            "fragments.method": [("watershed", FRAGMENTS)],
            "agglomerate.lowest_threshold": [("0.1", TREE)],
        },
    ),
    *cases(
        "quantile",
        {"agglomerate.score": [("quantile_60", TREE), ("mean", FRAGMENTS)]},
    ),
    *cases(
        "waterz",
        {
            "engine": [("exact", FRAGMENTS)],
            "fragments.context": [([2, 2, 2], WATERZ)],
            "fragments.high": [("0.9", WATERZ)],
            "fragments.smooth": [(0.5, WATERZ)],
            "agglomerate.score": [("quantile_50", SCORED)],
            "agglomerate.lowest_threshold": [("0.1", SCORED)],
            "agglomerate.max_size": [(1000, TREE)],
            "thresholds": [([0.3, 0.4, 0.5], frozenset({"segment 0.4"}))],
        },
    ),
    # Where and how it runs, and who is told, decides nothing.
    *cases(
        "slurm",
        {
            "cluster.pools": [({"cpu": {"memory_gb": 9, "cores": 4}, "gpu": {"memory_gb": 9, "gpus": 1}}, NOTHING)],
            "cluster.host": [("10.0.0.1", NOTHING)],
            "cluster.port": [(8786, NOTHING)],
            "cluster.python": [("/opt/python", NOTHING)],
            "cluster.name": [("lab", NOTHING)],
            "cluster.namespace": [("lab", NOTHING)],
            "cluster.folder": [("IN/workers", NOTHING)],
            "cluster.coordinator": [(None, NOTHING)],
            "cluster.coordinator.cores": [(4, NOTHING)],
            "cluster.coordinator.memory_gb": [(9, NOTHING)],
            "cluster.coordinator.walltime": [("01:00:00", NOTHING)],
            "cluster.coordinator.partition": [("long", NOTHING)],
            "cluster.coordinator.account": [("lab", NOTHING)],
            "cluster.coordinator.options": [(["--qos=high"], NOTHING)],
            "cluster.coordinator.before": [("module load x", NOTHING)],
            "monitor.port": [(9464, NOTHING)],
            "monitor.host": [("0.0.0.0", NOTHING)],
            "monitor.command": [(["mail"], NOTHING)],
            "monitor.webhook": [("HOOK", NOTHING)],
            "monitor.failures": [(3, NOTHING)],
        },
    ),
    *cases("address", {"cluster.address": [("tcp://elsewhere:1", NOTHING)]}),
]


def fields(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """All keys that may be written, dotted; a section that may be missing is one of them, too."""
    for name, field in model.model_fields.items():
        # What is in lists and mappings has names of the user's.
        inner = () if get_origin(field.annotation) in (dict, tuple) else get_args(field.annotation)
        kinds = (field.annotation, *inner)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections or type(None) in kinds:
            yield before + name
        for section in sections:
            yield from fields(section, f"{before}{name}.")


def test_every_key_of_a_workflow_has_its_case() -> None:
    assert {case.field for case in CASES} == {*fields(Workflow)}
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the workflows read."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(7)
    for prefix in ("", "other-"):
        write_image(folder / f"{prefix}image.zarr", rng.integers(0, 256, SHAPE, np.uint8))
        affinities = np.concatenate([random_affinities(rng, SHAPE, 256), rng.integers(0, 256, (2, *SHAPE), np.uint8)])
        write_affinities(folder / f"{prefix}affinities.zarr", affinities, *FAR)
        write_image(folder / f"{prefix}classes.zarr", rng.integers(0, 4, SHAPE, np.uint8))
    shutil.copytree(folder / "image.zarr", folder / "copy.zarr")
    shutil.copytree(folder / "classes.zarr", folder / "same-classes.zarr")
    # Its axes can be taken for any.
    zarr.create_array(folder / "bare.zarr", data=rng.integers(0, 256, (6, 6, 6, 6), np.uint8))
    model = load_model("fibsem")
    weights = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    weights["head.bias"] += 1
    save_model(folder / "other-model", model.card, weights)
    for file in Path(neuroshed.__file__).with_name("assets").glob("fibsem.*"):
        shutil.copy(file, folder / f"same-model{file.suffix}")
    return folder


def write_image(path: Path, data: np.ndarray) -> None:
    volume = create_volume(path, shape=SHAPE, dtype=data.dtype, shard_shape=SHAPE, voxel_size=(10, 10, 10))
    volume.write(volume.box, data)


def placed(value: Any, folder: Path) -> Any:
    """A value with the folder of inputs where it says IN."""
    if isinstance(value, str):
        return value.replace("IN", str(folder))
    if isinstance(value, list):
        return [placed(item, folder) for item in value]
    if isinstance(value, dict):
        return {key: placed(part, folder) for key, part in value.items()}
    return value


def changed(values: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A workflow with one key changed."""
    values = copy.deepcopy(values)
    section = values
    *sections, name = field.split(".")
    for key in sections:
        if not isinstance(section.get(key), dict):
            # A cluster given in a word.
            section[key] = getattr(parse(values), key).model_dump(exclude_none=True)
        section = section[key]
    section[name] = value
    return values


@pytest.fixture(scope="module")
def base_plans(inputs: Path) -> dict[str, Plan]:
    return {name: make_plan(parse(placed(values, inputs))) for name, values in BASES.items()}


def fingerprints(plan: Plan) -> dict[str, str]:
    return {stage.title: stage.fingerprint for stage in plan.stages}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_depends_on_a_parameter(case: Case, base_plans: dict[str, Plan], inputs: Path) -> None:
    before = base_plans[case.base]
    workflow = parse(placed(changed(placed(BASES[case.base], inputs), case.field, case.value), inputs))
    after = make_plan(workflow)
    known = {*fingerprints(before).values()}
    assert {title for title, fingerprint in fingerprints(after).items() if fingerprint not in known} == case.redone
    # The same outputs are found in the same folders.
    if case.field != "output":
        kept = [stage for stage in after.stages if stage.title not in case.redone]
        folders = {stage.title: stage.folder for stage in before.stages}
        assert all(stage.folder == folders[stage.title] for stage in kept)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_changes_its_key_and_no_other(case: Case, inputs: Path) -> None:
    values = placed(BASES[case.base], inputs)
    new_values = placed(changed(values, case.field, case.value), inputs)
    assert new_values != values
    before, after = parse(values), parse(new_values)
    differ = {name for name in fields(Workflow) if read(before, name) != read(after, name)}
    # A section differs with its keys, and they with it if it was missing.
    assert all(f"{name}.".startswith(f"{case.field}.") or case.field.startswith(f"{name}.") for name in differ)
    # Two texts of one value are equal once they are read.
    assert case.field in differ or case.redone == NOTHING


def read(workflow: Workflow, field: str) -> Any:
    """The value of a dotted key; None if its section is missing."""
    return reduce(lambda section, key: getattr(section, key, None), field.split("."), workflow)


# From here on, for real: twelve blocks of a larger volume.
LARGER, BLOCK = (8, 8, 12), (4, 4, 4)


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("larger") / "affinities.zarr"
    return write_affinities(path, random_affinities(np.random.default_rng(1), LARGER, 256))


@pytest.fixture(scope="module")
def finished(affinities: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done; tests work on copies."""
    output = tmp_path_factory.mktemp("finished") / "run"
    summary = run(affinities, output)
    assert summary["restored_blocks"] == 0
    assert summary["alarms"] == []
    return output


def run(affinities: Path, output: Path, *extra: str) -> dict[str, Any]:
    settings = [
        f"affinities={affinities}",
        f"output={output}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:2",
        "fragments.small=10",
        "fragments.dust=0",
        "agglomerate.alarm_share=1",
        *extra,
    ]
    summary = neuroshed.run("stitch", settings)
    assert summary["status"] == "done"
    return summary


def stamps(run_folder: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Time and size of every file that stages wrote, by folder of the stage."""
    return {
        folder.name: {
            str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_size)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.name != "stage.json"
        }
        for folder in run_folder.glob("*-*")
        if folder.is_dir()
    }


def labels(summary: dict[str, Any]) -> dict[str, np.ndarray]:
    volumes = {threshold: open_volume(path) for threshold, path in summary["segmentations"].items()}
    return {threshold: volume.read(volume.box) for threshold, volume in volumes.items()}


@pytest.mark.parametrize(
    ("extra", "redone"),
    [
        ((), NOTHING),
        (("thresholds=[0.4]",), {"segment 0.4"}),
        (("thresholds=[0.5, 0.7, 0.3]",), {"segment 0.7"}),
        (("agglomerate.lowest_threshold=0.1",), TREE),
        (("fragments.low=0.3",), FRAGMENTS),
        (("agglomerate.graph_gb=0.001",), NOTHING),
        (("agglomerate.alarm_share=0.0001",), NOTHING),
        (("cluster=in-process:1",), NOTHING),
        (("failures.attempts=1",), NOTHING),
    ],
)
def test_only_blocks_that_depend_on_it_are_run(
    extra: tuple[str, ...], redone: frozenset[str], affinities: Path, finished: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    before = stamps(output)
    summary = run(affinities, output, *extra)
    counts = {title: row["done"] for title, row in summary["stages"].items()}
    assert redone <= {*counts}
    # No block of a stage that changed can have been there before.
    assert summary["restored_blocks"] == sum(number for title, number in counts.items() if title not in redone)
    after = stamps(output)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + len(redone)
    assert bool(summary["alarms"]) == ("agglomerate.alarm_share=0.0001" in extra)
    fresh = run(affinities, tmp_path / "fresh", *extra)
    assert fresh["restored_blocks"] == 0
    for threshold, expected in labels(fresh).items():
        np.testing.assert_array_equal(labels(summary)[threshold], expected)
