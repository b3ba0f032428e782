"""Plans: what a workflow would do, and every input that cannot be used, told before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.geometry import Box
from neuroshed.stages.predict import Predict
from neuroshed.storage.models import load_model, save_model
from neuroshed.storage.volumes import open_volume
from neuroshed.terminal.units import size
from neuroshed.workflow import trial
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import make_plan

Writer = Callable[..., Path]


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder; folders count as well."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def refusal(settings: list[str]) -> str:
    """What the command line says of a mistake of the user, in one line."""
    result = CliRunner().invoke(main, ["plan", "segment", *(word for text in settings for word in ("--set", text))])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("neuroshed: ")
    return lines[0]


@pytest.fixture
def settings(image: Path, model: Path, tmp_path: Path) -> list[str]:
    return [f"image={image}", f"model={model}", f"output={tmp_path / 'run'}", "block_shape=[16,16,16]"]


def test_a_plan_says_what_it_costs_and_writes_nothing(settings: list[str], tmp_path: Path) -> None:
    before = tree(tmp_path)
    plan = neuroshed.plan("segment", settings)
    assert tree(tmp_path) == before
    assert [row["stage"] for row in plan["stages"]] == [
        "predict", "fragments", "agglomerate", "segment 0.3", "segment 0.5",
    ]  # fmt: skip
    blocks = {row["stage"]: row["blocks"] for row in plan["stages"]}
    assert blocks == {"predict": 8, "fragments": 8, "agglomerate": 9, "segment 0.3": 17, "segment 0.5": 17}
    assert plan["voxels"] == 24 * 30 * 20
    assert plan["tree_levels"] == 2
    assert plan["suggested_block_multiple"] == [8, 8, 8]
    assert plan["redundant_compute"] == pytest.approx(1.5**3)
    assert all(row["memory_bytes"] > 0 for row in plan["stages"])
    assert {row["stage"]: row["output_bytes"] for row in plan["stages"]}["segment 0.3"] == 8 * plan["voxels"]


def test_what_is_on_disk_is_told_in_one_line(settings: list[str]) -> None:
    def told(keep: str) -> str:
        words = [word for text in (*settings, f"keep={keep}") for word in ("--set", text)]
        result = CliRunner().invoke(main, ["plan", "segment", *words])
        assert result.exit_code == 0
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("disk: "))
        peak = size(neuroshed.plan("segment", [*settings, f"keep={keep}"])["peak_disk_bytes"])
        assert line.startswith(f"disk: at most {peak} at a time before compression; kept: ")
        return line.partition("kept: ")[2]

    assert told("[segmentation]") == (
        "segment 0.3, segment 0.5; deleted once nothing reads them: predict, fragments, agglomerate"
    )
    assert told("[segmentation, merges, affinities]") == "predict, fragments, agglomerate, segment 0.3, segment 0.5"


def test_files_are_planned(settings: list[str], tmp_path: Path) -> None:
    plan = neuroshed.plan("segment", settings)
    # 8 blocks of a shard each; a tree of 8 leaves and a root.
    files = {row["stage"]: row["output_files"] for row in plan["stages"]}
    assert files == {"predict": 8, "fragments": 16, "agglomerate": 9, "segment 0.3": 17, "segment 0.5": 17}
    assert (plan["peak_files"], plan["input_bytes"]) == (67, plan["voxels"])
    assert plan["files_per_input_tb"] == round(67 * 1e12 / plan["voxels"])
    assert plan["bytes_per_input_tb"] == round(plan["peak_disk_bytes"] * 1e12 / plan["voxels"])
    words = [word for text in settings for word in ("--set", text)]
    lines = CliRunner().invoke(main, ["plan", "segment", *words]).stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("files: at most 67 at a time; for each TB of input at most "))
    assert line.endswith(f" and {plan['files_per_input_tb']:,} files")


@pytest.mark.parametrize(
    ("inodes", "said"),
    [(67, None), (66, "inodes for 66 more; they would run out before its space: choose a larger block_shape")],
)
def test_a_file_system_without_room_for_so_many_files_is_told(
    inodes: int, said: str | None, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def status(path: Path) -> Any:
        found = real(path)
        return SimpleNamespace(f_files=100, f_favail=inodes, f_bavail=found.f_bavail, f_frsize=found.f_frsize)

    monkeypatch.setattr(os, "statvfs", status)
    warnings = [text for text in neuroshed.plan("segment", settings)["warnings"] if "inodes" in text]
    assert bool(warnings) == bool(said)
    assert all(said in text and "the run may make 67 files at a time" in text for text in warnings)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["block_shape=[100,60,64]", "shard_shape=[64,64,64]"],
         ["block [100, 60, 64] is not a multiple of shard [64, 64, 64]", "nearest that fits: [128, 64, 64]"]),
        (["box=[[0,0,0],[25,30,20]]"], ["box [0:25, 0:30, 0:20] is not inside the volume [0:24, 0:30, 0:20]"]),
        (["box=[[-1,0,0],[2,2,2]]"], ["box [-1:2", "is not inside the volume"]),
        (["box=[[5,5,5],[5,9,9]]"], ["box [5:5, 5:9, 5:9] is not inside"]),
        (["box=[[9,9,9],[5,5,5]]"], ["box [9:5, 9:5, 9:5] is not inside"]),
        (["image=/nowhere/a.zarr"], ["no volume at /nowhere/a.zarr", "check the spelling"]),
        (["model=/nowhere/net"], ["no model at /nowhere/net", "fibsem"]),
        (["thresholds=[0.1]"], ["below agglomerate.lowest_threshold"]),
        (["cluster=foo"], ["cluster.kind", "'foo'"]),
        (["nothing=1"], ["unknown key nothing"]),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(extra: list[str], words: list[str], settings: list[str], tmp_path: Path) -> None:
    message = refusal([*settings, *extra])
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            np.random.default_rng(0).random((8, 8, 8)).astype(np.float32),
            ["is float32", "integers of 8 or 16 bits", "--range"],
        ),
        (np.full((8, 8, 8), np.nan, np.float32), ["is float32", "integers of 8 or 16 bits"]),
        (np.zeros((8, 8, 8), np.int32), ["is int32", "integers of 8 or 16 bits"]),
        (np.full((8, 8, 8), 7, np.uint8), ["is constant", "hold only 7", "check that it was written whole"]),
        (np.zeros((3, 8, 8, 8), np.uint8), ["has 3 channels", "needed is one"]),
    ],
)
def test_images_that_cannot_be_predicted(
    data: np.ndarray, words: list[str], settings: list[str], write_image: Writer
) -> None:
    message = refusal([*settings, f"image={write_image('bad.zarr', data)}"])
    assert "bad.zarr" in message
    assert all(word in message for word in words), message


def test_four_channels_and_colours_at_the_end(settings: list[str], tmp_path: Path) -> None:
    for name, shape in (("four", (4, 8, 8, 8)), ("rgb", (8, 8, 8, 3))):
        zarr.create_array(tmp_path / f"{name}.zarr", shape=shape, dtype="uint8")
        assert f"has {shape[0]} channels; needed is one" in refusal([*settings, f"image={tmp_path / f'{name}.zarr'}"])


def test_an_image_that_is_constant_elsewhere_can_be_used_in_a_box(settings: list[str], write_image: Writer) -> None:
    data = np.zeros((80, 80, 80), np.uint8)
    data[:4, :4, :4] = np.random.default_rng(0).integers(1, 255, (4, 4, 4))
    given = [*settings, f"image={write_image('mostly.zarr', data)}"]
    assert "give a `box` that holds tissue" in refusal(given)
    assert neuroshed.plan("segment", [*given, "box=[[0,0,0],[4,4,4]]"])["voxels"] == 64


def test_a_damaged_image(settings: list[str], image: Path) -> None:
    for file in (image / "0" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-9])
    message = refusal(settings)
    assert "cannot be read" in message
    assert "copy the volume again" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((3, 4, 4, 4), np.uint16), ["uint16", "value_range"]),
        (np.zeros((2, 4, 4, 4), np.uint8), ["no channel holds the edges of offset [0, 0, -1]"]),
        (np.zeros((4, 4, 4), np.uint8), ["has 3 axes", "c, z, y, x"]),
    ],
)
def test_affinities_that_are_none(data: np.ndarray, words: list[str], write_image: Writer, tmp_path: Path) -> None:
    message = refusal([f"affinities={write_image('aff.zarr', data)}", f"output={tmp_path / 'run'}"])
    assert all(word in message for word in words), message


def test_weights_of_another_network(settings: list[str], model: Path, tmp_path: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(model.with_suffix(suffix), tmp_path / f"net{suffix}")
    with (tmp_path / "net.safetensors").open("ab") as file:
        file.write(b" ")
    message = refusal([*settings, f"model={tmp_path / 'net'}"])
    assert "the pair is damaged or mixed" in message


def test_the_same_weights_in_another_architecture_are_another_network(
    settings: list[str], model: Path, tmp_path: Path
) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(model.with_suffix(suffix), tmp_path / f"net{suffix}")
    same, card = load_model(tmp_path / "net"), json.loads((tmp_path / "net.json").read_text())
    assert same.network_sha256 == load_model(model).network_sha256
    # Groups of the normalisation have no weights.
    card["architecture"]["groups"] //= 2
    (tmp_path / "net.json").write_text(json.dumps(card))
    other = load_model(tmp_path / "net")
    assert other.weights_sha256 == same.weights_sha256
    assert other.network_sha256 != same.network_sha256


def test_an_output_that_is_a_file_or_the_input(settings: list[str], image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"output {tmp_path / 'file'} is a file; name a folder" in refusal([*settings, f"output={tmp_path / 'file'}"])
    for output in (image, image / "run"):
        assert "is in the input" in refusal([*settings, f"output={output}"])


def test_an_output_that_cannot_be_made(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["run", "segment", *(word for text in settings for word in ("--set", text))]
    result = CliRunner().invoke(main, [*arguments, "--set", f"output={tmp_path / 'file' / 'run'}"])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr.splitlines()[-1]


def run(settings: list[str], *extra: str) -> dict[str, Any]:
    return neuroshed.run(
        "segment", [*settings, "cluster=in-process:2", "fragments.small=20", "fragments.dust=0", *extra]
    )


def arrays(summary: dict[str, Any]) -> list[np.ndarray]:
    volumes = [open_volume(path) for path in (summary["affinities"], *summary["segmentations"].values())]
    return [volume.read(volume.box) for volume in volumes]


def test_a_run_changes_nothing_of_its_input(settings: list[str], image: Path, tmp_path: Path) -> None:
    before = tree(image)
    for summary in (run(settings), run(settings), neuroshed.resume(tmp_path / "run")):
        assert summary["status"] == "done"
        assert tree(image) == before


@pytest.mark.parametrize(
    ("batch_size", "blocks"), [(1, ([24, 30, 20], [16, 16, 16], [11, 8, 13])), (3, ([24, 30, 20], [13, 16, 12]))]
)
def test_any_blocks_give_the_same_from_the_image_on(
    batch_size: int, blocks: tuple[list[int], ...], settings: list[str], tmp_path: Path
) -> None:
    found = [
        arrays(run(settings, f"output={tmp_path / str(n)}", f"block_shape={block}", f"predict.batch_size={batch_size}"))
        for n, block in enumerate(blocks)
    ]
    assert np.unique(found[0][1]).size > 10
    for other in found[1:]:
        for expected, got in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_the_full_run_uses_the_blocks_of_a_trial(settings: list[str], tmp_path: Path) -> None:
    trial = run(settings, "box=[[3,4,5],[14,20,16]]")
    assert trial["stages"]["predict"]["blocks"] == 2
    outside = arrays(trial)[1].copy()
    outside[Box((3, 4, 5), (14, 20, 16)).slices()] = 0
    assert not outside.any()
    full = run(settings)
    assert full["restored_blocks"] == 2
    fresh = run(settings, f"output={tmp_path / 'fresh'}")
    assert fresh["restored_blocks"] == 0
    for expected, got in zip(arrays(fresh), arrays(full), strict=True):
        np.testing.assert_array_equal(got, expected)
    # The trial's own results are still there.
    assert run(settings, "box=[[3,4,5],[14,20,16]]")["restored_blocks"] == sum(
        row["blocks"] for row in trial["stages"].values()
    )


def test_sixteen_bits_are_scaled_by_their_percentiles(settings: list[str], image: Path, write_image: Writer) -> None:
    pixels = open_volume(image).read(Box.of_shape((24, 30, 20)))
    wide = write_image("wide.zarr", pixels.astype(np.uint16) * 200 + 1000)
    source = make_plan(load("segment", [*settings, f"image={wide}"])).fragments.source
    low, high = np.percentile(pixels, [0.1, 99.9]) * 200 + 1000
    assert source.normalisation == pytest.approx((low, high), abs=400)
    narrow = arrays(run(settings, "predict.intensity=[0,255]", "box=[[0,0,0],[8,16,16]]"))
    found = arrays(run(settings, f"image={wide}", "predict.intensity=[1000,52000]", "box=[[0,0,0],[8,16,16]]"))
    for expected, got in zip(narrow, found, strict=True):
        np.testing.assert_allclose(got.astype(np.int64), expected.astype(np.int64), atol=1 if got.ndim == 4 else 0)
    default = arrays(run(settings, f"image={wide}", "box=[[0,0,0],[8,16,16]]"))
    assert np.abs(default[0].astype(int) - narrow[0]).mean() < 5


def test_a_larger_patch_computes_less_twice(settings: list[str]) -> None:
    plan = neuroshed.plan("segment", [*settings, "predict.patch=[20,20,20]"])
    assert plan["redundant_compute"] == pytest.approx((20 / 16) ** 3)
    assert plan["suggested_block_multiple"] == [16, 16, 16]
    flipped = neuroshed.plan("segment", [*settings, "predict.patch=[20,20,20]", "predict.flips=[z,x]"])
    assert flipped["redundant_compute"] == pytest.approx(4 * (20 / 16) ** 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["predict.patch=[13,12,12]"], ["is not a multiple of the product of the poolings, (2, 2, 2)"]),
        (["predict.patch=[4,12,12]"], ["must be larger than twice the model's context (2, 2, 2)"]),
        (["predict.patch=[1200,1200,1200]"], ["predict needs", "GB, there are", "smaller predict.patch"]),
        (["predict.batch_size=1000000"], ["1000000 at a time", "smaller predict.patch, predict.batch_size"]),
    ],
)
def test_patches_that_cannot_be_are_refused(settings: list[str], given: list[str], words: list[str]) -> None:
    told = refusal([*settings, *given])
    assert all(word in told for word in words), told


def test_voxels_of_another_size_are_told(settings: list[str], image: Path, model: Path, tmp_path: Path) -> None:
    assert neuroshed.plan("segment", settings)["warnings"] == []
    loaded = load_model(model)
    card = loaded.card.model_copy(update={"voxel_size": (40.0, 4.0, 4.0)})
    other = save_model(tmp_path / "coarse", card, loaded.net.state_dict())
    words = [word for text in (*settings, f"model={other}") for word in ("--set", text)]
    told = CliRunner().invoke(main, ["plan", "segment", *words])
    assert told.exit_code == 0
    assert "are 10 x 10 x 10 nm, the model learnt from 40 x 4 x 4 nm (0.25 x 2.5 x 2.5 times as large)" in told.stdout


def test_a_run_whose_labels_may_differ_says_so(settings: list[str]) -> None:
    small = [*settings, "box=[[0,0,0],[8,8,8]]"]
    assert run(small)["alarms"] == []
    (alarm,) = run(small, "predict.deterministic=false")["alarms"]
    assert "another run may give other labels" in alarm


def test_a_measured_batch_size_is_kept_with_the_results(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = iter([4, 2])
    monkeypatch.setattr(trial, "_measured", lambda predict: next(measured))
    auto = [*settings, "predict.batch_size=auto", "box=[[0,0,0],[16,16,16]]", "cluster=in-process:2"]
    first = run(auto)
    again = run([*auto, "box=[[0,0,0],[16,16,20]]"])
    assert again["affinities"] == first["affinities"]
    assert again["stages"]["predict"]["done"] == 2
    assert run([*settings, "predict.batch_size=4", "box=[[0,0,0],[16,16,16]]"])["affinities"] == first["affinities"]
    other = run([*auto, f"output={tmp_path / 'other'}"])
    assert list(measured) == []
    assert Path(other["affinities"]).parent.name != Path(first["affinities"]).parent.name


def test_a_batch_size_is_measured_on_the_volume(settings: list[str]) -> None:
    source = make_plan(load("segment", [*settings, "predict.batch_size=auto"])).fragments.source
    assert source.batch_size in trial.BATCHES
    if not torch.cuda.is_available():
        assert "there is no GPU here; give a number" in refusal(
            [*settings, "predict.batch_size=auto", "predict.device=cuda"]
        )


def test_a_step_that_no_worker_could_do_is_told_with_what_there_is(settings: list[str]) -> None:
    pools = {"cpu": {"memory_gb": 0.001}, "gpu": {"memory_gb": 0.0001, "gpus": 1}}
    line = refusal([*settings, f"cluster={json.dumps({'kind': 'slurm', 'pools': pools})}"])
    assert re.search(r"a block of predict needs a GPU worker with 0\.\d+ GB", line)
    assert "the pools have (GB): cpu 0.001, gpu 0.0001" in line


def test_a_batch_that_a_gpu_cannot_hold_is_told_with_one_that_it_can(settings: list[str]) -> None:
    def given(gpu_memory_gb: float, batch_size: int) -> list[str]:
        pools = {"gpu": {"memory_gb": 64, "gpus": 1, "gpu_memory_gb": gpu_memory_gb}}
        cluster = json.dumps({"kind": "slurm", "pools": pools})
        return [*settings, f"cluster={cluster}", f"predict.batch_size={batch_size}"]

    source = make_plan(load("segment", given(1000, 1))).fragments.source
    assert isinstance(source, Predict)
    assert source.gpu_bytes(3) - source.gpu_bytes(1) == 2 * source.patch_bytes
    enough = (source.gpu_bytes(3) + 1000) / 1e9
    assert make_plan(load("segment", given(enough, 3)))
    line = refusal(given(enough, 4))
    assert re.search(
        r"the network needs about \d+\.\d GB of GPU memory for 4 patches of .*set predict.batch_size to 3", line
    )
    assert "choose a smaller predict.patch" in refusal(given(0.5, 1))


@pytest.mark.parametrize(("gpus", "device"), [(1, "cuda"), (0, "cpu")])
def test_the_network_runs_on_gpus_where_workers_have_some(settings: list[str], gpus: int, device: str) -> None:
    cluster = {"kind": "slurm", "pools": {"cpu": {"memory_gb": 8}, "other": {"memory_gb": 8, "gpus": gpus}}}
    plan = make_plan(load("segment", [*settings, f"cluster={json.dumps(cluster)}"]))
    source = plan.fragments.source
    assert isinstance(source, Predict)
    assert source.device == device
    assert source.resource("") == ("gpu" if gpus else "cpu")
