"""What a coordinator shows of itself while it works: `live.json` in the run folder, for whoever looks from anywhere.

It says nothing that is believed: what is done stands in the journal.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from neuroshed.engine.books import Books
from neuroshed.engine.clusters import Connection
from neuroshed.engine.control import Control
from neuroshed.engine.progress import Progress
from neuroshed.stages.base import Stage
from neuroshed.storage.holders import Holder
from neuroshed.storage.locations import Location
from neuroshed.workflow.summary import failure_row, largest_segments, peak_memory, stage_rows

LIVE_FILE = "live.json"
FAILURES_SHOWN = 20
HOSTS_SHOWN = 32

Snapshot = dict[str, Any]
Workers = Mapping[str, Mapping[str, Any]]


class Live:
    """Makes snapshots of a session, one a call of the coordinator; another thread takes the newest."""

    def __init__(self, holder: Holder, control: Control, stages: Sequence[Stage], started: float | None) -> None:
        """`started` is when the first session of the run began."""
        self._control, self._stages = control, stages
        self._connected: float | None = None
        self._speeds: dict[str, Any] = {"stages": {}, "seconds_left": None}
        self._fixed = {
            "token": holder.token,
            "began": round(time.time(), 3),
            "started": started,
            "memory_bytes": peak_memory(stages),
        }
        self._workers: dict[str, Any] = gather({})
        self._pools: dict[str, dict[str, int]] = {}
        self._retries = 0
        self.snapshot: Snapshot | None = None
        """The newest, replaced as a whole; None before the coordinator has read what is done."""

    def watch(self, progress: Progress) -> None:
        """Take in how the blocks stand."""
        rows = stage_rows(progress)
        for fingerprint, speed in self._speeds["stages"].items():
            rows[progress.titles[fingerprint]] |= speed
        self.snapshot = {
            **self._fixed,
            "time": round(time.time(), 3),
            "wish": self._control.wish.name.lower(),
            "reason": self._control.reason,
            "note": progress.note or ("" if self._connected else "starting workers"),
            "stages": rows,
            "restored_blocks": progress.restored,
            "alarms": largest_segments(self._stages, progress)[1],
            "seconds_left": self._speeds["seconds_left"],
            "workers": self._workers,
            "pools": self._pools,
            "retries": self._retries,
            "failed": len(progress.failures),
            "failures": [failure_row(failure) for failure in progress.failures[-FAILURES_SHOWN:]],
        }

    def tick(self, books: Books, connection: Connection, workers: Workers) -> None:
        """Take in speeds and workers, for the next snapshot."""
        if self._connected is None:
            self._connected = time.monotonic()
        self._workers = gather(workers, connection.memory_bytes)
        self._pools = pools(connection, workers)
        self._retries = books.attempts.retries
        progress = books.progress
        rates = books.rates.per_second(self._connected)
        self._speeds = {
            "stages": {
                fingerprint: {"blocks_per_second": round(blocks, 4), "voxels_per_second": round(voxels, 1)}
                for fingerprint, (blocks, voxels) in rates.items()
            },
            "seconds_left": progress.seconds_left(list(progress.stages), self._workers["threads"]),
        }


def pools(connection: Connection, workers: Workers) -> dict[str, dict[str, int]]:
    """Worker processes by pool, and how many workers of it wait in a queue; all in one where there are no pools."""
    if connection.fleet is None:
        return {"all": {"connected": len(workers)}}
    waiting = connection.fleet.waiting()
    connected = Counter(connection.described(address, dict(info)).pool for address, info in workers.items())
    return {name: {"connected": connected[name], "queued": waiting[name]} for name in connection.pools}


def gather(workers: Workers, shared_bytes: int = 0) -> dict[str, Any]:
    """What workers use, in all and by host: CPU and GPU in percent of what they have, memory in bytes.

    `workers` are as Dask's scheduler lists them; GPU figures come only from workers where Dask can read them.
    `shared_bytes` is the memory that all of them share, if they do.
    """
    hosts: dict[str, list[Mapping[str, Any]]] = {}
    for info in workers.values():
        hosts.setdefault(str(info.get("host", "")), []).append(info)
    rows = [{"host": host, **_usage(infos)} for host, infos in sorted(hosts.items())]
    whole = _usage(list(workers.values()))
    if shared_bytes:
        whole["memory_limit_bytes"] = shared_bytes
    return whole | {"hosts": rows[:HOSTS_SHOWN], "more_hosts": max(len(rows) - HOSTS_SHOWN, 0)}


def _usage(infos: list[Mapping[str, Any]]) -> dict[str, Any]:
    metrics = [info.get("metrics", {}) for info in infos]
    threads = sum(int(info.get("nthreads", 1)) for info in infos)
    gpus = [m for m in metrics if "gpu_utilization" in m]
    return {
        "workers": len(infos),
        "threads": threads,
        "cpu_percent": round(sum(float(m.get("cpu", 0.0)) for m in metrics) / max(threads, 1), 1),
        "memory_bytes": sum(int(m.get("memory", 0)) for m in metrics),
        "memory_limit_bytes": sum(int(info.get("memory_limit") or 0) for info in infos),
        "gpus": len(gpus),
        "gpu_percent": round(sum(float(m["gpu_utilization"]) for m in gpus) / len(gpus), 1) if gpus else None,
        "gpu_memory_bytes": sum(int(m.get("gpu-memory-used", 0)) for m in gpus) if gpus else None,
    }


def put_live(run_folder: Location, snapshot: Snapshot) -> None:
    """Put a snapshot where others see it, whole."""
    (run_folder / LIVE_FILE).put(json.dumps(snapshot).encode())


def read_live(run_folder: Location, holder: Holder) -> Snapshot | None:
    """The newest snapshot of the session that holds the run; None if there is none of that one."""
    try:
        found = json.loads((run_folder / LIVE_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("token") != holder.token:
        return None
    return found
