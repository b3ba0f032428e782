"""What stitching must refuse: each in one line, by name, with an exit code, before work is lost, never in silence."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.geometry import Vec
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

SHAPE, BLOCK = (8, 10, 12), (4, 5, 6)
BLOCKS = 8


def told(exit_code: int, *arguments: object) -> str:
    """The one line that a command ends with."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("neuroshed: ")]
    assert len(lines) == 1
    return lines[0]


def settings(affinities: Path, output: Path, *extra: str) -> list[str]:
    given = [
        f"affinities={affinities}",
        f"output={output}",
        f"block_shape={list(BLOCK)}",
        "cluster=in-process:1",
        "fragments.small=4",
        "fragments.dust=0",
        "thresholds=[0.5]",
        "failures.backoff_seconds=0",
        *extra,
    ]
    return [word for text in given for word in ("--set", text)]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return random_affinities(np.random.default_rng(3), SHAPE, 256)


@pytest.fixture(scope="module")
def affinities(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_affinities(tmp_path_factory.mktemp("input") / "affinities.zarr", values)


@pytest.fixture(scope="module")
def finished(affinities: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done; tests work on copies."""
    output = tmp_path_factory.mktemp("finished") / "run"
    result = CliRunner().invoke(main, ["run", "stitch", *settings(affinities, output)])
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


class TestBeforeAnythingIsWritten:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (np.zeros((2, *SHAPE), np.uint8), "have 2 channels for 3 offsets"),
            (np.zeros(SHAPE, np.uint8), "has 3 axes; needed are 4: c, z, y, x"),
            (np.zeros((2, 3, *SHAPE), np.uint8), "with at most one channel axis"),
            (np.zeros((3, 0, 4, 4), np.uint8), "and so no voxels; check that it was written whole"),
            (np.zeros((3, *SHAPE), np.complex64), "are complex64; needed are integers of 8 to 32 bits or floats"),
            (np.zeros((3, *SHAPE), bool), "are bool; needed are integers"),
            (np.zeros((3, *SHAPE), np.int64), "are int64; needed are integers"),
        ],
    )
    def test_what_cannot_be_affinities(self, data: np.ndarray, words: str, tmp_path: Path) -> None:
        array = zarr.create_array(tmp_path / "a.zarr", shape=data.shape, dtype=data.dtype, chunks=(4,) * data.ndim)
        array[...] = data
        for verb in ("plan", "run"):
            message = told(2, verb, "stitch", *settings(tmp_path / "a.zarr", tmp_path / "run"))
            assert words in message
            assert str(tmp_path / "a.zarr") in message
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ("thresholds=", "thresholds: Input should be a valid tuple, got None"),
            ("agglomerate.lowest_threshold=2", "agglomerate.lowest_threshold: needed is a number in 0..1"),
            ("agglomerate.lowest_threshold=0.6", "threshold 0.5 is below agglomerate.lowest_threshold 0.6"),
            ("fragments.low=1.1", "fragments.low: needed is a number in 0..1"),
            ("fragments.high=-0.1", "fragments.high: needed is a number in 0..1"),
            ("fragments.high=0.05", "fragments.low 0.1 is above fragments.high 0.05"),
            ("fragments.small=1.5", "fragments.small: Input should be a valid integer"),
            ("fragments.dust=-1", "fragments.dust: Input should be greater than or equal to 0, got -1"),
            ("fragments.smooth=-1", "fragments.smooth: Input should be greater than or equal to 0, got -1"),
            ("fragments.smooth=.nan", "fragments.smooth: "),
            ("fragments.bias=.nan", "fragments.bias: "),
            ("fragments.bias=-1.1", "fragments.bias: Input should be greater than or equal to -1, got -1.1"),
            ("fragments.biases=[0, 0, 0]", "fragments.biases are those of fragments.method mutex; leave them out"),
            ("fragments.context=[1, 1, 1]", "fragments.context is [1, 1, 1]; it is of method mutex and engine waterz"),
            ("agglomerate.alarm_share=1.1", "agglomerate.alarm_share: Input should be less than or equal to 1"),
            ("agglomerate.alarm_share=.nan", "agglomerate.alarm_share: "),
            ("agglomerate.score=quantile_101", "unknown score 'quantile_101'; known are mean, max, min and quantile_P"),
            ("shard_shape=[0, 5, 6]", "shard_shape: sides must be at least 1, got [0, 5, 6]"),
            ("shard_shape=[3, 5, 6]", "block [4, 5, 6] is not a multiple of shard [3, 5, 6]; nearest that fits: "),
            ("block_shape=[-4, 5, 6]", "block_shape: sides must be at least 1"),
            (
                "block_shape=[9999999, 9999999, 9999999]",
                "choose a smaller shard_shape, or block_shape if there is none",
            ),
            ("box=[[0, 0, 0], [8, 10, 13]]", "box [0:8, 0:10, 0:13] is not inside the volume [0:8, 0:10, 0:12]"),
            ("box=[[1, 1, 1], [1, 5, 5]]", "box [1:1, 1:5, 1:5] is not inside the volume"),
        ],
    )
    def test_settings_that_say_nothing_sensible(
        self, setting: str, words: str, affinities: Path, tmp_path: Path
    ) -> None:
        assert words in told(2, "run", "stitch", *settings(affinities, tmp_path / "run", setting))
        assert not (tmp_path / "run").exists()

    def test_a_block_larger_than_the_volume_is_no_mistake(self, affinities: Path, tmp_path: Path) -> None:
        given = [f"affinities={affinities}", f"output={tmp_path / 'run'}", "block_shape=[4096, 4096, 4096]"]
        assert neuroshed.plan("stitch", given)["tree_levels"] == 1

    @pytest.mark.parametrize(
        ("dtype", "channels", "classes", "words"),
        [
            (np.uint8, None, "[300]", "is uint8, which cannot hold class 300; name labels that it has"),
            (np.float32, None, "[1]", "must be a label volume of integers, got float32"),
            (np.uint8, 2, "[1]", "must be a label volume of integers, got uint8 of 2 channels"),
            (np.uint8, None, "[-1]", "semantics.classes.0: Input should be greater than or equal to 1, got -1"),
            (np.uint8, None, str([*range(1, 34)]), "semantics.classes: Tuple should have at most 32 items"),
        ],
    )
    def test_classes_that_cannot_be(
        self, dtype: type, channels: int | None, classes: str, words: str, affinities: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "classes.zarr"
        offsets = None if channels is None else [(0, 0, -1), (0, -1, 0)]
        create_volume(path, shape=SHAPE, dtype=dtype, shard_shape=SHAPE, voxel_size=(10, 10, 10), voxel_offsets=offsets)
        given = settings(affinities, tmp_path / "run", f"semantics={{path: {path}, classes: {classes}}}")
        assert words in told(2, "plan", "stitch", *given)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1.5, -0.5])
def test_values_that_are_none_hold_up_their_block_alone(wrong: float, values: np.ndarray, tmp_path: Path) -> None:
    data = (values / 255).astype(np.float32)
    data[1, 5, 7, 8] = wrong
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(1, 4, 4, 4))
    message = told(1, "run", "stitch", *settings(tmp_path / "a.zarr", tmp_path / "run"))
    assert f"1 block of run {tmp_path / 'run'} failed, the first of stage fragments at [1, 1, 1]" in message
    assert f"{tmp_path / 'a.zarr'}, channel 1 (offset [0, -1, 0]): voxel [5, 7, 8] (z y x) holds {wrong}" in message
    assert "needed are values in 0 to 1; mend the data, or declare the value_range that it has" in message
    assert neuroshed.status(tmp_path / "run")["stages"]["fragments"]["done"] == BLOCKS - 1
    assert f"has {BLOCKS - 1} of {BLOCKS} blocks of stage fragments" in told(
        2, "cut", tmp_path / "run", "--threshold", "0.6"
    )


class TestCut:
    @pytest.mark.parametrize("threshold", ["1.5", "-0.1", "nan", "inf", "0.3,0.4", "", "high"])
    def test_thresholds_that_are_none(self, threshold: str, finished: Path) -> None:
        message = told(2, "cut", finished, "--threshold", threshold)
        assert f"threshold: needed is a number in 0..1 of at most 24 decimals, got '{threshold}'" in message

    def test_a_threshold_that_was_not_recorded(self, finished: Path) -> None:
        message = told(2, "cut", finished, "--threshold", "0.19")
        assert "threshold 0.19 is below 0.2, down to which merges were recorded; run again with a lower" in message

    @pytest.mark.parametrize("verb", ["cancel", "clean", "cut", "status", "resume", "retry", "verify"])
    def test_what_is_no_run(self, verb: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        more = ["--threshold", "0.4"] if verb == "cut" else []
        for path in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
            assert f"{path} holds no run" in told(2, verb, path, *more)

    @pytest.mark.parametrize("verb", ["clean", "cut", "status", "resume", "retry", "verify"])
    @pytest.mark.parametrize("plan", [b"", b"[]", b"{}", b"3", b"[{]", b"\xff\xfe"])
    def test_a_plan_that_says_nothing(self, verb: str, plan: bytes, run: Path) -> None:
        (run / "plan.json").write_bytes(plan)
        message = told(2, verb, run, *(["--threshold", "0.4"] if verb == "cut" else []))
        assert f"{run / 'plan.json'} is damaged" in message
        assert f"`neuroshed run {run / 'workflow.yaml'}` writes it anew and goes on" in message

    def test_a_plan_that_is_missing_is_written_anew(self, run: Path) -> None:
        (run / "plan.json").unlink()
        assert "workflow.yaml` writes it anew" in told(2, "cut", run, "--threshold", "0.4")
        assert neuroshed.run(run / "workflow.yaml", [f"output={run}"])["status"] == "done"
        assert neuroshed.cut(run, ["0.4"])["status"] == "done"


def labels_of(run: Path) -> Path:
    (path,) = run.glob("fragments-*/labels.zarr")
    return path


def only_fragments(run: Path) -> None:
    """What comes after the fragments was never computed."""
    remove(run, "agglomerate", "segment")


def remove(run: Path, *kinds: str) -> None:
    """The stages of some kinds are gone."""
    for kind in kinds:
        for folder in run.glob(f"{kind}-*"):
            shutil.rmtree(folder)


def files(volume: Path) -> Iterator[Path]:
    return (file for file in sorted((volume / "0" / "c").rglob("*")) if file.is_file())


class TestLabelsOfARun:
    @pytest.mark.parametrize(
        ("shape", "dtype", "shard"),
        [
            ((8, 10, 13), np.uint32, BLOCK),
            ((8, 10, 11), np.uint32, BLOCK),
            (SHAPE, np.uint64, BLOCK),
            (SHAPE, np.float32, BLOCK),
            (SHAPE, np.uint32, SHAPE),
        ],
    )
    def test_another_volume_in_their_place(self, shape: Vec, dtype: type, shard: Vec, run: Path) -> None:
        path = labels_of(run)
        shutil.rmtree(path)
        create_volume(path, shape=shape, dtype=dtype, shard_shape=shard, voxel_size=(10, 10, 10))
        message = told(1, "cut", run, "--threshold", "0.4")
        assert f"{path} exists with shape {shape}, {np.dtype(dtype)}, shards {shard}, where {SHAPE}" in message
        assert f"{BLOCKS} blocks of run {run} failed" in message
        only_fragments(run)
        assert f"{path} exists with shape {shape}" in told(2, "resume", run)

    def test_an_empty_one_of_the_same_kind(self, run: Path) -> None:
        path = labels_of(run)
        shutil.rmtree(path)
        create_volume(path, shape=SHAPE, dtype=np.uint32, shard_shape=BLOCK, voxel_size=(10, 10, 10))
        message = told(1, "cut", run, "--threshold", "0.4")
        assert f"{BLOCKS} blocks of run {run} failed" in message
        assert f"BlockError: {path}" in message
        assert "is missing or empty; remove its stage's folder and run again" in message
        only_fragments(run)
        assert "is missing or empty; remove its stage's folder and run again" in told(1, "resume", run)

    def test_those_of_another_run(self, run: Path) -> None:
        path = labels_of(run)
        shutil.rmtree(path)
        volume = create_volume(path, shape=SHAPE, dtype=np.uint32, shard_shape=BLOCK, voxel_size=(10, 10, 10))
        volume.write(volume.box, np.full(SHAPE, 3, np.uint32))
        message = told(1, "cut", run, "--threshold", "0.4")
        assert f"{path} has labels up to 3 in [0:" in message
        assert "they are not of one run" in message

    def test_what_was_removed_is_computed_again(self, run: Path) -> None:
        before = open_volume(neuroshed.status(run)["segmentations"]["0.5"])
        expected = before.read(before.box)
        shutil.rmtree(labels_of(run))
        assert f"has 0 of {BLOCKS} blocks of stage fragments" in told(2, "cut", run, "--threshold", "0.4")
        only_fragments(run)
        summary = neuroshed.resume(run)
        assert summary["restored_blocks"] == 0
        after = open_volume(summary["segmentations"]["0.5"])
        np.testing.assert_array_equal(after.read(after.box), expected)

    @pytest.mark.parametrize(
        ("harm", "words"),
        [
            (lambda file: file.unlink(), "0/c/0/0/0 is missing or empty; remove its stage's folder"),
            (lambda file: file.write_bytes(b""), "0/c/0/0/0 is missing or empty; remove its stage's folder"),
            (lambda file: file.write_bytes(file.read_bytes()[:-9]), " is damaged in [0:"),
            (lambda file: flip(file, 20), " is damaged in [0:"),
        ],
    )
    def test_a_file_that_was_lost_or_damaged(self, harm: Callable[[Path], None], words: str, run: Path) -> None:
        file = next(files(labels_of(run)))
        harm(file)
        message = told(1, "cut", run, "--threshold", "0.4")
        assert f"1 block of run {run} failed, the first of stage segment 0.4 at [0, 0, 0]" in message
        assert str(labels_of(run)) in message
        assert words in message
        assert words in told(1, "verify", run, "--all")


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 8
    file.write_bytes(data)


def test_a_block_of_zeros_is_no_lost_file(tmp_path: Path) -> None:
    volume = create_volume(tmp_path / "a.zarr", shape=SHAPE, dtype=np.uint32, shard_shape=BLOCK, voxel_size=(1, 1, 1))
    volume.write(volume.box, np.zeros(SHAPE, np.uint32))
    assert not volume.read(volume.box).any()
    assert sum(1 for _ in files(volume.path.local)) == BLOCKS


@pytest.mark.parametrize(
    ("kind", "harm", "words"),
    [
        ("fragments", lambda file: file.unlink(), "is missing"),
        ("fragments", lambda file: flip(file, 100), "is damaged"),
        ("agglomerate", lambda file: file.write_bytes(b""), "is damaged"),
        ("agglomerate", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "is damaged"),
    ],
)
def test_a_table_that_was_lost_or_damaged(kind: str, harm: Callable[[Path], None], words: str, run: Path) -> None:
    file = next(iter(sorted(run.glob(f"{kind}-*/*/0_0_0.parquet"))))
    harm(file)
    expected = f"BlockError: node {file} {words}"
    message = told(1, "cut", run, "--threshold", "0.4")
    assert expected in message
    assert "remove its stage's folder and run again" in message
    assert expected in told(1, "verify", run, "--all")
    remove(run, "segment", *(["agglomerate"] if kind == "fragments" else []))
    assert expected in told(1, "resume", run)
