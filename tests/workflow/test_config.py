"""Workflow files: defaults, overrides, exact thresholds, and one line for every mistake."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import WorkflowError
from neuroshed.kernels.merging import integer_threshold
from neuroshed.stages.masks import MaskOptions
from neuroshed.storage.locations import Location
from neuroshed.workflow.config import Workflow, load, parse, shipped

AFFINITIES = ["image=null", "affinities=a.zarr"]
FAR = [*AFFINITIES, "long_range=[[0,0,-9]]", "agglomerate.long_range=true"]
GIVEN = {"image": "a.zarr", "output": "run1"}


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items() if name not in GIVEN}


def test_the_shipped_workflow_holds_the_defaults() -> None:
    loaded = load("segment", ["image=a.zarr", "output=run1"])
    assert loaded == Workflow.model_validate(GIVEN)
    assert {name: getattr(loaded, name) for name in defaults(Workflow)} == defaults(Workflow)


@pytest.mark.parametrize(
    ("workflow", "others"),
    [("segment", {"affinities", "convention"}), ("stitch", {"image", "model", "predict"})],
)
def test_the_shipped_workflows_show_every_key(workflow: str, others: set[str]) -> None:
    text = shipped()[workflow].read_text()
    written = yaml.safe_load(text)
    for name, field in Workflow.model_fields.items():
        if name in others:
            assert name not in written
            continue
        assert name in written or f"# {name}:" in text
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner is not ClusterConfig:
            assert all(key in written[name] or f"# {key}:" in text for key in inner.model_fields)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("model=net.json", "model", "net.json"),
        ("block_shape=[64,32,16]", "block_shape", (64, 32, 16)),
        ("shard_shape=[64,32,16]", "shard_shape", (64, 32, 16)),
        ("thresholds=[0.25, '0.50', 1]", "thresholds", ("0.25", "0.5", "1")),
        ("box=[[0,1,2],[3,4,5]]", "box.start", (0, 1, 2)),
        ("cluster=local:3", "cluster.workers", 3),
        ("cluster=in-process", "cluster.kind", "in-process"),
        ("cluster=tls://host:8786", "cluster.address", "tls://host:8786"),
        ("cluster.workers=2", "cluster.workers", 2),
        ("predict.batch_size=4", "predict.batch_size", 4),
        ("predict.threads=2", "predict.threads", 2),
        ("predict.device=cpu", "predict.device", "cpu"),
        ("predict.precision=bfloat16", "predict.precision", "bfloat16"),
        ("predict.intensity=[10, 99.5]", "predict.intensity", (10.0, 99.5)),
        ("fragments.low=0.05", "fragments.low", "0.05"),
        ("fragments.high=1.0", "fragments.high", "1"),
        ("fragments.small=0", "fragments.small", 0),
        ("fragments.dust=7", "fragments.dust", 7),
        ("agglomerate.lowest_threshold=0", "agglomerate.lowest_threshold", "0"),
        ("agglomerate.score=max", "agglomerate.score", "max"),
        ("agglomerate.score=quantile_75", "agglomerate.score", "quantile_75"),
        ("agglomerate.max_size=1000", "agglomerate.max_size", 1000),
        ("agglomerate.alarm_share=0.1", "agglomerate.alarm_share", 0.1),
        ("fragments.smooth=1.5", "fragments.smooth", 1.5),
        ("fragments.bias=-0.1", "fragments.bias", -0.1),
        ("keep=[segmentation, fragments]", "keep", ("segmentation", "fragments")),
        ("engine=waterz", "engine", "waterz"),
        ("fragments.method=mutex", "fragments.method", "mutex"),
        ("fragments.context=[1,2,3]", "fragments.context", (1, 2, 3)),
        ("fragments.biases=[0, 0, 0]", "fragments.biases", (0, 0, 0)),
        ("semantics={path: a.zarr, classes: [1, 7]}", "semantics.classes", (1, 7)),
        ("masks=[{path: a.zarr, drop: [0, 7]}]", "masks", (MaskOptions(path=Location.of("a.zarr"), drop=(0, 7)),)),
    ],
)
def test_every_key_can_be_set(override: str, key: str, value: object) -> None:
    settings = ["image=a.zarr", "output=run1", override]
    if override.startswith("cluster."):
        settings.insert(0, "cluster={}")
    if key in ("fragments.context", "fragments.biases"):
        settings.insert(0, "fragments.method=mutex")
    found: Any = load("segment", settings)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_affinities_take_the_place_of_the_image() -> None:
    loaded = load("segment", ["affinities=b.zarr", "output=x"])
    assert (loaded.image, loaded.affinities) == (None, Location.of("b.zarr"))


def test_what_is_dumped_is_read_again(tmp_path: Path) -> None:
    loaded = load("segment", ["image=a", "output=b", "box=[[0,1,2],[3,4,5]]", "cluster=local:3"])
    assert parse(loaded.model_dump(mode="json", exclude_none=True)) == loaded


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["imge=a"], ["unknown key imge", "known are", "affinities, agglomerate, block_shape", "image"]),
        (
            ["fragments.smal=3"],
            ["unknown key fragments.smal", "known are bias, biases, context, dust, high, low, method, small, smooth"],
        ),
        (
            ["cluster={kind: local, wrkers: 2}"],
            [
                "unknown key cluster.wrkers",
                "address, coordinator, folder, host, kind, memory_gb, name, namespace, patience_seconds, pools",
            ],
        ),
        (
            ["cluster={kind: slurm, pools: {cpu: {memory_gb: 2, memory: 2}}}"],
            ["unknown key cluster.pools.cpu.memory", "before, cores, gpu_memory_gb, gpus, hosts, memory_gb, options"],
        ),
        (["cluster={kind: slurm, pools: {cpu: {cores: 2}}}"], ["cluster.pools.cpu.memory_gb", "Field required"]),
        (["cluster=/no/such/site.yaml"], ["cluster", "/no/such/site.yaml cannot be read"]),
        (["monitor.webhook=https://x"], ["monitor.webhook", "match pattern"]),
        (["box={start: [0,0,0], stop: [1,1,1], end: 3}"], ["box", "end"]),
        (["block_shape=[64,64]"], ["block_shape", "got"]),
        (["block_shape=64"], ["block_shape", "got 64"]),
        (["block_shape=[64,64,0]"], ["block_shape", "at least 1", "[64, 64, 0]"]),
        (["block_shape=[64,64,1.5]"], ["block_shape.2", "1.5"]),
        (["thresholds=0.3"], ["thresholds", "got 0.3"]),
        (["thresholds=[]"], ["thresholds", "got []"]),
        (["thresholds=[high]"], ["thresholds.0", "0..1", "'high'"]),
        (["thresholds=[1.5]"], ["thresholds.0", "0..1", "1.5"]),
        (["thresholds=[-0.1]"], ["thresholds.0", "0..1"]),
        (["thresholds=[.nan]"], ["thresholds.0", "0..1", "nan"]),
        (["thresholds=[.inf]"], ["thresholds.0", "0..1", "inf"]),
        (["thresholds=[true]"], ["thresholds.0", "0..1", "True"]),
        (["thresholds=['0.1234567890123456789012345']"], ["at most 24 decimals"]),
        (["thresholds=[0.3, 3e-1]"], ["thresholds", "name one twice"]),
        (["thresholds=[0.1]"], ["threshold 0.1 is below agglomerate.lowest_threshold 0.2", "lower that one"]),
        (["fragments.low=0.9", "fragments.high=0.5"], ["fragments.low 0.9 is above fragments.high 0.5"]),
        (["fragments.small=-1"], ["fragments.small", "greater than or equal to 0", "got -1"]),
        (["fragments=3"], ["fragments", "got 3"]),
        (["agglomerate.score=median"], ["agglomerate.score", "known are mean, max, min", "'median'"]),
        (["agglomerate.max_size=-1"], ["agglomerate.max_size", "got -1"]),
        (["agglomerate.alarm_share=0"], ["agglomerate.alarm_share", "got 0"]),
        (["fragments.smooth=9"], ["fragments.smooth", "less than or equal to 8", "got 9"]),
        (["fragments.bias=2"], ["fragments.bias", "got 2"]),
        (["masks=[{path: a.zarr}]"], ["masks.0: exactly one of `keep` and `drop` must be given"]),
        (["masks=[{path: a.zarr, keep: [1], drop: [2]}]"], ["masks.0: exactly one of `keep` and `drop` must be given"]),
        (["masks=[{path: a.zarr, keep: []}]"], ["masks.0.keep", "got []"]),
        (["masks=[{path: a.zarr, keeps: [1]}]"], ["unknown key masks.0.keeps; known are drop, keep, path"]),
        (["masks={path: a.zarr, keep: [1]}"], ["masks", "tuple"]),
        (["masks=[{path: a.zarr, keep: [1]}]", "fragments.low=0"], ["fragments.low is 0", "with masks, raise it"]),
        (["semantics={path: a.zarr, classes: []}"], ["semantics.classes", "got []"]),
        (["semantics={path: a.zarr, classes: [0]}"], ["semantics.classes.0", "got 0"]),
        (["semantics={path: a.zarr, classes: [1, 1]}"], ["semantics", "name one twice"]),
        (["semantics={path: a.zarr, classes: [1], clases: 2}"], ["unknown key semantics.clases", "classes, path"]),
        (["convention.inverted=true"], ["convention is that of given affinities"]),
        (["engine=waterz", "agglomerate.score=max"], ["'max' is none of waterz's", "quantile_P and quantile_P_max"]),
        (["engine=waterz", "fragments.context=[16,16,0]"], ["joins nothing across the faces of blocks"]),
        (["fragments.context=[-1,0,0]"], ["fragments.context", "0 or more, got [-1, 0, 0]"]),
        (["engine=waterz", "fragments.method=mutex"], ["engine waterz has its own watershed"]),
        (["engine=abiss"], ["engine", "'exact' or 'waterz'"]),
        (["long_range=[[0,0,-9]]"], ["long_range channels are those of given affinities"]),
        ([*AFFINITIES, "long_range=[[0,0,-9]]"], ["nothing uses the long_range channels", "agglomerate.long_range"]),
        ([*AFFINITIES, "agglomerate.long_range=true"], ["agglomerate.long_range needs the offsets in long_range"]),
        ([*FAR, "engine=waterz"], ["and engine exact"]),
        ([*FAR, "long_range=[[0,0,9]]"], ["long_range offset [0, 0, 9]", "turn all signs round"]),
        (
            [*FAR, "block_shape=[8,8,8]"],
            ["blocks of [8, 8, 8]", "no longer than a block"],
        ),
        (["keep=[pieces]"], ["keep.0", "'pieces'"]),
        (["predict.batch_size=0"], ["predict.batch_size", "got 0"]),
        (["predict.device=tpu"], ["predict.device", "'auto', 'cpu' or 'cuda'", "got 'tpu'"]),
        (["predict.intensity=[9, 9]"], ["intensity", "two values that differ", "[9.0, 9.0]"]),
        (["predict.intensity=[0, 9]", "predict.inverted=true"], ["inverted goes with the default intensity"]),
        (["predict.flips=[x, x]"], ["flips ['x', 'x'] name an axis twice"]),
        (["predict.flips=[c]"], ["predict.flips.0", "got 'c'"]),
        (["box=[[0,0,0]]"], ["box must be [[z0, y0, x0], [z1, y1, x1]]"]),
        (["box=[[0,0],[1,1]]"], ["box"]),
        (["cluster=mesos"], ["cluster.kind", "'kubernetes' or 'address'", "got 'mesos'"]),
        (["cluster=local:many"], ["cluster.workers", "got 'many'"]),
        (["cluster=local:0"], ["cluster.workers", "greater than or equal to 1"]),
        (["cluster=address"], ["cluster", "kind `address` needs an address"]),
        (["affinities=b.zarr"], ["exactly one of `image` and `affinities`"]),
        (["image=null"], ["exactly one of `image` and `affinities`"]),
        (["output=null"], ["output"]),
        (["image.x=3"], ["--set 'image.x=3'", "image holds 'a.zarr'"]),
        (["thresholds"], ["--set 'thresholds' must be key=value"]),
        (["=3"], ["must be key=value"]),
        (["thresholds=[0.3"], ["--set 'thresholds=[0.3'", "not YAML"]),
    ],
)
def test_mistakes_are_told_in_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(WorkflowError) as caught:
        load("segment", ["image=a.zarr", "output=run1", *overrides])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"image: [", ["is not YAML"]),
        (b"- image\n- output", ["must hold keys and values, got list"]),
        (b"\xff\xfe\x00", ["is not YAML"]),
        (b"image: a.zarr", ["output", "Field required"]),
        (b"", ["Field required"]),
    ],
)
def test_files_that_are_no_workflow(content: bytes, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(content)
    with pytest.raises(WorkflowError) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    for name in ("segmnt", str(tmp_path)):
        with pytest.raises(WorkflowError, match=r"neither a file nor one of segment, stitch, train"):
            load(name)


class TestThresholds:
    @pytest.mark.parametrize("text", [0.3, "0.3", "0.30", "3e-1", " .3", "+0.300", "30E-2"])
    def test_one_value_has_one_name(self, text: object) -> None:
        assert Workflow.model_validate({**GIVEN, "thresholds": [text]}).thresholds == ("0.3",)

    def test_it_is_computed_from_the_decimal_text(self) -> None:
        # 0.3 * 255 * 2**20 = 80216064 exactly; the binary number 0.3 lies below it, 0.1 + 0.2 above.
        assert integer_threshold(Fraction("0.3")) == 80216064
        (text,) = Workflow.model_validate({**GIVEN, "thresholds": [0.3]}).thresholds
        assert integer_threshold(Fraction(text)) == 80216064
        (text,) = Workflow.model_validate({**GIVEN, "thresholds": [0.1 + 0.2]}).thresholds
        assert integer_threshold(Fraction(text)) == 80216065

    @given(st.decimals(0, 1, places=9) | st.floats(0, 1).map(lambda value: Decimal(repr(value))))
    def test_it_is_the_exact_ceiling(self, value: Decimal) -> None:
        if value.as_tuple().exponent < -24:
            return
        values = {**GIVEN, "thresholds": [str(value)], "agglomerate": {"lowest_threshold": "0"}}
        (text,) = Workflow.model_validate(values).thresholds
        assert Decimal(text) == value
        assert integer_threshold(Fraction(text)) == math.ceil(Fraction(value) * 255 * 2**20)
        assert text == "0" or not text.endswith(".")
        assert "e" not in text.lower()
