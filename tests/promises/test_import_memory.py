"""An import takes no more memory than predicted, whatever the size of its source.

Blocks run in a process of its own, whose peak memory the kernel counts from the moment the first of them begins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from neuroshed.geometry import Vec
from neuroshed.stages.imports import Import
from neuroshed.stages.registry import save_stage
from tests.storage.test_chunked import SHARDING, n5, plain_zarr, precomputed

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak")
MEASURE = """
import json, sys
from pathlib import Path
from neuroshed.stages.registry import load_stage

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, large = (load_stage(Path(path)) for path in sys.argv[1:])
for index in small.grid:
    small.run("", index)  # imports, compiled kernels, threads
Path("/proc/self/clear_refs").write_text("5")
before = peak()
for index in large.grid:
    large.run("", index)
print(json.dumps(peak() - before))
"""


def measured(*stages: Import) -> int:
    """Bytes that all blocks of the second import take at their peak, after those of the first."""
    for stage in stages:
        stage.prepare()
        save_stage(stage)
    files = [str(stage.folder / "stage.json") for stage in stages]
    answer = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    peak: int = json.loads(answer.stdout)
    return peak


def test_a_source_larger_than_the_memory_that_is_allowed(tmp_path: Path) -> None:
    """300 MiB of chunks of 2 MiB, in blocks of 4 MiB."""
    shape = (1280, 512, 480)  # x y z
    path = tmp_path / "a.n5"
    kvstore = {"driver": "file", "path": f"{path}/"}
    metadata = {"dataType": "uint8", "dimensions": shape, "blockSize": [128] * 3, "compression": {"type": "raw"}}
    array = tensorstore.open({"driver": "n5", "kvstore": kvstore, "metadata": metadata}, create=True).result()
    slab = smooth("uint8", (128, *shape[1:]))
    for start in range(0, shape[0], 128):
        array[start : start + 128].write(slab).result()
    small = n5(tmp_path / "small.n5", slab[:16, :16, :16])
    stages = [Import.of(tmp_path / "r", file, "a", (1, 1, 1), block_shape=(128, 128, 256)) for file in (small, path)]
    assert measured(*stages) <= stages[1].memory_bytes("") < array.size * 2 // 3


def smooth(dtype: str, shape: Vec) -> np.ndarray:
    return np.add.outer(np.add.outer(np.arange(shape[0]), np.arange(shape[1])), np.arange(shape[2])).astype(dtype) // 9


def chunks(writer: Callable[..., Path], **options: Any) -> Callable[[Path, np.ndarray], Path]:
    return lambda path, data: writer(path, data, **options)


@pytest.mark.parametrize(
    ("dtype", "factor", "write"),
    [
        (
            "uint64",
            (2, 2, 2),
            chunks(
                precomputed,
                sharding=SHARDING,
                chunk_size=[64, 64, 64],
                encoding="compressed_segmentation",
                compressed_segmentation_block_size=[8, 8, 8],
            ),
        ),
        ("uint64", None, chunks(plain_zarr, chunks=(32, 32, 32), shards=(32, 128, 128))),
    ],
    ids=["precomputed", "zarr"],
)
def test_each_format_takes_no_more_than_predicted(
    tmp_path: Path, dtype: str, factor: Vec | None, write: Callable[[Path, np.ndarray], Path]
) -> None:
    stages = []
    for name, shape in (("small", (8, 32, 32)), ("large", (64, 256, 256))):
        source = write(tmp_path / name, smooth(dtype, shape))
        block = (64, 128, 256) if factor is None else (64, 64, 128)
        stages.append(Import.of(tmp_path / f"{name}-run", source, "a", (1, 1, 1), block_shape=block, downsample=factor))
    predicted = stages[1].memory_bytes("")
    # Too much by far would be no prediction either.
    assert measured(*stages) <= predicted < 512 << 20
