"""Every command of the README runs, in order, in a folder that holds what it says the user has."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
import zarr

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
VOXEL_SIZE = ("--voxel-size", "10", "10", "10")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: an image and a truth, cut from the demo volume, and affinities of the truth."""
    with h5py.File(str(resources.files("neuroshed") / "assets" / "demo" / "fib25.h5"), locking=False) as demo:
        for file, dataset in (("stack.h5", "raw"), ("truth.h5", "labels")):
            with h5py.File(tmp_path / file, "w") as target:
                target[dataset] = demo[dataset][:70, :70, :]
        labels = demo["labels"][:70, :70, :].astype(np.int64)
    edges = [np.diff(labels, axis=axis, prepend=-1) == 0 for axis in (2, 1, 0)]
    zarr.save_array(tmp_path / "aff.zarr", np.stack(edges).astype(np.float32))
    return tmp_path


def shorten_training(config: Path) -> None:
    """The shipped training takes an hour on its own data: here two steps on the user's."""
    values = yaml.safe_load(config.read_text())
    source = {"image": "a.zarr", "labels": "truth.zarr", "box": [[0, 0, 0], [70, 70, 35]]}
    values |= {"samples": [source], "validation": [source], "steps": 2, "patch_shape": [32, 32, 16], "threads": 1}
    values |= {"validate_every": 2, "precision": "float32", "warmup_steps": 1, "decay_steps": 1}
    values["augment"] |= {"misaligned": 0, "swap": ["z", "y"]}
    values["lattice"] = {"patch": [32, 32, 32], "context": [8, 8, 8]}
    config.write_text(yaml.safe_dump(values))


def test_commands(folder: Path) -> None:
    bin_folder = Path(sys.executable).parent
    run = []
    for command in commands():
        # CI runs the make targets themselves; the wheel is installed by another test.
        if command.startswith(("make ", "pip ")):
            continue
        if command == "neuroshed demo":
            continue
        script = f'PATH="{bin_folder}:$PATH" && {command}'
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
        # Whoever is quick may be done before he is asked to stop.
        is_over = "cancel" in command and "nobody works on run" in done.stderr
        assert done.returncode == 0 or is_over, f"{command}\n{done.stdout}\n{done.stderr}"
        run.append(command.split()[1])
        if command.startswith("neuroshed init train"):
            shorten_training(folder / "train.yaml")
    first = ["import", "plan", "run", "resume", "cut", "export", "export", "submit", "status", "cancel"]
    assert run == [*first, "import", "evaluate", "run", "init", "train", "model", "sweep"]


def test_python(folder: Path) -> None:
    bin_folder = Path(sys.executable).parent
    for source, target, dataset in (("stack.h5", "a.zarr", "raw"), ("truth.h5", "truth.zarr", "labels")):
        subprocess.run(
            [bin_folder / "neuroshed", "import", source, target, "--dataset", dataset, *VOXEL_SIZE],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    (code,) = blocks("python")
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    split, merge = map(float, done.stdout.split())
    assert split > 0
    assert merge > 0
