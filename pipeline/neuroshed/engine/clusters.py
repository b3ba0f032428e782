"""Where tasks run: threads of this process, local worker processes, or a scheduler that is already there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuroshed.errors import WorkflowError

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


@contextmanager
def connect(config: ClusterConfig) -> Iterator[Any]:
    """A `distributed.Client` of the cluster; what was started for it is stopped at the end.

    Local processes talk over loopback under mutual TLS with keys made for this run, since Dask unpickles what a peer
    sends.
    Raises `WorkflowError` if a given scheduler does not answer or has no workers.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.security import Security

    workers = config.workers or os.cpu_count() or 1
    settings = {
        "distributed.comm.timeouts.connect": "30s",
        # The coordinator counts attempts itself.
        "distributed.scheduler.allowed-failures": 0,
        # Pages about the cluster would be open to every user of this machine.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
    }
    with dask.config.set(settings):
        if config.kind == "address":
            with _client_of(config.address) as client:
                if not slots(client):
                    raise WorkflowError(f"the scheduler at {config.address} has no workers; start some first")
                yield client
            return
        processes = config.kind == "local"
        with (
            tempfile.TemporaryDirectory(prefix="neuroshed-workers-") as scratch,
            # In-process workers take their folder from here alone.
            dask.config.set({"temporary-directory": scratch}),
            LocalCluster(
                n_workers=workers if processes else 1,
                threads_per_worker=1 if processes else workers,
                processes=processes,
                security=Security.temporary() if processes else None,
                host="127.0.0.1" if processes else None,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=50,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client


def _client_of(address: str | None) -> Any:
    from distributed import Client

    # A client that could not start has to be closed, else the process waits a minute for it at its end. Called as
    # usual, the constructor would leave nothing to close.
    client = Client.__new__(Client)
    try:
        client.__init__(address, timeout="30s", set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        client.close(timeout=2)
        # The last two are addresses that make no sense, and TLS without certificates.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkflowError(
            f"no Dask scheduler can be reached at {address} ({reason}); "
            "check the address and the TLS settings of Dask's configuration"
        ) from error
    return client


def slots(client: Any) -> int:
    """Tasks that the cluster runs at a time, now."""
    return sum(client.nthreads().values())
