"""A run in a bucket is the same run: same files, same bytes, same commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 10, 12), (4, 5, 6)


@pytest.fixture
def affinities(bucket: Location) -> Location:
    """Affinities in a bucket."""
    return given(bucket)


def given(folder: Location) -> Location:
    found = random_affinities(np.random.default_rng(3), SHAPE, 256)
    write_affinities(folder / "affinities.zarr", found)
    return folder / "affinities.zarr"


def settings(affinities: Location, output: Location, *extra: str) -> list[str]:
    fixed = [f"block_shape={list(BLOCK)}", "fragments.small=4", "fragments.dust=0", "keep=[fragments]"]
    return [f"affinities={affinities}", f"output={output}", "cluster=in-process:2", *fixed, *extra]


def contents(run: Location) -> dict[str, bytes]:
    """What a run's stages wrote, by names below the run."""
    return {
        str(file).removeprefix(f"{run}/"): file.read_bytes()
        for file, _ in run.files()
        if "-" in str(file).removeprefix(f"{run}/").partition("/")[0] and file.name != "stage.json"
    }


def by_kind(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same by kinds of stages, without their fingerprints, which hold the paths of inputs."""
    parts = {name: name.split("/", 1) for name in files}
    return {
        f"{folder.split('-')[0]}/{rest}": files[name] for name, (folder, rest) in parts.items() if "zarr" not in rest
    } | {name.partition("/")[2]: data for name, data in files.items() if ".zarr" in name}


def test_a_run_in_a_bucket_is_byte_for_byte_that_of_a_folder(
    affinities: Location, bucket: Location, tmp_path: Path
) -> None:
    here = Location.of(tmp_path)
    summary = neuroshed.run("stitch", settings(affinities, bucket / "runs" / "one"))
    assert summary["status"] == "done"
    assert summary["run"] == f"{bucket}/runs/one"
    local = neuroshed.run("stitch", settings(affinities, here / "one"))
    found = contents(bucket / "runs" / "one")
    assert found == contents(here / "one")
    assert {name.partition("-")[0] for name in found} == {"fragments", "agglomerate", "segment"}
    assert len(found) > 60
    assert summary["largest_segments"] == local["largest_segments"]
    plain = neuroshed.run("stitch", settings(given(here), here / "plain"))
    for threshold in ("0.3", "0.5"):
        volumes = [open_volume(each["segmentations"][threshold]) for each in (summary, plain)]
        one, other = (volume.read(volume.box) for volume in volumes)
        np.testing.assert_array_equal(one, other)
        assert np.unique(one).size > 10
    assert sorted(by_kind(found)) == sorted(by_kind(contents(here / "plain")))
    assert by_kind(found) == by_kind(contents(here / "plain"))


def test_what_is_written_holds_no_secrets(
    affinities: Location, bucket: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    neuroshed.run("stitch", settings(affinities, bucket / "run"))
    names = (bucket / "run").names()
    assert {"workflow.yaml", "plan.json", "summary.json"} <= set(names)
    assert not any(b"do-not-tell" in file.read_bytes() for file, _ in (bucket / "run").files())


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_command_knows_the_run(affinities: Location, bucket: Location) -> None:
    run = bucket / "run"
    whole = neuroshed.run("stitch", settings(affinities, run))
    before = contents(run)
    assert call("status", run)["status"] == "done"
    assert call("resume", run)["restored_blocks"] == sum(row["done"] for row in whole["stages"].values())
    verified = call("verify", run, "--all", "--cluster", "in-process:2")
    assert verified["status"] == "equal"
    assert sum(row["blocks"] for row in verified["stages"].values()) == whole["restored_blocks"] + sum(
        row["done"] for row in whole["stages"].values()
    )
    assert not [name for name in run.names() if name.startswith("verify")]
    cut = call("cut", run, "--threshold", "0.4", "--cluster", "in-process:2")
    assert list(cut["segmentations"]) == ["0.3", "0.5", "0.4"]
    assert before.items() <= contents(run).items()
    paths = [cut["segmentations"][threshold] for threshold in ("0.4", "0.5")]
    assert call("evaluate", *paths, "--cluster", "in-process:2")["voi"] > 0
    assert call("run", run / "workflow.yaml")["status"] == "done"


def test_a_removed_stage_is_done_again(affinities: Location, bucket: Location) -> None:
    run = bucket / "run"
    neuroshed.run("stitch", settings(affinities, run))
    before = contents(run)
    (stage,) = (run / name for name in run.names() if name.startswith("agglomerate"))
    stage.delete_tree()
    assert contents(run).keys() < before.keys()
    neuroshed.resume(str(run))
    assert contents(run) == before


def test_classes_of_tissue_may_lie_in_a_bucket(affinities: Location, bucket: Location, tmp_path: Path) -> None:
    from neuroshed.storage.volumes import create_volume

    classes = np.random.default_rng(5).integers(0, 4, SHAPE).astype(np.uint8)
    runs = []
    for folder in (bucket, Location.of(tmp_path)):
        volume = create_volume(
            folder / "classes.zarr", shape=SHAPE, dtype=np.uint8, shard_shape=SHAPE, voxel_size=(1, 1, 1)
        )
        volume.write(volume.box, classes)
        extra = f"semantics={{path: '{volume.path}', classes: [1, 2]}}"
        runs.append(neuroshed.run("stitch", settings(affinities, folder / "run", extra)))
    one, other = (open_volume(run["segmentations"]["0.5"]) for run in runs)
    np.testing.assert_array_equal(one.read(one.box), other.read(other.box))


def test_mistakes_are_said_before_anything_is_written(bucket: Location, affinities: Location, tmp_path: Path) -> None:
    missing = Location.of("s3://no-such-bucket") / "run"
    with pytest.raises(WorkflowError, match="there is no bucket no-such-bucket"):
        neuroshed.plan("stitch", settings(affinities, missing))
    with pytest.raises(WorkflowError, match="there is no bucket no-such-bucket"):
        neuroshed.plan("stitch", settings(missing, bucket / "run"))
    with pytest.raises(InputError, match="the path does not exist"):
        neuroshed.plan("stitch", settings(bucket / "none", bucket / "run"))
    with pytest.raises(WorkflowError, match="is in the input"):
        neuroshed.plan("stitch", settings(affinities, affinities / "run"))
    with pytest.raises(WorkflowError, match="gs:// is not supported yet"):
        neuroshed.plan("stitch", [f"affinities={affinities}", "output=gs://bucket/run"])
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.status(str(bucket / "run"))
    with pytest.raises(WorkflowError, match="holds no run"):
        neuroshed.resume(str(bucket / "run"))
    with pytest.raises(WorkflowError, match="neither a file nor one of"):
        neuroshed.run(str(bucket / "workflow.yaml"))
    with pytest.raises(WorkflowError, match="not supported yet; use a folder"):
        neuroshed.import_volume(tmp_path / "a.tif", str(bucket / "a.zarr"), (1, 1, 1))
    assert bucket.names() == ["affinities.zarr"]
