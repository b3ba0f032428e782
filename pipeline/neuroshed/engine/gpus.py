"""The GPUs of this machine, and pools of workers that use all of it."""

from __future__ import annotations

import os
import shutil
import subprocess

from neuroshed.engine.joining import VISIBLE_GPUS
from neuroshed.engine.pools import Pool
from neuroshed.errors import WorkflowError

GPU_CORES = 3
"""Blocks at a time of a GPU: while one computes, others are read and written."""
KEPT_SHARE = 0.1
"""Of memory, for the coordinator and the system."""


def visible_gpus() -> list[str]:
    """Numbers or names of the GPUs that may be used: of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    given = os.environ.get(VISIBLE_GPUS)
    if given is not None:
        return [name for name in given.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def least_memory_gb() -> float | None:
    """Memory of the smallest of those GPUs in GB, by nvidia-smi; None if it does not say."""
    names = visible_gpus()
    if not names or shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", f"--id={','.join(names)}", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.split()
    sizes = [int(size) for size in told if size.isdigit()]
    return min(sizes) * 2**20 / 1e9 if len(sizes) == len(names) else None


def pools_here() -> dict[str, Pool]:
    """A worker for each GPU of this machine, and one of all other cores; they share its memory.

    Raises `WorkflowError` if there is no GPU.
    """
    from distributed.system import MEMORY_LIMIT

    gpus = len(visible_gpus())
    if not gpus:
        raise WorkflowError("cluster gpus needs a GPU, and nvidia-smi lists none here; use cluster: local")
    cores = os.cpu_count() or 1
    per_gpu = max(min(GPU_CORES, cores // gpus - 1), 1)
    share = MEMORY_LIMIT * (1 - KEPT_SHARE) / 1e9 / 2
    return {
        "gpu": Pool(
            workers=(0, gpus),
            cores=per_gpu,
            gpus=1,
            memory_gb=share / gpus,
            gpu_memory_gb=least_memory_gb(),
        ),
        "cpu": Pool(workers=(0, 1), cores=max(cores - gpus * per_gpu, 1), memory_gb=share),
    }
