"""What every timed process does: read its job, stay on one core, time its steps, write its result.

Runs in the peers' environments as well, so it needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Clock:
    """Wall and processor seconds by step; the second tells whether others kept the core busy."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time spent inside to `step`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - wall
        self.cpu_seconds[step] = self.cpu_seconds.get(step, 0.0) + time.process_time() - cpu


def serve(work: Callable[[dict[str, Any], Clock], dict[str, Any]]) -> None:
    """Do the job described by the JSON file named on the command line, and write its result beside it."""
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text())
    _be_first_victim()
    if job.get("pinned", True):
        _stay_on_one_core()
    clock = Clock()
    result = work(job, clock)
    result |= {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds, "peak_bytes": _peak_bytes()}
    job_file.with_suffix(".result").write_text(json.dumps(result))


def _stay_on_one_core() -> None:
    # macOS has no such call; variables for one thread each are set there as everywhere.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _be_first_victim() -> None:
    """If memory runs out, the system should end this process, not somebody's work."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def _peak_bytes() -> int:
    """Peak resident memory of this process.

    Linux counts in ru_maxrss what the parent held when it started us, but not in VmHWM.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
