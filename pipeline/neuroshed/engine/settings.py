"""How Dask is set up for a run: on the coordinator's side and on the workers'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SCHEDULER_PORT = 8786
"""At which Dask's schedulers listen, if nothing else is said."""

# Of local worker processes. One thread each, unless a stage asks torch for more. Activations of a network are tens of
# megabytes, which malloc would give back to the system and fault in anew at every layer: half of the time of a
# prediction on a CPU (measured with glibc; other allocators ignore these).
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
}


def dask_settings(scratch: str) -> dict[str, Any]:
    """Dask's configuration for a scheduler, workers or clients of ours, which keep their files in `scratch`."""
    return {
        "distributed.comm.timeouts.connect": "30s",
        # The coordinator counts deaths itself, and names the worker of every job.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.work-stealing": False,
        # Dask gives up for good on a worker that is away so long after any death of its; nannies bring it back.
        "distributed.deploy.lost-worker-timeout": "1000 days",
        # Kernels that hold the interpreter keep a worker from saying that it lives.
        "distributed.scheduler.worker-ttl": "15 minutes",
        # Jobs leave nothing in memory; how many run at a time is decided by what they are predicted to take. A worker
        # that takes nearly all of the memory is ended, before the system ends something else.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        # Dask keeps the last messages to each worker, with their jobs, and an hour of its own load.
        "distributed.admin.low-level-log-length": 50,
        "distributed.admin.system-monitor.log-length": 60,
        # A look at every thread each 10 ms, for pages that nobody serves.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        # Pages about the cluster would be open to every user of this machine.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        # In-process workers take their folder from here alone.
        "temporary-directory": scratch,
    }


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for worker processes, some of which read them before Python starts.

    Nannies set what they are told in this process too and leave it there, but give way to what is there already.
    """
    before = {name: os.environ.get(name) for name in (*values, "PYTHONHASHSEED")}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
