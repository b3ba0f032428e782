"""Against catastrophic merges: a largest size, classes kept apart, an alarm; each the same whatever the blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroshed
from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE = (9, 12, 14)
BLOCKS = ((9, 12, 14), (4, 6, 5), (3, 12, 5))


@pytest.fixture
def affinities(tmp_path: Path) -> Path:
    return write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(5), SHAPE, 256))


def run(affinities: Path, output: Path, block: Vec, *extra: str) -> dict[str, Any]:
    return neuroshed.run(
        "stitch",
        [
            f"affinities={affinities}",
            f"output={output}",
            f"block_shape={list(block)}",
            "cluster=in-process:2",
            "fragments.high=1",
            "fragments.small=3",
            "fragments.dust=0",
            "thresholds=[0.2, 0.4]",
            "keep=[segmentation,fragments,merges,affinities]",
            *extra,
        ],
    )


def labels(path: str) -> np.ndarray:
    volume = open_volume(path)
    return volume.read(volume.box)


def same_in_all_blocks(affinities: Path, folder: Path, *extra: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The summary and the labels of a run, once those in all block shapes are found equal."""
    found = []
    for number, block in enumerate(BLOCKS):
        summary = run(affinities, folder / f"run{number}", block, *extra)
        paths = {"fragments": summary["fragments"], **summary["segmentations"]}
        found.append((summary, {name: labels(path) for name, path in paths.items()}))
    for summary, other in found[1:]:
        assert summary["largest_segments"] == found[0][0]["largest_segments"]
        for name, array in other.items():
            np.testing.assert_array_equal(array, found[0][1][name])
    return found[0]


def write_classes(path: Path, classes: np.ndarray, voxel_size: Vec = (10, 10, 10)) -> Path:
    volume = create_volume(
        path, shape=classes.shape, dtype=classes.dtype, shard_shape=classes.shape, voxel_size=voxel_size
    )
    volume.write(volume.box, classes)
    return path


@pytest.mark.system
def test_no_merge_makes_a_segment_too_large(affinities: Path, tmp_path: Path) -> None:
    _, free = same_in_all_blocks(affinities, tmp_path / "free")
    limit = int(np.unique(free["0.2"], return_counts=True)[1].max() // 2)
    _, capped = same_in_all_blocks(affinities, tmp_path / "capped", f"agglomerate.max_size={limit}")
    np.testing.assert_array_equal(capped["fragments"], free["fragments"])
    fragment_sizes = np.unique(free["fragments"], return_counts=True)[1].max()
    sizes = np.unique(capped["0.2"][capped["0.2"] != 0], return_counts=True)[1]
    assert sizes.max() <= max(limit, fragment_sizes)
    assert (capped["0.2"] != free["0.2"]).any()


@pytest.mark.system
def test_the_largest_segment_is_told_and_alarms(affinities: Path, tmp_path: Path) -> None:
    summary, found = same_in_all_blocks(affinities, tmp_path, "agglomerate.alarm_share=0.05")
    alarms = iter(summary["alarms"])
    for name in ("fragments", "0.2", "0.4"):
        ids, sizes = np.unique(found[name][found[name] != 0], return_counts=True)
        told = summary["largest_segments"][name]
        assert told["voxels"] == sizes.max()
        assert sizes[ids == told["segment"]] == sizes.max()
        assert told["share"] == pytest.approx(sizes.max() / np.prod(SHAPE), abs=1e-6)
        if told["share"] > 0.05:
            assert next(alarms).startswith(f"at {name} segment {told['segment']} holds ")
    assert next(alarms, None) is None
    assert summary["alarms"]
    output = tmp_path / "run0"
    assert neuroshed.status(output)["alarms"] == summary["alarms"]
    calm = run(affinities, output, BLOCKS[0], "agglomerate.alarm_share=1")
    # The limit of the alarm is no reason to compute anything again.
    assert calm["alarms"] == []
    assert calm["restored_blocks"] == sum(row["done"] for row in calm["stages"].values())


@pytest.mark.system
@pytest.mark.parametrize("coarse", [1, 2])
def test_classes_are_not_merged_with_each_other(coarse: int, affinities: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shape = [-(-n // coarse) for n in SHAPE]
    classes = np.kron(rng.integers(0, 4, [-(-n // 4) for n in shape]), np.ones((4, 4, 4), np.uint8)).astype(np.uint8)
    classes = classes[: shape[0], : shape[1], : shape[2]]
    path = write_classes(tmp_path / "classes.zarr", classes, (10 * coarse,) * 3)
    _, free = same_in_all_blocks(affinities, tmp_path / "free")
    _, found = same_in_all_blocks(affinities, tmp_path / "kept", f"semantics={{path: {path}, classes: [2, 3]}}")
    fine = classes.repeat(coarse, 0).repeat(coarse, 1).repeat(coarse, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]

    def mixed(segmentation: np.ndarray) -> int:
        """Segments that hold fragments of both classes."""
        kinds: dict[int, set[int]] = {}
        for fragment in np.unique(found["fragments"][found["fragments"] != 0]):
            inside = found["fragments"] == fragment
            votes = [int((fine[inside] == kind).sum()) for kind in (2, 3)]
            if 2 * max(votes) >= inside.sum():
                kinds.setdefault(int(segmentation[inside][0]), set()).add(votes.index(max(votes)))
        return sum(len(found) > 1 for found in kinds.values())

    np.testing.assert_array_equal(found["fragments"], free["fragments"])
    assert mixed(free["0.2"]) > 0
    assert mixed(found["0.2"]) == mixed(found["0.4"]) == 0


@pytest.mark.parametrize(
    ("classes", "voxel_size", "words"),
    [
        (np.zeros(SHAPE, np.float32), (10, 10, 10), "must be a label volume of integers, got float32"),
        (np.zeros(SHAPE, np.uint8), (15, 10, 10), "needed are whole multiples of"),
        (np.zeros((9, 12, 13), np.uint8), (10, 10, 10), "does not cover the volume"),
    ],
)
def test_classes_that_do_not_fit(
    classes: np.ndarray, voxel_size: Vec, words: str, affinities: Path, tmp_path: Path
) -> None:
    path = write_classes(tmp_path / "classes.zarr", classes, voxel_size)
    with pytest.raises(InputError, match=words):
        run(affinities, tmp_path / "run", SHAPE, f"semantics={{path: {path}, classes: [1]}}")


@pytest.mark.system
@pytest.mark.parametrize("setting", ["fragments.smooth=1", "fragments.bias=-0.2", "agglomerate.score=max"])
def test_options_that_change_labels_do_so_alike_in_all_blocks(setting: str, affinities: Path, tmp_path: Path) -> None:
    _, plain = same_in_all_blocks(affinities, tmp_path / "plain")
    _, found = same_in_all_blocks(affinities, tmp_path / "changed", setting)
    assert (found["0.4"] != plain["0.4"]).any()
