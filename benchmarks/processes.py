"""Timed work in processes of their own: one thread, one core, nothing printed, memory of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from environments import PeerError

THREAD_LIMITS = ("OMP", "MKL", "OPENBLAS", "NUMBA", "NUMEXPR")
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in THREAD_LIMITS} | {"POLARS_MAX_THREADS": "1"}


def run(
    script: Path, job: dict[str, Any], folder: Path, python: Path | None = None, limit_s: float | None = None
) -> dict[str, Any]:
    """Let `script` do a job in `folder`; returns seconds by step, peak bytes and what else it reports.

    Raises `PeerError` if it fails, is killed or takes more than `limit_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job_file = folder / "job.json"
    job_file.write_text(json.dumps(job))
    errors = folder / "errors.txt"
    with errors.open("w") as stream:
        # waterz prints a line for every thing it does.
        process = subprocess.Popen(
            [python or sys.executable, script, job_file],
            cwd=folder,
            env=os.environ | ONE_THREAD,
            stdout=subprocess.DEVNULL,
            stderr=stream,
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise PeerError(f"{script.stem} took more than {limit_s:.0f} s") from None
    if code:
        raise PeerError(f"{script.stem} {_reason(code, errors)}")
    result: dict[str, Any] = json.loads(job_file.with_suffix(".result").read_text())
    return result


def _reason(code: int, errors: Path) -> str:
    if code == -signal.SIGKILL:
        return "was killed, most likely for want of memory"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines = errors.read_text().strip().splitlines()
    return f"failed: {lines[-1]}" if lines else f"failed with exit code {code}"
