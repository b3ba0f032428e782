"""`neuroshed model check` on real tissue: right is found right, and each mistake is named."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import BlockError, InputError
from neuroshed.storage.declared import ForeignModel

HERE = "tests.workflow.shipped_nets:fibsem"


@pytest.fixture(scope="session")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo volume, FIB-SEM at 10 nm."""
    source = resources.files("neuroshed") / "assets" / "demo" / "fib25.h5"
    target = tmp_path_factory.mktemp("tissue") / "image.zarr"
    return neuroshed.import_volume(str(source), target, (10.0, 10.0, 10.0), dataset="raw")


def declared(change: str, **more: Any) -> dict[str, Any]:
    values = {
        "path": HERE, "arguments": {"change": change}, "channels": "zyx", "sign": "negative", "context": [4, 16, 16],
        "output": "probabilities", "input_shape": [40, 96, 96], "scaled_to": [0, 255], "voxel_size": [10, 10, 10],
    }  # fmt: skip
    return values | more


def check(tissue: Path, change: str, **more: Any) -> dict[str, Any]:
    return neuroshed.check_model(ForeignModel(**declared(change, trust=True, **more)), tissue)


def test_ours_is_found_right(tissue: Path) -> None:
    result = CliRunner().invoke(main, ["model", "check", "fibsem", str(tissue), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["faults"] == []
    assert [row["neighbour"] for row in report["channels"]] == ["-z", "-y", "-x"]
    assert report["patch"] == [96, 96, 96]
    assert 0 < report["seam"]["inside"] < 10
    assert report["memory_bytes"] > 50e6
    assert report["suggested"]["batch_size"] in (1, 2, 4, 8, 16)
    assert report["voxels_per_second"] > 0
    assert all(row["lowest"] < row["mean"] < row["highest"] for row in report["channels"])


MISTAKES = {
    "shifted": r"all channels lie about \(0, 1, 0\) voxels",
    "swapped": "channel z agrees better with the neighbour -x than with -z, another axis: check channels",
    "opposite": r"channel y agrees better with the neighbour \+y than with -y, the opposite neighbour: check sign",
    "inverted": "affinities are low where the image is bright: declare `inverted`",
    "constant": r"channel z is nearly constant \(0.30\)",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_each_mistake_is_named(tissue: Path, change: str) -> None:
    faults = check(tissue, change)["faults"]
    assert faults
    assert any(re.search(MISTAKES[change], fault) for fault in faults), faults


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ("nothing", {}),
        ("swapped", {"channels": "xyz"}),
        ("inverted", {"inverted": True}),
        ("opposite", {"sign": "positive"}),
    ],
)
def test_what_is_declared_rightly_has_no_faults(tissue: Path, change: str, more: dict[str, Any]) -> None:
    report = check(tissue, change, **more)
    assert report["faults"] == []
    assert [row["neighbour"] for row in report["channels"]] == ["-z", "-y", "-x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [("no number", "gives NaN or infinity in"), ("few channels", "gives 2 channels, declared are 3")],
)
def test_what_cannot_go_on_is_an_error(tissue: Path, change: str, message: str) -> None:
    with pytest.raises(BlockError, match=message):
        check(tissue, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no number", "a trial on one patch of .* gives NaN or infinity in"),
        ("few channels", "a trial on one patch of .* gives 2 channels, declared are 3"),
        ("nothing", None),
    ],
)
def test_a_run_is_not_planned_with_what_cannot_go_on(
    tissue: Path, tmp_path: Path, change: str, message: str | None
) -> None:
    model = yaml.safe_dump(declared(change, trust=True), default_flow_style=True, width=1000)
    given = [f"image={tissue}", f"model={model}", f"output={tmp_path / 'run'}"]
    with pytest.raises(InputError, match=message) if message else nullcontext():
        neuroshed.plan("segment", given)


def test_other_voxels_are_told_with_the_ratio(tissue: Path) -> None:
    (fault,) = check(tissue, "nothing", voxel_size=[40, 4, 10])["faults"]
    assert "10 x 10 x 10 nm, the model learnt from 40 x 4 x 10 nm (0.25 x 2.5 x 1 times as large)" in fault


def invoke(tmp_path: Path, tissue: Path, *options: str) -> Result:
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump(declared("swapped")))
    return CliRunner().invoke(main, ["model", "check", str(file), str(tissue), *options])


def test_by_the_command_line(tmp_path: Path, tissue: Path) -> None:
    refused = invoke(tmp_path, tissue)
    assert refused.exit_code == 2
    assert "can run any code when it is loaded; set trust: true" in refused.stderr
    told = invoke(tmp_path, tissue, "--trust")
    assert told.exit_code == 1
    assert "FAULT: channel z agrees better with the neighbour -x" in told.stdout
    assert "patch [40, 96, 96], context [4, 16, 16]" in told.stdout


def test_a_run_with_a_foreign_model_equals_one_with_ours(tmp_path: Path, tissue: Path) -> None:
    """Another format, the same patches and weights: the same neurons, up to rounding."""
    from neuroshed.storage.models import load_model
    from neuroshed.storage.volumes import open_volume

    lattice = load_model("fibsem").lattice
    theirs = declared("nothing", input_shape=list(lattice.patch), context=list(lattice.context), trust=True)
    settings = ["box=[[0,0,0],[64,64,35]]", "block_shape=[64,64,64]", "cluster=in-process:2"]
    settings += [f"image={tissue}", "predict.intensity=[0,255]"]
    found = []
    for name, model in (("ours", "fibsem"), ("theirs", json.dumps(theirs))):
        summary = neuroshed.run("segment", [*settings, f"output={tmp_path / name}", f"model={model}"])
        volume = open_volume(summary["affinities"])
        found.append(volume.read(volume.box).astype(int))
    assert np.abs(found[0] - found[1]).max() <= 1
    assert found[0].std() > 30
    again = neuroshed.resume(tmp_path / "theirs")
    assert again["restored_blocks"] == sum(row["blocks"] for row in again["stages"].values())


def test_a_model_that_is_not_trusted_is_refused_at_plan_time(tmp_path: Path, tissue: Path) -> None:
    model = json.dumps(declared("nothing"))
    with pytest.raises(InputError, match="set trust: true"):
        neuroshed.plan("segment", [f"image={tissue}", f"output={tmp_path / 'run'}", f"model={model}"])
