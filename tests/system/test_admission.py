"""Real workers that must not be used: with other versions, or on a GPU that fails."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from torch import Tensor, nn

import neuroshed
from neuroshed.errors import RunFailedError
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

pytestmark = pytest.mark.system
HERE = "tests.system.test_admission"
VISIBLE = "CUDA_VISIBLE_DEVICES"
OLD = "import neuroshed.engine.versions as versions\nversions.__version__ = '0.0.1'\n"


class OnGpu(nn.Module):
    """A network that fails as torch does where a GPU is broken, for all that follow in the process."""

    def __init__(self, broken: str) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, image: Tensor) -> Tensor:
        if os.environ.get(VISIBLE) in self.broken.split(","):
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        # Long enough that the other one comes back.
        time.sleep(0.4 if "1" in self.broken else 0)
        return image.float().div(255).expand(-1, 3, -1, -1, -1)


def network(broken: str) -> nn.Module:
    """As a model of a workflow."""
    return OnGpu(broken)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """40 blocks of noise."""
    voxels = np.random.default_rng(1).integers(0, 256, (32, 64, 80), np.uint8)
    made = create_volume(
        tmp_path / "image.zarr",
        shape=voxels.shape,
        dtype=np.uint8,
        shard_shape=(16, 16, 16),
        voxel_size=(8.0, 8.0, 8.0),
    )
    made.write(made.box, voxels)
    return tmp_path / "image.zarr"


def run(image: Path, output: Path, cluster: Any, broken: str) -> dict[str, Any]:
    model = {
        "path": f"{HERE}:network", "arguments": {"broken": broken}, "trust": True, "scaled_to": [0, 255],
        "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]], "output": "probabilities",
        "input_shape": [16, 16, 16], "output_shape": [16, 16, 16], "context": [0, 0, 0],
    }  # fmt: skip
    return neuroshed.run(
        "segment",
        [
            f"image={image}", f"output={output}", f"model={model}", "block_shape=[16,16,16]",
            f"cluster={cluster}", "failures={backoff_seconds: 0.1}", "predict.device=cpu",
        ],
    )  # fmt: skip


def test_a_gpu_that_fails_is_taken_out_and_its_work_goes_elsewhere(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(image, tmp_path / "plain", "in-process:2", "")
    monkeypatch.setenv(VISIBLE, "0,1")
    pools = {"gpu": {"gpus": 1, "cores": 2, "memory_gb": 2, "workers": [2, 2]}}
    summary = run(image, tmp_path / "run", {"kind": "gpus", "pools": pools}, "1")
    assert summary["status"] == "done"
    log = (tmp_path / "run" / "log" / "coordinator.log").read_text()
    assert "the GPU of worker gpu-1-" in log
    assert "is not used: its GPU failed 2 times without a block between (RuntimeError: CUDA error" in log
    found, expected = (open_volume(next((tmp_path / name).rglob("affinities.zarr"))) for name in ("run", "plain"))
    np.testing.assert_array_equal(found.read(found.box), expected.read(expected.box))


def test_where_all_gpus_fail_that_is_said(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "1,2")
    pools = {"gpu": {"gpus": 1, "cores": 1, "memory_gb": 2, "workers": [2, 2]}}
    cluster = {"kind": "gpus", "pools": pools, "patience_seconds": 3}
    with pytest.raises(RunFailedError, match=r"in vain.*its GPU failed 2 times.*uncorrectable ECC error"):
        run(image, tmp_path / "run", cluster, "1,2")


def test_workers_with_another_version_get_nothing_and_are_named(tmp_path: Path) -> None:
    preload = tmp_path / "old.py"
    preload.write_text(OLD)
    affinities = write_affinities(tmp_path / "a.zarr", random_affinities(np.random.default_rng(1), (8, 8, 8), 16))
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", preload=[str(preload)]
    ) as cluster:
        given = {"kind": "address", "address": cluster.scheduler_address, "patience_seconds": 2}
        settings = [f"affinities={affinities}", f"output={tmp_path / 'run'}", "block_shape=[8,8,8]", f"cluster={given}"]
        with pytest.raises(RunFailedError, match=r"waited 2 s for workers in vain.*neuroshed 0\.0\.1 \(here "):
            neuroshed.run("segment", settings)
