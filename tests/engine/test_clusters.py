"""What a cluster is told and keeps."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from distributed import Client, LocalCluster

from neuroshed.engine import clusters, watchdog
from neuroshed.engine.clusters import Connection, connect
from neuroshed.engine.config import ClusterConfig
from neuroshed.storage.locations import Location

JOBS = 30

NOWHERE = Location.of("/nowhere")


def kept(cluster: Any) -> int:
    """Records of calls of `submit` that a scheduler holds after its futures are gone."""
    spans = cluster.scheduler.extensions["spans"].spans.values()
    return sum(len((span._metadata or {}).get("collections", ())) for span in spans)


def do_jobs(client: Any) -> None:
    for number in range(JOBS):
        assert client.submit(abs, -number, key=("job", number), pure=False).result(timeout=60) == number


def test_jobs_leave_nothing_in_the_scheduler() -> None:
    with connect(ClusterConfig(kind="in-process", workers=1), NOWHERE) as connection:
        do_jobs(connection.client)
        assert kept(connection.client.cluster) == 0
        # Of a client as Dask makes it, to show that something would be seen.
        with Client(connection.client.cluster, set_as_default=False) as plain:
            do_jobs(plain)
        assert kept(connection.client.cluster) == JOBS


def test_jobs_leave_nothing_in_a_scheduler_that_is_not_ours() -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with connect(ClusterConfig(kind="address", address=cluster.scheduler_address), NOWHERE) as connection:
            do_jobs(connection.client)
        assert kept(cluster) == 0


def test_worker_processes_have_their_own_environment_and_this_one_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As an earlier run in this process might have left it, and as clusters often set it.
    monkeypatch.setenv(watchdog.FAULTS, "/gone")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv(watchdog.WORKER, raising=False)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.delenv("__DASK_PARENT_PID", raising=False)
    before = dict(os.environ)
    for _ in range(2):
        with connect(ClusterConfig(kind="local", workers=1), NOWHERE) as connection:
            (told,) = connection.client.run(lambda: dict(os.environ)).values()
            assert not watchdog.is_worker()
            assert told[watchdog.FAULTS] == str(connection.faults)
            assert (told[watchdog.WORKER], told["OMP_NUM_THREADS"]) == ("1", "1")
        # Dask's own note of the number of this process.
        assert {name: value for name, value in os.environ.items() if name != "__DASK_PARENT_PID"} == before


def test_a_client_that_cannot_be_closed_sinks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "CLOSE_SECONDS", 0.1)

    async def forever(*_: Any, **__: Any) -> None:
        await asyncio.sleep(1000)

    async def here() -> threading.Thread:
        return threading.current_thread()

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with connect(ClusterConfig(kind="address", address=cluster.scheduler_address), NOWHERE) as connection:
            do_jobs(connection.client)
            thread = connection.client.sync(here)
            assert thread.is_alive()
            monkeypatch.setattr(connection.client, "_close", forever)
        thread.join(10)
        assert not thread.is_alive()
        assert connection.client.status == "closed"


def test_jobs_of_a_closed_connection() -> None:
    with connect(ClusterConfig(kind="in-process", workers=1), NOWHERE) as connection:
        (worker,) = connection.workers()
        future = connection.submit(abs, -2, ("job", 1), worker)
        assert future.result(timeout=60) == 2
        connection.client.close()
        connection.cancel(future)
        with pytest.raises(OSError, match="no connection to the Dask scheduler"):
            connection.submit(abs, -2, ("job", 2), worker)


def test_a_worker_that_cannot_be_started_again_is_told() -> None:
    class Dask:
        def __init__(self) -> None:
            self.loop = self

        def add_callback(self, function: Any, *arguments: Any) -> None:
            asyncio.run(function(*arguments))

        async def _restart_workers(self, workers: list[str], **options: Any) -> None:
            raise ValueError("Restarting workers requires a nanny to be used.\nMore")

    told: list[str] = []
    Connection(Dask(), 0, None, True).restart("tls://a", told.append)
    assert told == ["it cannot be started again (ValueError: Restarting workers requires a nanny to be used."]
