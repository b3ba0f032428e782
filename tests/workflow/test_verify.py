"""`verify` computes blocks again and tells what differs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import BlockError, RunFailedError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import differing_column, read_node, write_node
from neuroshed.storage.volumes import create_volume, open_volume
from neuroshed.workflow.run import planned_stages

from ..promises.chunks import random_affinities, write_affinities

SHAPE = (8, 10, 12)
LEAVES, TREE = 8, 9


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_affinities(folder / "affinities.zarr", random_affinities(np.random.default_rng(3), SHAPE, 256))
    neuroshed.run(
        "stitch",
        [
            f"affinities={path}",
            f"output={folder / 'run'}",
            "block_shape=[4,5,6]",
            "cluster=in-process:2",
            "fragments.small=4",
            "fragments.dust=0",
            "failures.backoff_seconds=0",
        ],
    )
    return folder / "run"


@pytest.fixture
def summary(finished: Path, tmp_path: Path) -> dict[str, Any]:
    return neuroshed.status(shutil.copytree(finished, tmp_path / "run"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_blocks_of_a_sound_run_are_equal(summary: dict[str, Any], tmp_path: Path) -> None:
    before = tree(tmp_path / "run")
    found = neuroshed.verify(tmp_path / "run", blocks=None)
    assert found["status"] == "equal"
    assert sum(row["done"] for row in found["stages"].values()) == LEAVES + TREE + 2 * (TREE + LEAVES)
    assert found["unfinished"] == []
    # Nothing was changed, nothing is left over.
    assert tree(tmp_path / "run") == before


def test_the_command_takes_a_sample(summary: dict[str, Any], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "run"), "--blocks", "2"])
    assert result.exit_code == 0
    assert "verify fragments: 2 blocks equal" in result.stdout
    assert "verify segment 0.5 down1: 1 blocks equal" in result.stdout


def test_a_changed_label_is_found(summary: dict[str, Any], tmp_path: Path) -> None:
    volume = open_volume(summary["segmentations"]["0.5"])
    labels = volume.read(volume.box)
    labels[1, 2, 3] += 1
    path, shards = volume.path, volume.shard_shape
    path.delete_tree()
    create_volume(path, shape=SHAPE, dtype=np.uint64, shard_shape=shards, voxel_size=(10, 10, 10)).write(
        volume.box, labels
    )
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "run"), "--all"])
    assert result.exit_code == 1
    assert "segment 0.5 paint [0, 0, 0]: 1 values of" in result.stderr
    assert "the first at voxel [1, 2, 3]" in result.stderr
    # It was told, not mended.
    assert open_volume(path).read(volume.box)[1, 2, 3] == labels[1, 2, 3]


def test_a_changed_table_is_found(summary: dict[str, Any], tmp_path: Path) -> None:
    stage = next(stage for stage in planned_stages(Location.of(tmp_path / "run")) if stage.kind == "agglomerate")
    names = ("entering", "fragments", "merges", "nodes", "gains", "links", "edges", "copies", "names")
    path = stage.node_path("up0", (1, 1, 1))
    tables = dict(zip(names, read_node(path, *names), strict=True))
    tables["nodes"]["rank"] = tables["nodes"]["rank"] + np.uint64(1)
    write_node(path, tables)
    with pytest.raises(RunFailedError, match=r"agglomerate up0 \[1, 1, 1\]: column nodes.rank of") as caught:
        neuroshed.verify(tmp_path / "run", blocks=None)
    assert len(caught.value.summary["failures"]) == 1
    assert not list((tmp_path / "run").glob("verify-*"))


def test_what_is_not_done_is_named(summary: dict[str, Any], tmp_path: Path) -> None:
    shutil.rmtree(summary["segmentations"]["0.3"])
    assert neuroshed.verify(tmp_path / "run", blocks=1)["unfinished"] == ["segment 0.3"]
    for folder in (tmp_path / "run").glob("*-*"):
        shutil.rmtree(folder)
    with pytest.raises(WorkflowError, match="has no finished stage to verify"):
        neuroshed.verify(tmp_path / "run")


def test_what_was_not_kept_is_named(image: Path, model: Path, tmp_path: Path) -> None:
    def verified(keep: str) -> Result:
        output = tmp_path / keep
        given = [f"image={image}", f"model={model}", f"output={output}", "block_shape=[16,16,16]", "thresholds=[0.5]"]
        summary = neuroshed.run("segment", [*given, f"keep=[{keep}]", "cluster=in-process:2"])
        # Nor is it told as an output.
        for told in (summary, neuroshed.status(output)):
            assert "affinities" not in told
            assert list(told["segmentations"]) == ["0.5"]
        return CliRunner().invoke(main, ["verify", str(output), "--blocks", "1"])

    some = verified("segmentation,merges")
    assert some.exit_code == 0
    assert "verify segment 0.5 paint: 1 blocks equal" in some.stdout
    left_out = [line for line in some.stdout.splitlines() if line.startswith("not verified")]
    assert left_out == [
        f"not verified, since what it wrote or read was not kept: {s}" for s in ("predict", "fragments")
    ]
    none = verified("segmentation")
    assert none.exit_code == 2
    assert "cannot be verified: what predict, fragments, agglomerate, segment 0.5 wrote or read" in none.stderr


def test_columns_differ_in_name_type_or_value(tmp_path: Path) -> None:
    tables = {"a": {"x": np.arange(3), "y": np.ones((2, 2), np.int64)}}
    others: list[tuple[dict[str, Any], str | None]] = [
        (tables, None),
        ({"a": {**tables["a"], "x": np.arange(3, dtype=np.uint64)}}, "a.x"),
        ({"a": {**tables["a"], "y": np.zeros((2, 2), np.int64)}}, "a.y"),
        ({"a": {"x": tables["a"]["x"]}}, "a.y"),
        ({**tables, "b": {"z": np.zeros(0)}}, "b.z"),
    ]
    place = Location.of(tmp_path)
    write_node(place / "one", tables)
    for other, expected in others:
        write_node(place / "other", other)
        assert differing_column(place / "one", place / "other") == expected
        assert differing_column(place / "other", place / "one") == expected
    with pytest.raises(BlockError, match="is missing"):
        differing_column(place / "one", place / "none")
    (place / "other").put((place / "one").read_bytes()[:50])
    with pytest.raises(BlockError, match="is damaged"):
        differing_column(place / "one", place / "other")
