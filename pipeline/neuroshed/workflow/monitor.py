"""How one who looks at no terminal learns of a run: figures for Prometheus, and word of its end or its failures."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from neuroshed.engine.progress import Progress
from neuroshed.errors import RunStoppedError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.workflow.live import Live, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

TELL_SECONDS = 60.0
"""For a command or a webhook to take the news."""
STATES = ("done", "running", "waiting", "failed", "skipped")


class MonitorOptions(BaseModel):
    """Who is told of a run, and where its figures are. None of it changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Where the coordinator answers Prometheus, at /metrics. Default: nowhere."""
    host: str = "127.0.0.1"
    """The address on which it answers. Whoever reaches it can read, and only read, these figures."""
    command: tuple[str, ...] = ()
    """Called with the news as JSON on standard input, and `NEUROSHED_EVENT` (done, failed, stopped or failures)."""
    webhook: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of an environment variable that holds the URL to which the news are posted as JSON. The URL, which may be a
    secret, is written nowhere."""
    failures: Annotated[int, Field(ge=1)] | None = None
    """So many failed blocks are news before the end."""


class Monitor:
    """What goes with a session of a coordinator, if it is asked for. Nothing that goes wrong in it harms the run."""

    def __init__(self, options: MonitorOptions, run_folder: Location, live: Live) -> None:
        self._options, self._run_folder, self._live = options, run_folder, live
        self._server: Any = None
        self._threads: list[threading.Thread] = []
        self._told_failures = False

    def __enter__(self) -> Monitor:
        """Raises `WorkflowError` if the port is taken, or there is no URL where it should be."""
        options = self._options
        if options.webhook is not None and not os.environ.get(options.webhook):
            raise WorkflowError(f"monitor.webhook: there is no environment variable {options.webhook} with a URL")
        if options.port is not None:
            self._server = _serve(options.host, options.port, Figures(self._run_folder, self._live))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        stopped = isinstance(error, RunStoppedError | KeyboardInterrupt | SystemExit)
        event = "done" if error is None else "stopped" if stopped else "failed"
        self._tell(event, "" if error is None else (str(error).splitlines() or [type(error).__name__])[0])
        for thread in self._threads:
            thread.join()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def watch(self, progress: Progress) -> None:
        """Take in how the blocks stand."""
        limit = self._options.failures
        if limit is not None and not self._told_failures and len(progress.failures) >= limit:
            self._told_failures = True
            self._tell("failures", f"{len(progress.failures)} blocks failed; the rest goes on")

    def _tell(self, event: str, text: str) -> None:
        options = self._options
        snapshot = self._live.snapshot or {}
        news = {
            "event": event,
            "run": str(self._run_folder),
            "text": text,
            "failed": snapshot.get("failed", 0),
            "stages": snapshot.get("stages", {}),
        }
        for wanted, tell in ((options.command, self._call), (options.webhook, self._post)):
            if wanted:
                thread = threading.Thread(target=_safely, args=(tell, news), name="neuroshed-monitor", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _call(self, news: dict[str, Any]) -> None:
        done = subprocess.run(
            self._options.command,
            input=json.dumps(news),
            text=True,
            timeout=TELL_SECONDS,
            env={**os.environ, "NEUROSHED_EVENT": news["event"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise OSError(f"{self._options.command[0]} ended with exit code {done.returncode}: {done.stderr[-300:]}")

    def _post(self, news: dict[str, Any]) -> None:
        url = os.environ[str(self._options.webhook)]
        if not url.startswith(("https://", "http://")):
            raise OSError("the URL must begin with https:// or http://")
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(news).encode(), headers)
        with urllib.request.urlopen(request, timeout=TELL_SECONDS):
            pass


def _safely(tell: Any, news: dict[str, Any]) -> None:
    try:
        tell(news)
    except Exception as error:
        # The text of an error may hold the URL.
        reason = type(error).__name__ if tell.__name__ == "_post" else str(error)
        log.warning("nobody could be told of %r (%s)", news["event"], reason)


def _serve(host: str, port: int, figures: Figures) -> Any:
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(figures)
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise WorkflowError(
            f"monitor: nothing can listen on {host}:{port} ({error.strerror}); choose another port"
        ) from error
    return server


class Figures:
    """A collector of the Prometheus client: what the newest snapshot says."""

    def __init__(self, run_folder: Location, live: Live) -> None:
        self._run, self._live = str(run_folder), live

    def collect(self) -> Iterator[Metric]:
        """Every figure, each with the run as a label."""
        snapshot = self._live.snapshot
        return iter(()) if snapshot is None else figures(self._run, snapshot)


def figures(run: str, snapshot: Snapshot) -> Iterator[Metric]:
    """Figures of a snapshot, by the names and units that Prometheus recommends."""
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    blocks = GaugeMetricFamily("neuroshed_blocks", "Blocks of a stage in a state.", labels=["run", "stage", "state"])
    voxels = GaugeMetricFamily("neuroshed_voxels_per_second", "Voxels written, lately.", labels=["run", "stage"])
    for stage, row in snapshot["stages"].items():
        for state in STATES:
            blocks.add_metric([run, stage, state], row[state])
        voxels.add_metric([run, stage], row.get("voxels_per_second", 0.0))
    workers = GaugeMetricFamily("neuroshed_workers", "Workers of a pool in a state.", labels=["run", "pool", "state"])
    for pool, row in snapshot["pools"].items():
        for state, count in row.items():
            workers.add_metric([run, pool, state], count)
    retries = CounterMetricFamily("neuroshed_retries", "Blocks that were tried again.", labels=["run"])
    retries.add_metric([run], snapshot["retries"])
    failed = CounterMetricFamily("neuroshed_failures", "Blocks that were set aside.", labels=["run"])
    failed.add_metric([run], snapshot["failed"])
    yield from (blocks, voxels, workers, retries, failed)
    used = snapshot["workers"]
    for name, text, value in (
        ("neuroshed_memory_bytes", "Memory that workers take.", used["memory_bytes"]),
        ("neuroshed_threads", "Blocks that can be worked on at a time.", used["threads"]),
        ("neuroshed_seconds_left", "Time that what is left takes, if it goes on so.", snapshot["seconds_left"]),
    ):
        if value is not None:
            gauge = GaugeMetricFamily(name, text, labels=["run"])
            gauge.add_metric([run], value)
            yield gauge
