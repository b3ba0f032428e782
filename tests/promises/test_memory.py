"""Promise 4: the memory of a task is predicted before the run, and the prediction holds.

Each stage runs one block in a process of its own, whose peak memory the kernel counts from the moment the block begins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import neuroshed
from neuroshed.engine.coordinator import ordered
from neuroshed.geometry import Box, Vec
from neuroshed.stages.base import Stage
from neuroshed.stages.check import Check
from neuroshed.stages.compare import Compare
from neuroshed.stages.copy import Copy
from neuroshed.stages.registry import load_stage, save_stage
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, create_volume, open_volume

from .chunks import write_affinities

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak")
SIDE = 96

MEASURE = """
import json, sys
from pathlib import Path
from neuroshed.stages.registry import load_stage

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, large = (load_stage(Path(path)) for path in sys.argv[1:3])
step, index = sys.argv[3], tuple(json.loads(sys.argv[4]))
small.run(step, index)  # imports, compiled kernels
Path("/proc/self/clear_refs").write_text("5")
before = peak()
large.run(step, index)
print(json.dumps(peak() - before))
"""


def neuron_like(side: int) -> np.ndarray:
    """Affinities of smooth shapes with membranes between them, uint8 `(3, side, side, side)`."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.standard_normal((side,) * 3), 4)
    noise = rng.normal(0, 12, (3, side, side, side))
    return np.clip(255 * np.clip(np.abs(field) / field.std(), 0, 0.9) + 30 + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Path]]:
    """`stage.json` files by kind of two finished runs of one block: a small one and a large one."""
    found = []
    for side in (16, SIDE):
        folder = tmp_path_factory.mktemp(f"side{side}")
        path = write_affinities(folder / "affinities.zarr", neuron_like(side))
        output = folder / "run"
        block = [side] * 3
        settings = [f"affinities={path}", f"output={output}", f"block_shape={block}", "cluster=in-process:1"]
        neuroshed.run("segment", settings)
        found.append({file.parent.name.partition("-")[0]: file for file in output.glob("*/stage.json")})
    return found


def peak_of(files: list[str], step: str, index: Vec) -> int:
    """Bytes that a block takes at its peak in the second of two runs, after one in the first."""
    command = [sys.executable, "-c", MEASURE, *files, step, json.dumps(index)]
    peak: int = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return peak


@pytest.mark.parametrize(("kind", "step"), [("fragments", ""), ("agglomerate", "up0"), ("segment", "paint")])
def test_a_block_takes_no_more_than_predicted(kind: str, step: str, runs: list[dict[str, Path]]) -> None:
    files = [str(run[kind]) for run in runs]
    measured = peak_of(files, step, (0, 0, 0))
    predicted = load_stage(runs[1][kind]).memory_bytes(step)
    # Too much by far would be no prediction either, beyond an allowance for what is there whatever the block.
    assert measured <= predicted < max(8 * measured, 64 << 20)


def test_a_leaf_that_reads_labels_takes_no_more_than_predicted(tmp_path: Path) -> None:
    """For classes of tissue, and for long-range affinities across the face between two blocks."""
    files = []
    for side in (16, SIDE):
        shape, far = (2 * side, side, side), (-side // 2, 0, 0)
        affinities = neuron_like(side)[[0, 1, 2, 0]].repeat(2, axis=1)
        path = write_affinities(tmp_path / f"affinities{side}.zarr", affinities, far)
        classes = create_volume(
            tmp_path / f"classes{side}.zarr", shape=shape, dtype=np.uint8, shard_shape=shape, voxel_size=(10, 10, 10)
        )
        classes.write(classes.box, np.ones(shape, np.uint8))
        output = tmp_path / f"run{side}"
        settings = [f"affinities={path}", f"output={output}", f"block_shape={[side] * 3}", "cluster=in-process:1"]
        settings += [f"long_range=[{list(far)}]", "agglomerate.long_range=true"]
        settings += [f"semantics={{path: {classes.path}, classes: [1, 2, 3]}}"]
        neuroshed.run("stitch", settings)
        files += [str(file) for file in output.glob("agglomerate-*/stage.json")]
    predicted = load_stage(Path(files[1])).memory_bytes("up0")
    measured = peak_of(files, "up0", (1, 0, 0))
    assert measured <= predicted < max(8 * measured, 64 << 20)


@pytest.mark.parametrize("smooth", [0, 2])
def test_a_block_with_masks_takes_no_more_than_predicted(smooth: int, tmp_path: Path) -> None:
    """At the resolution of the affinities, which takes the most."""
    files = []
    for side in (16, SIDE):
        shape = (side, side, 2 * side)
        path = write_affinities(tmp_path / f"affinities{side}.zarr", neuron_like(side).repeat(2, axis=3))
        mask = create_volume(
            tmp_path / f"mask{side}.zarr", shape=shape, dtype=np.uint8, shard_shape=shape, voxel_size=(10, 10, 10)
        )
        mask.write(mask.box, np.random.default_rng(1).integers(0, 9, shape, np.uint8))
        output = tmp_path / f"run{side}"
        settings = [f"affinities={path}", f"output={output}", f"block_shape={[side] * 3}", "cluster=in-process:1"]
        settings += [f"masks=[{{path: {mask.path}, drop: [1]}}]", f"fragments.smooth={smooth}"]
        neuroshed.run("stitch", settings)
        files += [str(file) for file in output.glob("fragments-*/stage.json")]
    predicted = load_stage(Path(files[1])).memory_bytes("")
    measured = peak_of(files, "", (0, 0, 0))
    # Predicted are affinities and masks both at their worst, which is not at one time.
    assert measured <= predicted < max(12 * measured, 64 << 20)


def noise(dtype: str, side: int) -> np.ndarray:
    """All values of an integer type, so that nothing can be compressed and no two volumes are alike."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(2).integers(limits.min, limits.max, (side,) * 3, dtype, endpoint=True)


def crumbs(side: int) -> np.ndarray:
    """Labels of eight voxels each."""
    z, y, x = np.ogrid[:side, :side, :side]
    return np.asarray((z // 2 * side + y // 2) * side + x // 2 + 1, np.uint64)


def comparison(folder: Path, left: np.ndarray, right: np.ndarray, labels: bool) -> Stage:
    both = write(folder / "left.zarr", left), write(folder / "right.zarr", right)
    return Compare.of(Location.of(folder / "run"), *both, labels, left.shape)


STAGES: dict[str, Callable[[Path, int], Stage]] = {
    "compare": lambda folder, side: comparison(folder, noise("u8", side), noise("i8", side), False),
    "compare labels": lambda folder, side: comparison(folder, crumbs(side), crumbs(side) * np.uint64(3), True),
    "check": lambda folder, side: Check.of(
        Location.of(folder / "run"), write(folder / "a.zarr", noise("u1", 2 * side)), list_missing=True
    ),
    "crop": lambda folder, side: Copy.of(
        Location.of(folder / "run"),
        write(folder / "a.zarr", noise("u8", side + 16)).path,
        "part.zarr",
        Box((8,) * 3, (8 + side,) * 3),
        (side,) * 3,
    ),
}


def write(path: Path, data: np.ndarray) -> Volume:
    """A volume of one shard."""
    volume = create_volume(path, shape=data.shape, dtype=data.dtype, shard_shape=data.shape, voxel_size=(1, 1, 1))
    volume.write(volume.box, data)
    return open_volume(path)


@pytest.mark.parametrize("name", STAGES)
def test_a_block_of_volumes_takes_no_more_than_predicted(name: str, tmp_path: Path) -> None:
    files = []
    for side in (16, SIDE):
        (tmp_path / str(side)).mkdir()
        stage = STAGES[name](tmp_path / str(side), side)
        stage.prepare()
        files.append(str(save_stage(stage)))
    measured = peak_of(files, "", (0, 0, 0))
    # Much of it is allowed for reading, which takes less of a single shard.
    assert measured <= stage.memory_bytes("") < max(12 * measured, 64 << 20)


def test_every_stage_predicts(runs: list[dict[str, Path]]) -> None:
    for stage in ordered([load_stage(runs[1]["segment"])]):
        for step in stage.steps:
            assert stage.memory_bytes(step.name) > 0
