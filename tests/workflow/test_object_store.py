"""A run in a bucket is the same run: same files, same bytes, same commands."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 10, 12), (8, 5, 6)


def given(folder: Location) -> Location:
    """Affinities in a folder."""
    found = random_affinities(np.random.default_rng(3), SHAPE, 256)
    write_affinities(folder / "affinities.zarr", found)
    return folder / "affinities.zarr"


def classes(folder: Location) -> Location:
    """Classes of tissue in a folder."""
    volume = create_volume(
        folder / "classes.zarr", shape=SHAPE, dtype=np.uint8, shard_shape=SHAPE, voxel_size=(10, 10, 10)
    )
    volume.write(volume.box, np.random.default_rng(5).integers(0, 4, SHAPE).astype(np.uint8))
    return folder / "classes.zarr"


def tissue(folder: Location) -> Location:
    """A mask in a folder that leaves half of the blocks empty."""
    volume = create_volume(
        folder / "tissue.zarr", shape=SHAPE, dtype=np.uint8, shard_shape=SHAPE, voxel_size=(10, 10, 10)
    )
    volume.write(volume.box, (np.indices(SHAPE)[2] < BLOCK[2]).astype(np.uint8))
    return folder / "tissue.zarr"


def settings(affinities: Location, output: Location, *extra: str) -> list[str]:
    fixed = [f"block_shape={list(BLOCK)}", "fragments.small=4", "fragments.dust=0", "thresholds=[0.5]"]
    return [f"affinities={affinities}", f"output={output}", "cluster=in-process:2", *fixed, *extra]


def contents(run: Location) -> dict[str, bytes]:
    """What a run's stages wrote, by names below the run."""
    names = {str(file).removeprefix(f"{run}/"): file for file, _ in run.files() if file.name != "stage.json"}
    return {name: file.read_bytes() for name, file in names.items() if "-" in name.partition("/")[0]}


def by_kind(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same by kinds of stages, without their fingerprints, which hold the paths of inputs."""
    return {re.sub("-[0-9a-f]{12}/", "/", name): data for name, data in files.items()}


@pytest.mark.system
def test_a_run_in_a_bucket_is_byte_for_byte_that_of_a_folder(any_bucket: Location, tmp_path: Path) -> None:
    here, there = Location.of(tmp_path), any_bucket / "runs" / "one"
    affinities = given(any_bucket)
    extra = (
        f"semantics={{path: '{classes(any_bucket)}', classes: [1, 2]}}",
        f"masks=[{{path: '{tissue(any_bucket)}', keep: [1]}}]",
    )
    # A worker in a process of its own makes a client of its own.
    summary = neuroshed.run("stitch", settings(affinities, there, *extra, "cluster=local:1"))
    assert 0 < summary["stages"]["fragments"]["skipped"] < summary["stages"]["fragments"]["blocks"]
    assert (summary["status"], summary["run"]) == ("done", f"{any_bucket}/runs/one")
    local = neuroshed.run("stitch", settings(affinities, here / "one", *extra))
    assert summary["largest_segments"] == local["largest_segments"]
    found = contents(there)
    assert found == contents(here / "one")
    assert {name.partition("-")[0] for name in found} == {"fragments", "agglomerate", "segment"}
    assert len(found) > 15
    extra = (
        f"semantics={{path: '{classes(here)}', classes: [1, 2]}}",
        f"masks=[{{path: '{tissue(here)}', keep: [1]}}]",
    )
    neuroshed.run("stitch", settings(given(here), here / "plain", *extra))
    assert by_kind(found) == by_kind(contents(here / "plain"))
    assert len(by_kind(found)) == len(found)
    volume = open_volume(summary["segmentations"]["0.5"])
    assert np.unique(volume.read(volume.box)).size > 10
    assert {"workflow.yaml", "plan.json", "summary.json"} <= set(there.names())
    secrets = [b"a-secret-of-tests", base64.b64encode(b"a-secret-of-tests")]
    assert not any(secret in file.read_bytes() for file, _ in there.files() for secret in secrets)


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.system
def test_every_command_knows_the_run(bucket: Location) -> None:
    run, thread = bucket / "run", ("--cluster", "in-process:1")
    whole = neuroshed.run("stitch", settings(given(bucket), run))
    before = contents(run)
    assert call("status", run)["status"] == "done"
    (stage,) = (run / name for name in run.names() if name.startswith("agglomerate"))
    stage.delete_tree()
    assert contents(run).keys() < before.keys()
    again = call("resume", run)
    rows = whole["stages"]
    assert again["restored_blocks"] == sum(row["done"] for row in rows.values()) - rows["agglomerate"]["done"]
    assert contents(run) == before
    verified = call("verify", run, "--blocks", "1", *thread)
    assert (verified["status"], verified["unfinished"]) == ("equal", [])
    assert not [name for name in run.names() if name.startswith("verify")]
    cut = call("cut", run, "--threshold", "0.4", *thread)
    assert list(cut["segmentations"]) == ["0.5", "0.4"]
    assert before.items() <= contents(run).items()
    assert call("evaluate", *cut["segmentations"].values(), *thread)["voi"] > 0
    assert call("run", run / "workflow.yaml")["status"] == "done"


def test_mistakes_are_said_before_anything_is_written(bucket: Location, tmp_path: Path) -> None:
    affinities = given(bucket)
    missing = Location.of("s3://no-such-bucket") / "run"
    with pytest.raises(WorkflowError, match="there is no bucket no-such-bucket"):
        neuroshed.plan("stitch", settings(affinities, missing))
    with pytest.raises(WorkflowError, match="there is no bucket no-such-bucket"):
        neuroshed.plan("stitch", settings(missing, bucket / "run"))
    with pytest.raises(InputError, match="the path does not exist"):
        neuroshed.plan("stitch", settings(bucket / "none", bucket / "run"))
    with pytest.raises(WorkflowError, match="is in the input"):
        neuroshed.plan("stitch", settings(affinities, affinities / "run"))
    with pytest.raises(WorkflowError, match="ftp:// is unknown"):
        neuroshed.plan("stitch", [f"affinities={affinities}", "output=ftp://bucket/run"])
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.status(str(bucket / "run"))
    with pytest.raises(WorkflowError, match="holds no run"):
        neuroshed.resume(str(bucket / "run"))
    with pytest.raises(WorkflowError, match="neither a file nor one of"):
        neuroshed.run(str(bucket / "workflow.yaml"))
    with pytest.raises(InputError, match="copy other formats to a disk of this machine first"):
        neuroshed.import_volume(str(bucket / "a.tif"), str(bucket / "a.zarr"), (1, 1, 1))
    assert bucket.names() == ["affinities.zarr"]
