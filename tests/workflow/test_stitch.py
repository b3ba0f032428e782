"""The `stitch` workflow: anybody's affinities, however they are stored, to the same segmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import neuroshed
from neuroshed.errors import InputError, RunFailedError
from neuroshed.stages import settle
from neuroshed.stages.windows import Split, agglomerate_split
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import differing_column
from neuroshed.storage.volumes import open_volume

from ..promises.chunks import random_affinities

SHAPE = (8, 10, 12)
Store = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def affinities() -> np.ndarray:
    """uint8 `(3, z, y, x)`, channel c at voxel p joining p and p - e_c, 0 where that leaves the volume."""
    found = random_affinities(np.random.default_rng(3), SHAPE, 256)
    for axis in range(3):
        found[axis].swapaxes(0, axis)[0] = 0
    return found


def run(path: Path, output: Path, *extra: str) -> dict[str, Any]:
    settings = [f"affinities={path}", f"output={output}", "block_shape=[4,5,6]", "cluster=in-process:2"]
    return neuroshed.run("stitch", [*settings, "fragments.small=4", "fragments.dust=0", *extra])


def store(path: Path, values: np.ndarray) -> Path:
    zarr.save_array(path, values)
    return path


def labels(summary: dict[str, Any]) -> np.ndarray:
    volume = open_volume(summary["segmentations"]["0.5"])
    return volume.read(volume.box)


@pytest.fixture(scope="module")
def plain(affinities: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The segmentation of affinities that are stored as ours."""
    folder = tmp_path_factory.mktemp("plain")
    found = labels(run(store(folder / "plain.zarr", affinities), folder / "run"))
    assert np.unique(found).size > 10
    return found


def at_lower_voxel(found: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(found[axis], -1, axis) for axis in range(3)])


@pytest.mark.parametrize(
    ("convention", "stored"),
    [
        ("{}", lambda a: a),
        ("{}", lambda a: (a / 255).astype(np.float32)),
        ("{channels: xyz}", lambda a: a[::-1]),
        ("{sign: positive}", at_lower_voxel),
        ("{sign: positive, stored_at: destination}", lambda a: a),
        ("{sign: negative, stored_at: destination}", at_lower_voxel),
        ("{inverted: true}", lambda a: 255 - a),
        ("{value_range: [0, 65535]}", lambda a: a.astype(np.uint16) * 257),
        ("{array_axes: xyz, channels: xyz}", lambda a: a[::-1].transpose(0, 3, 2, 1)),
        ("{channel_axis: last}", lambda a: np.moveaxis(a, 0, -1)),
        ("{offsets: [[0, 0, 1], [0, -1, 0], [-1, 0, 0]]}", lambda a: np.stack([at_lower_voxel(a)[2], a[1], a[0]])),
    ],
)
def test_every_convention_gives_the_same(
    convention: str, stored: Store, affinities: np.ndarray, plain: np.ndarray, tmp_path: Path
) -> None:
    given = store(tmp_path / "given.zarr", np.ascontiguousarray(stored(affinities)))
    found = labels(run(given, tmp_path / "run", f"convention={convention}"))
    np.testing.assert_array_equal(found, plain)


def test_a_value_that_is_not_a_number_is_refused_by_name(affinities: np.ndarray, tmp_path: Path) -> None:
    values = (affinities / 255).astype(np.float32)
    values[1, 5, 7, 8] = np.nan
    with pytest.raises(RunFailedError) as caught:
        run(store(tmp_path / "given.zarr", values), tmp_path / "run", "failures.backoff_seconds=0")
    message = str(caught.value)
    assert "given.zarr, channel 1 (offset [0, -1, 0])" in message
    assert "[5, 7, 8]" in message
    assert "nan" in message.lower()


def test_wide_numbers_are_planned_with_more_memory(affinities: np.ndarray, tmp_path: Path) -> None:
    def planned(name: str, values: np.ndarray) -> int:
        path = store(tmp_path / f"{name}.zarr", values)
        rows = neuroshed.plan("stitch", [f"affinities={path}", f"output={tmp_path / name}"])["stages"]
        return int(next(row["memory_bytes"] for row in rows if row["stage"] == "fragments"))

    assert planned("wide", affinities / 255) > planned("narrow", affinities)


def test_too_few_channels_are_refused_before_work(affinities: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have 2 channels for 3 offsets"):
        run(store(tmp_path / "given.zarr", affinities[:2]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_little_memory_for_graphs_changes_no_byte(
    affinities: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = []

    def counted(*given: Any) -> Split:
        split.append(given)
        return agglomerate_split(*given)

    monkeypatch.setattr(settle, "agglomerate_split", counted)
    path = store(tmp_path / "given.zarr", affinities)
    plain = run(path, tmp_path / "plain")
    assert not split
    run(path, tmp_path / "little", "agglomerate.graph_gb=1e-6")
    nodes = sorted(file.relative_to(tmp_path / "plain") for file in (tmp_path / "plain").glob("agglomerate-*/up*/*"))
    assert len(split) == len(nodes) > 8
    for node in nodes:
        plain_table, table = (Location.of(tmp_path / name / node) for name in ("plain", "little"))
        assert differing_column(plain_table, table) is None
    again = run(path, tmp_path / "plain", "agglomerate.graph_gb=1e-6")
    assert again["restored_blocks"] == sum(row["done"] for row in plain["stages"].values())
