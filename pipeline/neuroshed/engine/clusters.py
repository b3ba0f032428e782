"""Where jobs run: threads of this process, local worker processes, or a scheduler that is already there."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroshed.engine import watchdog
from neuroshed.engine.config import STARTED, ClusterConfig
from neuroshed.engine.control import deaf_to_interrupts
from neuroshed.engine.dispatch import Demand, Worker
from neuroshed.engine.fleet import Fleet
from neuroshed.engine.hosting import grouped, hosted
from neuroshed.engine.loops import event_loop
from neuroshed.engine.pools import Pool, pool_for
from neuroshed.engine.scratch import scratch_folder
from neuroshed.engine.settings import WORKER_ENVIRONMENT, dask_settings, environment
from neuroshed.engine.versions import TALK, differences, versions
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.version import installed

log = logging.getLogger(__name__)

STARTS = 3
"""Tries to start local workers, which may be killed meanwhile."""
CONNECT_SECONDS = 30.0
"""For a scheduler to answer."""
RESTART_SECONDS = 60.0
"""For a worker to be there again."""
CLOSE_SECONDS = 5.0
"""For a client to take its leave of the scheduler, which may be gone."""
ANSWER_SECONDS = 0.2
"""Between looks at whether a scheduler that was asked something is still there."""


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
    fleet: Fleet | None = None
    """Workers that are started and ended as there is work, if they are."""
    pools: Mapping[str, Pool] = field(default_factory=dict)
    """The pools of that."""
    elsewhere: bool = False
    """Whether workers may run another installation than this process."""

    def pool_for(self, demand: Demand) -> str | None:
        """The pool whose workers get what needs so much."""
        return pool_for(demand, self.pools)

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

    def restart(self, address: str, failed: Callable[[str], None]) -> None:
        """Have the nanny of a worker start it again, without waiting for it; `failed` is told why that cannot be, in
        another thread.
        """
        self.client.loop.add_callback(self._restart, address, failed)

    async def _restart(self, address: str, failed: Callable[[str], None]) -> None:
        try:
            await self.client._restart_workers([address], timeout=RESTART_SECONDS, raise_for_error=False)
        except Exception as error:
            # It has no nanny, or is gone already.
            failed(f"it cannot be started again ({type(error).__name__}: {error})".splitlines()[0])

    def described(self, address: str, info: dict[str, Any]) -> Worker:
        """A worker as jobs are given to it."""
        shared = self.memory_bytes
        member = str(info.get("name", "")).rpartition("/")[0] if self.fleet else ""
        return Worker(
            address=address,
            host=info["host"],
            threads=info["nthreads"],
            memory_bytes=shared or int(info.get("memory_limit") or 0),
            gpus=info.get("resources", {}).get("GPU", 0.0),
            memory_group="shared" if shared else member,
            member=member,
            pool=member.partition("-")[0],
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
def connect(config: ClusterConfig, run_folder: Location) -> Iterator[Connection]:
    """A cluster for a run; what was started for it is stopped at the end.

    Local processes talk over loopback under mutual TLS with keys made for this run, since Dask unpickles what a peer
    sends.
    Raises `WorkflowError` if a given scheduler does not answer or has no workers.
    """
    import dask

    memory = local_memory(config) or 0
    with scratch_folder() as scratch, dask.config.set(dask_settings(str(scratch))):
        if config.kind == "address":
            with event_loop() as loop, _client(config.address, loop=loop) as client:
                connection = Connection(client, 0, None, True, elsewhere=True)
                if not connection.workers():
                    raise WorkflowError(f"the scheduler at {config.address} has no workers; start some first")
                yield connection
            return
        if config.kind == "kubernetes":
            with (
                event_loop() as loop,
                grouped(config) as (address, fleet),
                _client(address, config.patience_seconds, loop) as client,
            ):
                yield Connection(client, 0, None, True, fleet, config.pools, elsewhere=True)
            return
        if config.kind in STARTED:
            with hosted(config, run_folder) as (cluster, fleet, pools), _client(cluster) as client:
                yield Connection(client, 0, None, True, fleet, pools, elsewhere=config.kind != "gpus")
            return
        processes = config.kind == "local"
        workers = config.workers or os.cpu_count() or 1
        with ExitStack() as stack:
            if processes:
                stack.enter_context(environment(WORKER_ENVIRONMENT))
            # A terminal sends Ctrl-C to all processes of a command. Workers have to finish what they are at.
            with deaf_to_interrupts():
                loop = stack.enter_context(event_loop())
                cluster = stack.enter_context(_started(workers, processes, scratch, memory, loop))
            # Nobody needs its pages.
            for server in (cluster.scheduler, *(() if processes else cluster.workers.values())):
                cluster.loop.add_callback(server.http_server.stop)
            client = stack.enter_context(_client(cluster))
            yield Connection(client, memory, scratch if processes else None, processes)


def local_memory(config: ClusterConfig) -> int | None:
    """Bytes that all tasks of a cluster on this machine share; None if its workers have their own."""
    from distributed.system import MEMORY_LIMIT

    if config.kind not in ("local", "in-process"):
        return None
    return int(config.memory_gb * 1e9) if config.memory_gb else int(MEMORY_LIMIT)


def _started(workers: int, processes: bool, scratch: Path, memory: int, loop: Any) -> Any:
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
                loop=loop,
                **(started_as if processes else {}),
            )
        except RuntimeError as error:
            if attempt == STARTS:
                raise RunFailedError(f"worker processes cannot be started ({error}), tried {STARTS} times") from error
    raise AssertionError


@contextmanager
def _client(scheduler: Any, seconds: float = CONNECT_SECONDS, loop: Any = None) -> Iterator[Any]:
    """A client of a cluster or of a scheduler's address, closed at the end; raises `WorkflowError` if none answers in
    so many seconds. Its loop is that of the cluster if none is given.
    """
    from distributed import Client

    # A client that could not start has to be closed, else the process waits a minute for it at its end. Called as
    # usual, the constructor would leave nothing to close.
    client = Client.__new__(Client)
    try:
        client.__init__(scheduler, timeout=max(seconds, CONNECT_SECONDS), set_as_default=False, loop=loop)
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
        if isinstance(scheduler, str):
            _check_scheduler(client, scheduler)
        yield client
    finally:
        _close(client)


def _check_scheduler(client: Any, address: str) -> None:
    """Raise `WorkflowError` if a scheduler that stands by itself has other versions of what they talk with."""
    found = client.sync(client.scheduler.versions)["packages"]
    there = {name: str(found.get(name)) for name in TALK} | {"python": ".".join(str(found["python"]).split(".")[:2])}
    here = {"python": versions()["python"], **{name: str(installed(name)) for name in TALK if name != "python"}}
    if other := differences(there, here):
        raise WorkflowError(f"the scheduler at {address} has {other}; install the same there and here")


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
