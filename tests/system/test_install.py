"""The wheel, built from the sdist, runs the demo in an environment where the repository is not on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built the way a release is: source distribution first, wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`neuroshed` of a fresh environment that has this one's dependencies and the wheel."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = next((home / "lib").glob("python*/site-packages"))
    # A plain path line adds the folder after the environment's own, and reads no .pth files of it: no editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "neuroshed"


def test_the_wheel_holds_what_the_demo_needs_and_its_licences(wheel: Path) -> None:
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    for name in ("assets/fibsem.safetensors", "assets/fibsem.json", "assets/demo/fib25.h5", "assets/demo/README.md"):
        assert f"neuroshed/{name}" in names
    assert {"neuroshed/workflows/segment.yaml", "neuroshed/workflows/train.yaml", "neuroshed/py.typed"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_demo_and_a_second_one_that_computes_nothing_but_scores(command: Path, tmp_path: Path) -> None:
    def demo(*options: str) -> dict[str, Any]:
        arguments = [command, "demo", "--output", "out", "--json", "--threshold", "0.3", "--threshold", "0.5", *options]
        # The compiled kernels' cache must not depend on the repository either.
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    result = demo()
    assert (result["status"], result["restored_blocks"]) == ("done", 0)
    assert list(result["segmentations"]) == ["0.3", "0.5"]
    assert str(tmp_path) in result["figure"]
    assert Path(result["figure"]).stat().st_size > 50_000
    # The truth has 48 neurons. One segment, or one a voxel, would have a VOI of several bits.
    assert 0 < result["scores"][result["best_threshold"]]["voi"] < 2
    assert all(scores["voi_split"] > 0 and scores["voi_merge"] > 0 for scores in result["scores"].values())
    assert demo()["restored_blocks"] == sum(row["blocks"] for row in result["stages"].values())
    assert demo("--fresh")["restored_blocks"] == 0
