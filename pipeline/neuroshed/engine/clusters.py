"""Where jobs run: threads of this process, local worker processes, or a scheduler that is already there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.engine import watchdog
from neuroshed.engine.control import deaf_to_interrupts
from neuroshed.engine.dispatch import Worker
from neuroshed.engine.scratch import scratch_folder
from neuroshed.errors import RunFailedError, WorkflowError

log = logging.getLogger(__name__)

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
STARTS = 3
"""Tries to start local workers, which may be killed meanwhile."""
CLOSE_SECONDS = 5.0
"""For a client to take its leave of the scheduler, which may be gone."""
ANSWER_SECONDS = 0.2
"""Between looks at whether a scheduler that was asked something is still there."""


class ClusterConfig(BaseModel):
    """`cluster:` of a workflow. A word stands for the whole: `local`, `local:4`, `in-process`, or a scheduler
    address.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["in-process", "local", "address"] = "local"
    """`local`: worker processes on this machine; `in-process`: threads of this process; `address`: a running
    scheduler.
    """
    workers: int | None = Field(default=None, ge=1)
    """Tasks at a time; by default one a core. Not for `address`."""
    address: str | None = None
    """Scheduler address, such as tls://host:8786. Certificates are taken from Dask's own configuration."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory for all tasks together, in GB, of `local` and `in-process`; by default that of the machine. Workers of an
    `address` say themselves what they have.
    """
    patience_seconds: float = Field(default=600.0, ge=0)
    """How long to wait for a scheduler or for workers that were lost before the run ends, to be resumed."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "://" in value:
            return {"kind": "address", "address": value}
        kind, _, workers = value.partition(":")
        return {"kind": kind, "workers": workers or None}

    @model_validator(mode="after")
    def _check(self) -> ClusterConfig:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError("an address goes with kind `address`, and only with it")
        return self


@dataclass(frozen=True)
class Connection:
    """A cluster that answers."""

    client: Any
    """`distributed.Client`."""
    memory_bytes: int
    """That the workers share, if they are on this machine and this run started them; else 0."""
    faults: Path | None
    """Folder in which workers leave a traceback when they die of a fault or of a time limit (`engine.watchdog`)."""
    processes: bool
    """Whether workers are processes, which can be ended, and not threads of this one."""

    def workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of each worker, by address; raises OSError if it is gone."""
        info = self.client.sync(_identity, self.client)
        found: dict[str, dict[str, Any]] = info["workers"]
        return found

    def submit(self, function: Callable[[Any], Any], job: Any, key: tuple[str | int, ...], worker: str) -> Any:
        """A `distributed.Future` of a function of a job at one worker; raises OSError if the connection is closed."""
        from distributed.client import ClosedClientError

        try:
            return self.client.submit(function, job, key=key, workers=[worker], pure=False)
        except ClosedClientError as error:
            raise OSError(f"no connection to the Dask scheduler (client is {self.client.status})") from error

    def cancel(self, future: Any) -> None:
        """Take a job back, also if it has begun. A scheduler that is gone has forgotten its jobs anyway."""
        from distributed.client import ClosedClientError

        with suppress(ClosedClientError):
            future.cancel(force=True)

    def described(self, address: str, info: dict[str, Any]) -> Worker:
        """A worker as jobs are given to it."""
        shared = self.memory_bytes
        return Worker(
            address=address,
            host=info["host"],
            threads=info["nthreads"],
            memory_bytes=shared or int(info.get("memory_limit") or 0),
            gpus=info.get("resources", {}).get("GPU", 0.0),
            pool="shared" if shared else "",
        )


async def _identity(client: Any) -> Any:
    """What the scheduler says of itself; `Client.scheduler_info` waits half a minute for one that is gone."""
    asked = asyncio.ensure_future(client.scheduler.identity(n_workers=-1)) if client.scheduler is not None else None
    try:
        while client.status == "running" and asked is not None:
            done, _ = await asyncio.wait({asked}, timeout=ANSWER_SECONDS)
            if done:
                return asked.result()
        raise OSError(f"no connection to the Dask scheduler (client is {client.status})")
    finally:
        if asked is not None and not asked.done():
            asked.cancel()


@contextmanager
def connect(config: ClusterConfig) -> Iterator[Connection]:
    """A cluster; what was started for it is stopped at the end.

    Local processes talk over loopback under mutual TLS with keys made for this run, since Dask unpickles what a peer
    sends.
    Raises `WorkflowError` if a given scheduler does not answer or has no workers.
    """
    import dask

    memory = local_memory(config) or 0
    with scratch_folder() as scratch, dask.config.set(_settings(str(scratch))):
        if config.kind == "address":
            with _client(config.address) as client:
                connection = Connection(client, 0, None, True)
                if not connection.workers():
                    raise WorkflowError(f"the scheduler at {config.address} has no workers; start some first")
                yield connection
            return
        processes = config.kind == "local"
        workers = config.workers or os.cpu_count() or 1
        with ExitStack() as stack:
            if processes:
                stack.enter_context(_environment(WORKER_ENVIRONMENT))
            # A terminal sends Ctrl-C to all processes of a command. Workers have to finish what they are at.
            with deaf_to_interrupts():
                cluster = stack.enter_context(_started(workers, processes, scratch, memory))
            # Nobody needs its pages.
            for server in (cluster.scheduler, *(() if processes else cluster.workers.values())):
                cluster.loop.add_callback(server.http_server.stop)
            client = stack.enter_context(_client(cluster))
            yield Connection(client, memory, scratch if processes else None, processes)


def local_memory(config: ClusterConfig) -> int | None:
    """Bytes that all tasks of a cluster on this machine share; None if its workers are elsewhere."""
    from distributed.system import MEMORY_LIMIT

    if config.kind == "address":
        return None
    return int(config.memory_gb * 1e9) if config.memory_gb else int(MEMORY_LIMIT)


def _started(workers: int, processes: bool, scratch: Path, memory: int) -> Any:
    """A local cluster; raises `RunFailedError` if its processes die before they work."""
    from distributed import LocalCluster
    from distributed.security import Security

    started_as = {"env": {watchdog.WORKER: "1", watchdog.FAULTS: str(scratch)}}
    for attempt in range(1, STARTS + 1):
        try:
            return LocalCluster(
                n_workers=workers if processes else 1,
                threads_per_worker=1 if processes else workers,
                processes=processes,
                security=Security.temporary() if processes else None,
                host="127.0.0.1" if processes else None,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
                worker_dashboard_address=None if processes else "127.0.0.1:0",
                local_directory=str(scratch),
                memory_limit=memory,
                silence_logs=50,
                **(started_as if processes else {}),
            )
        except RuntimeError as error:
            if attempt == STARTS:
                raise RunFailedError(f"worker processes cannot be started ({error}), tried {STARTS} times") from error
    raise AssertionError


def _settings(scratch: str) -> dict[str, Any]:
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
        # Pages about the cluster would be open to every user of this machine.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
        # In-process workers take their folder from here alone.
        "temporary-directory": scratch,
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
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


@contextmanager
def _client(scheduler: Any) -> Iterator[Any]:
    """A client of a cluster or of a scheduler's address, closed at the end; raises `WorkflowError` if none answers."""
    from distributed import Client

    # A client that could not start has to be closed, else the process waits a minute for it at its end. Called as
    # usual, the constructor would leave nothing to close.
    client = Client.__new__(Client)
    try:
        client.__init__(scheduler, timeout="30s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        _close(client)
        # The last two are addresses that make no sense, and TLS without certificates.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkflowError(
            f"no Dask scheduler can be reached at {scheduler} ({reason}); "
            "check the address and the TLS settings of Dask's configuration"
        ) from error
    _keep_no_records(client)
    try:
        yield client
    finally:
        _close(client)


def _close(client: Any) -> None:
    """Close a client within seconds, whatever became of its scheduler.

    One that loses its scheduler while it connects anew may wait for ever for messages of the old connection. It is then
    left as it is, and its loop is stopped.
    """
    try:
        client.close(timeout=CLOSE_SECONDS)
    except OSError as error:
        log.info("the connection to the scheduler was not closed in order (%s: %s)", type(error).__name__, error)
        client.status = "closed"
        with suppress(OSError):
            client._loop_runner.stop(timeout=CLOSE_SECONDS)


def _keep_no_records(client: Any) -> None:
    """Send nothing with a job that its scheduler would keep for ever.

    A scheduler remembers of every call of `submit` what kind of collection it came from (`distributed.spans`), some 350
    bytes; of millions of jobs that is its memory.
    """
    send = client._graph_to_futures

    def without_record(*args: Any, **kwargs: Any) -> Any:
        if "span_metadata" in kwargs:
            kwargs["span_metadata"] = {"collections": []}
        return send(*args, **kwargs)

    client._graph_to_futures = without_record
