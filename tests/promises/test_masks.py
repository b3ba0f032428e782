"""Masks at any scale: what they leave out has no label and no edge, whatever the blocks; empty blocks are left out.

Random volumes run in memory, where a block that is left out has neither tables nor labels: to ask for them is an error.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuroshed
from neuroshed.engine.progress import Progress
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.kernels.conventions import edges_box
from neuroshed.stages import masks
from neuroshed.stages.affinities import NEAREST
from neuroshed.stages.masks import Skipped, empty_blocks
from neuroshed.storage.volumes import create_volume, open_volume

from .cases import check, masked_case
from .chunks import random_affinities, write_affinities
from .memory import in_memory

CASES, MORE_CASES, CHUNK = 40, 1000, 20


@pytest.mark.parametrize("first", range(0, CASES, CHUNK))
def test_any_chunking_equals_the_reference(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(masked_case(seed))


@pytest.mark.system
@pytest.mark.parametrize("first", range(10_000, 10_000 + MORE_CASES, CHUNK))
def test_any_chunking_equals_the_reference_in_a_thousand_more(first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(masked_case(seed))


def test_blocks_are_empty_where_no_voxel_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each voxel of each block looked at; masks read in pieces of a few voxels, and whole."""
    left_out = []
    for seed in range(40):
        case = masked_case(seed)
        given, grid = [mask for mask, _ in case.masks], Grid(case.region, case.block)
        with in_memory(case.affinities, {mask.path: values for mask, values in case.masks}):
            whole, digests = empty_blocks(given, grid)
            monkeypatch.setattr(masks, "PIECE_VOXELS", 1 + seed % 20)
            pieces, _ = empty_blocks(given, grid)
            monkeypatch.undo()
        origin, allowed = case.region.start, case.allowed_inside
        expected = [not allowed[grid.block_box(index).slices(origin)].any() for index in grid]
        assert whole.ravel().tolist() == pieces.ravel().tolist() == expected
        assert len(digests) == len(given)
        left_out += expected
    assert 0.1 < np.mean(left_out) < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_nodes_above_blocks_that_are_left_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 9, 3).tolist()
    sides = rng.integers(1, 9, 3).tolist()
    z, y, x = (a + n for a, n in zip(start, sides, strict=True))
    grid = Grid(Box((start[0], start[1], start[2]), (z, y, x)), (1, 2, 1))
    blocks = rng.random(grid.counts) < 0.8
    skipped = Skipped.of(grid, blocks)
    assert skipped is not None
    levels = grid.octree()
    assert len(skipped.levels) == len(levels)
    for level, found in zip(levels, skipped.levels, strict=True):
        expected = [all(map(skipped.holds, grid.touching(level.block_box(index)))) for index in level]
        assert found.ravel().tolist() == expected


SHAPE, BLOCK = (12, 16, 20), (4, 8, 5)
TISSUE, VESSEL = 1, 7


@pytest.fixture(scope="module")
def affinities() -> np.ndarray:
    """With no edge that leaves the volume."""
    found = random_affinities(np.random.default_rng(1), SHAPE, 256)
    for values, offset in zip(found, NEAREST, strict=True):
        outside = np.ones(SHAPE, bool)
        outside[edges_box(Box.of_shape(SHAPE), offset).slices()] = False
        values[outside] = 0
    return found


@pytest.fixture(scope="module")
def allowed() -> np.ndarray:
    """Half of the volume in steps of 2 x 4 x 4 voxels, less a vessel that winds through it."""
    tissue = np.zeros(SHAPE, bool)
    tissue[2:10, :8, 4:] = True
    return tissue & ~vessel()


def vessel() -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return np.asarray((y - 4) ** 2 + (z - 6 - x // 8) ** 2 < 5)


def write(path: Path, values: np.ndarray, voxel_size: Vec = (10, 10, 10), offset: Vec = (0, 0, 0)) -> Path:
    z, y, x = values.shape[-3:]
    volume = create_volume(
        path,
        shape=(z, y, x),
        dtype=values.dtype,
        shard_shape=(z, y, x),
        voxel_size=voxel_size,
        offset=offset,
        voxel_offsets=NEAREST[: len(values)] if values.ndim == 4 else None,
    )
    volume.write(volume.box, values)
    return path


@pytest.fixture(scope="module")
def inputs(affinities: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Affinities, a coarse mask of booleans and a fine one of labels."""
    folder = tmp_path_factory.mktemp("inputs")
    write_affinities(folder / "affinities.zarr", affinities)
    tissue = np.zeros((6, 4, 5), bool)
    tissue[1:5, :2, 1:] = True
    write(folder / "tissue.zarr", tissue, (20, 40, 40))
    write(folder / "vessel.zarr", np.where(vessel(), VESSEL, 3).astype(np.int16))
    write(folder / "everywhere.zarr", np.ones((1, 1, 1), np.uint8), (120, 160, 200))
    return folder


def masks_of(inputs: Path) -> str:
    tissue, vessels = inputs / "tissue.zarr", inputs / "vessel.zarr"
    return f"masks=[{{path: {tissue}, keep: [{TISSUE}]}}, {{path: {vessels}, drop: [{VESSEL}]}}]"


def settings(inputs: Path, output: Path, *extra: str) -> list[str]:
    return [
        f"affinities={inputs / 'affinities.zarr'}",
        f"output={output}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:2",
        "fragments.small=6",
        "fragments.dust=2",
        "keep=[segmentation,fragments,merges]",
        "thresholds=[0.5]",
        "agglomerate.alarm_share=1",
        "failures.backoff_seconds=0",
        *extra,
    ]


def run(inputs: Path, output: Path, *extra: str) -> dict[str, Any]:
    return neuroshed.run("stitch", settings(inputs, output, *extra))


def labels_of(summary: dict[str, Any]) -> dict[str, np.ndarray]:
    found = {name: summary[name] for name in ("fragments",) if name in summary} | summary["segmentations"]
    return {name: open_volume(path).read(Box.of_shape(SHAPE)) for name, path in found.items()}


@pytest.fixture(scope="module")
def masked(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with masks; tests that change it work on copies."""
    output = tmp_path_factory.mktemp("masked") / "run"
    assert run(inputs, output, masks_of(inputs))["status"] == "done"
    return output


GRID = Grid(Box.of_shape(SHAPE), BLOCK)


def empty_of(allowed: np.ndarray) -> list[bool]:
    return [not allowed[GRID.block_box(index).slices()].any() for index in GRID]


ENGINES = {
    "exact": [],
    "waterz": ["engine=waterz", "fragments.context=[2,2,2]"],
    "mutex": ["fragments.method=mutex", "fragments.context=[2,2,2]"],
}


@pytest.mark.parametrize("engine", ["exact", "waterz", pytest.param("mutex", marks=pytest.mark.system)])
def test_labels_are_those_of_affinities_without_the_masked_edges(
    engine: str, inputs: Path, affinities: np.ndarray, allowed: np.ndarray, tmp_path: Path
) -> None:
    """Whatever makes the fragments; and every voxel that is not allowed is 0, all others are labelled or background."""
    cut = affinities.copy()
    for axis, values in enumerate(cut):
        values[~(allowed & np.roll(allowed, 1, axis))] = 0
    (tmp_path / "plain").mkdir()
    write_affinities(tmp_path / "plain" / "affinities.zarr", cut)
    summary = run(inputs, tmp_path / "masked", masks_of(inputs), *ENGINES[engine])
    plain = labels_of(run(tmp_path / "plain", tmp_path / "plain" / "run", *ENGINES[engine]))
    for name, labels in labels_of(summary).items():
        np.testing.assert_array_equal(labels, plain[name])
        assert not labels[~allowed].any()
        assert (labels[allowed] != 0).mean() > 0.5
    kind = {"exact": "fragments"}.get(engine, f"{engine}_fragments")
    assert summary["stages"][kind]["skipped"] == sum(empty_of(allowed)) == 12


def test_any_blocks_with_smoothing_and_bias(inputs: Path, allowed: np.ndarray, tmp_path: Path) -> None:
    adjusted = (masks_of(inputs), "fragments.smooth=0.7", "fragments.bias=0.1", "box=[[1,0,0],[12,15,20]]")
    first, *others = (
        labels_of(run(inputs, tmp_path / str(number), *adjusted, f"block_shape={block}"))
        for number, block in enumerate(("[4,8,5]", "[12,16,20]", "[5,5,9]"))
    )
    assert all(not labels[~allowed].any() and labels.any() for labels in first.values())
    for other in others:
        for name, labels in first.items():
            np.testing.assert_array_equal(labels, other[name])


def test_blocks_are_counted_and_write_nothing(masked: Path, inputs: Path, allowed: np.ndarray) -> None:
    skipped = sum(empty_of(allowed))
    plan = neuroshed.plan("stitch", settings(inputs, masked, masks_of(inputs)))
    rows = {row["stage"]: row for row in plan["stages"]}
    assert (rows["fragments"]["skipped"], rows["fragments"]["blocks"]) == (skipped, len(GRID))
    status = neuroshed.status(masked)
    assert status["status"] == "done"
    for title, row in status["stages"].items():
        assert (row["skipped"], row["blocks"]) == (rows[title]["skipped"], rows[title]["blocks"])
        assert row["done"] == row["blocks"] - row["skipped"]
    assert rows["segment 0.5"]["skipped"] >= 2 * skipped
    for index, empty in zip(GRID, empty_of(allowed), strict=True):
        name = "_".join(map(str, index))
        for file in (*masked.glob(f"fragments-*/blocks/{name}.parquet"), *masked.glob(f"*/*0/{name}.parquet")):
            assert not empty, file
        shards = [file for file in masked.glob(f"*/*.zarr/0/c/{'/'.join(map(str, index))}") if file.is_file()]
        assert len(shards) == (0 if empty else 3)


def test_what_comes_after_a_run(masked: Path, inputs: Path, allowed: np.ndarray, tmp_path: Path) -> None:
    output = Path(shutil.copytree(masked, tmp_path / "run"))
    checked = neuroshed.verify(output, blocks=None)
    assert (checked["status"], checked["unfinished"], checked["dropped"]) == ("equal", [], [])
    assert neuroshed.verify(output, blocks=2)["status"] == "equal"
    again = neuroshed.resume(output)
    assert again["restored_blocks"] == sum(row["done"] for row in again["stages"].values())
    cut = labels_of(neuroshed.cut(output, ["0.4"]))
    assert cut["0.4"].any()
    assert not cut["0.4"][~allowed].any()
    write(tmp_path / "truth.zarr", np.where(allowed, np.indices(SHAPE)[2] // 5 + 1, 0).astype(np.uint32))
    found = neuroshed.sweep(output, tmp_path / "truth.zarr", thresholds=["0.4", "0.6"])
    assert found["scores"]["0.4"] == neuroshed.evaluate(segmentation(output, "0.4"), tmp_path / "truth.zarr")
    assert neuroshed.clean(output)["finds"] == []


def segmentation(output: Path, threshold: str) -> Path:
    return next(output.glob(f"segment-*/{threshold}.zarr"))


def contents(run_folder: Path) -> dict[str, bytes]:
    """All bytes that the stages wrote, by path."""
    files = (file for folder in run_folder.glob("*-*") for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(run_folder)): file.read_bytes() for file in files if file.name != "stage.json"}


@pytest.mark.parametrize("blocks", [1, 20])
def test_a_run_that_is_broken_off_goes_on_to_the_same_bytes(
    blocks: int, inputs: Path, masked: Path, tmp_path: Path
) -> None:
    class BrokenOffError(Exception):
        pass

    def watch(progress: Progress) -> None:
        if sum(count.done for count in progress.stages.values()) >= blocks:
            raise BrokenOffError

    given = settings(inputs, tmp_path / "run", masks_of(inputs))
    with pytest.raises(BrokenOffError):
        neuroshed.run("stitch", given, watch=watch)
    summary = neuroshed.resume(tmp_path / "run")
    assert summary["status"] == "done"
    assert summary["restored_blocks"] >= blocks
    assert contents(tmp_path / "run") == contents(masked)


def test_what_is_not_kept_goes_and_comes_again(inputs: Path, masked: Path, tmp_path: Path) -> None:
    given = (masks_of(inputs), "keep=[segmentation]")
    run(inputs, tmp_path / "run", *given, "thresholds=[0.4]")
    assert not [*(tmp_path / "run").glob("fragments-*/blocks/*"), *(tmp_path / "run").glob("agglomerate-*/up*/*")]
    again = run(inputs, tmp_path / "run", *given)
    expected = open_volume(segmentation(masked, "0.5")).read(Box.of_shape(SHAPE))
    np.testing.assert_array_equal(labels_of(again)["0.5"], expected)


def test_a_lost_file_of_a_block_that_was_not_left_out_is_an_error(masked: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(masked, tmp_path / "run"))
    lost = sorted(output.glob("fragments-*/labels.zarr/0/c/*/*/*"))[0]
    lost.unlink()
    with pytest.raises(RunFailedError) as caught:
        neuroshed.cut(output, ["0.4"])
    assert f"{lost} is missing or empty" in caught.value.summary["failures"][0]["error"]


def test_a_mask_that_leaves_nothing_out_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    box = "box=[[4,0,5],[12,16,15]]"
    summary = run(inputs, tmp_path / "masked", box, f"masks=[{{path: {inputs / 'everywhere.zarr'}, keep: [1]}}]")
    plain = run(inputs, tmp_path / "plain", box)
    assert {name: row["skipped"] for name, row in summary["stages"].items()} == dict.fromkeys(plain["stages"], 0)

    def by_name(run_folder: Path) -> dict[str, list[bytes]]:
        """Folders have other names, since a mask is a parameter."""
        found: dict[str, list[bytes]] = {}
        for path, data in sorted(contents(run_folder).items()):
            folder, _, file = path.partition("/")
            found.setdefault(f"{folder.partition('-')[0]}/{file}", []).append(data)
        return {name: sorted(parts) for name, parts in found.items()}

    assert by_name(tmp_path / "masked") == by_name(tmp_path / "plain")


def test_a_mask_that_changed_is_told(inputs: Path, masked: Path, tmp_path: Path) -> None:
    """Also where no sample is taken of it."""
    shutil.copytree(inputs, tmp_path / "inputs")
    run(tmp_path / "inputs", tmp_path / "run", masks_of(tmp_path / "inputs"))
    path = tmp_path / "inputs" / "vessel.zarr"
    values = open_volume(path).read(Box.of_shape(SHAPE))
    values[8, 1, 11] = VESSEL
    shutil.rmtree(path)
    write(path, values)
    with pytest.raises(WorkflowError, match=rf"fragments\.masks: .*allowed_sha256 of {path} changed; put them back"):
        neuroshed.resume(tmp_path / "run")
    # By the same values it is the same mask.
    shutil.rmtree(path)
    shutil.copytree(inputs / "vessel.zarr", path)
    assert neuroshed.resume(tmp_path / "run")["status"] == "done"


@pytest.mark.parametrize(
    ("values", "place", "rule", "words"),
    [
        (np.ones((6, 8, 10), np.uint8), ((25, 20, 20), (0, 0, 0)), "keep: [1]", "needed are whole multiples of"),
        (np.ones(SHAPE, np.uint8), ((5, 5, 5), (0, 0, 0)), "keep: [1]", "needed are whole multiples of"),
        (np.ones(SHAPE, np.uint8), ((10, 10, 10), (0, 10, 0)), "keep: [1]", "mask .* begins at .* crop one"),
        (np.ones((6, 8, 9), np.uint8), ((20, 20, 20), (0, 0, 0)), "keep: [1]", "does not cover the volume"),
        (np.ones(SHAPE, np.float32), ((10, 10, 10), (0, 0, 0)), "keep: [1]", "of integers or booleans, got float32"),
        (np.ones((2, *SHAPE), np.uint8), ((10, 10, 10), (0, 0, 0)), "keep: [1]", "got uint8 of 2 channels"),
        (np.ones(SHAPE, np.uint8), ((10, 10, 10), (0, 0, 0)), "drop: [256]", "uint8, which cannot hold the value 256"),
        (np.ones(SHAPE, np.bool_), ((10, 10, 10), (0, 0, 0)), "keep: [2]", "is bool, which cannot hold the value 2"),
        (np.ones(SHAPE, np.int16), ((10, 10, 10), (0, 0, 0)), "keep: [-40000]", "cannot hold the value -40000"),
    ],
)
def test_masks_that_do_not_fit(
    values: np.ndarray, place: tuple[Vec, Vec], rule: str, words: str, inputs: Path, tmp_path: Path
) -> None:
    write(tmp_path / "mask.zarr", values, *place)
    with pytest.raises(InputError, match=words):
        run(inputs, tmp_path / "run", f"masks=[{{path: {tmp_path / 'mask.zarr'}, {rule}}}]")
    assert not (tmp_path / "run").exists()


def test_masks_that_cannot_be_read_or_leave_nothing(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no volume at .*missing\.zarr"):
        run(inputs, tmp_path / "run", f"masks=[{{path: {tmp_path / 'missing.zarr'}, keep: [1]}}]")
    nothing = f"masks=[{{path: {inputs / 'everywhere.zarr'}, drop: [1]}}]"
    with pytest.raises(WorkflowError, match=r"masks .*everywhere\.zarr leave nothing to segment: no voxel of \[0:12"):
        run(inputs, tmp_path / "run", nothing)
    with pytest.raises(WorkflowError, match="leave nothing to segment"):
        run(inputs, tmp_path / "run", masks_of(inputs), "box=[[0,9,0],[12,16,20]]")
    path = Path(shutil.copytree(inputs / "vessel.zarr", tmp_path / "vessel.zarr"))
    shard = next(file for file in path.glob("0/c/*/*/*"))
    # The last bytes are the index of the shard: samples and all else fail alike, named.
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(InputError, match=rf"{path}"):
        run(inputs, tmp_path / "run", f"masks=[{{path: {path}, drop: [7]}}]")
    assert not (tmp_path / "run").exists()
