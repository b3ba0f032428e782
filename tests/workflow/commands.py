"""Commands of neuroshed as processes, as a user's shell starts them, on affinities that take seconds to minutes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location

from ..promises.chunks import random_affinities, write_affinities

COMMAND = (sys.executable, "-m", "neuroshed")
SECONDS = 120.0
"""After which nothing is waited for any more."""


def write_workflow(folder: Path, *, shape: tuple[int, int, int], **keys: Any) -> Path:
    """A workflow file on small random affinities beside it; its run folder is `run`."""
    affinities = write_affinities(folder / "affinities.zarr", random_affinities(np.random.default_rng(7), shape, 256))
    values = {
        "affinities": str(affinities),
        "output": str(folder / "run"),
        "block_shape": [4, 8, 8],
        "cluster": "in-process:1",
        **keys,
    }
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = [str(argument) for argument in arguments]
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=SECONDS)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on meanwhile; it and what it started are gone at the end."""
    process = subprocess.Popen(
        [*COMMAND, *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_group(process.pid)
        process.communicate(timeout=SECONDS)


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_group(pid: int) -> None:
    """End a process and those of its group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def live(run_folder: Path) -> dict[str, Any]:
    """What the coordinator shows of itself; empty if it shows nothing."""
    try:
        shown: dict[str, Any] = json.loads((run_folder / "live.json").read_bytes())
    except FileNotFoundError:
        return {}
    return shown


def done_so_far(run_folder: Path) -> int:
    """Blocks done, as the coordinator shows."""
    return sum(row["done"] for row in live(run_folder).get("stages", {}).values())


@contextmanager
def coordinator_ended(run_folder: Path | Location) -> Iterator[None]:
    """Whoever holds the run at the end is ended, with those it started."""
    try:
        yield
    finally:
        holder = holder_of(Location.of(run_folder))
        if holder is not None and holder.alive:
            end_group(holder.pid)
            wait_until(lambda: not holder.alive)
