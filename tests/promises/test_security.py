"""Security: nobody but the owner of a run reaches its processes, and nothing that lies in a run folder is ever run."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from distributed import Client, Scheduler, Worker
from distributed.comm import connect as dial
from distributed.security import Security

import neuroshed
from neuroshed.engine.clusters import Connection, connect
from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.joining import join
from neuroshed.engine.serving import serve
from neuroshed.errors import BlockError, InputError, NeuroshedError, WorkflowError
from neuroshed.stages.registry import load_stage
from neuroshed.storage.journal import Journal, read_ledger
from neuroshed.storage.lease import Pace
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node
from neuroshed.storage.segments import encode

from .chunks import random_affinities, write_affinities

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AZURE_STORAGE_ACCOUNT_KEY": "Xb7qF2wVt0m8yLr4Kc1sZa9dHj6nUe3oGp5iQw==",
    "AZURE_STORAGE_SAS_TOKEN": "sv=2022-11-02&sig=Zk2Lx0Qm8Rt5Vb7Nc3",
    "GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key": "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"}',
    "X_TOKEN": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "DASK_GATEWAY__AUTH__TOKEN": "d34db33fd34db33fd34db33fd34db33f",
    "OMP_API_KEY": "sk-0123456789abcdefghijklmnopqrstuv",
}

NOWHERE = Location.of("/nowhere")


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses of this machine on which processes wait for connections."""
    found = (place for process in processes for place in process.net_connections("inet"))
    return {place.laddr.ip for place in found if place.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def local(scratch: Path) -> Iterator[Connection]:
    """Two worker processes of a local cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr("tempfile.tempdir", str(scratch))
        with connect(ClusterConfig(kind="local", workers=1), NOWHERE) as connection:
            yield connection


def stranger(address: str, security: Security | None) -> None:
    """Somebody else of this machine asks a process of Dask who it is, which needs no more than a connection."""

    async def ask() -> object:
        arguments = security.get_connection_args("client") if security else {}
        comm = await dial(address, timeout=10, **arguments)
        try:
            await comm.write({"op": "identity", "reply": True})
            return await comm.read()
        finally:
            comm.abort()

    asyncio.run(asyncio.wait_for(ask(), 20))


def other_certificate() -> Security:
    return Security.temporary()


@pytest.mark.parametrize("whom", ["scheduler", "worker", "nanny"])
@pytest.mark.parametrize("certificate", [True, False])
def test_strangers_are_refused(whom: str, certificate: bool, local: Connection) -> None:
    (worker,) = local.workers().values()
    addresses = {
        "scheduler": local.client.scheduler.address,
        "worker": next(iter(local.workers())),
        "nanny": worker["nanny"],
    }
    address = addresses[whom]
    assert address.startswith("tls://127.0.0.1:")
    # Whoever belongs to the cluster gets an answer to the same question.
    stranger(address, local.client.security)
    with pytest.raises(OSError):  # noqa: PT011  of TLS or of the connection, by who closes first
        stranger(
            address if certificate else address.replace("tls:", "tcp:"), other_certificate() if certificate else None
        )


def test_a_client_without_the_certificate_is_refused(local: Connection) -> None:
    address = local.client.scheduler.address
    for security in (other_certificate(), None):
        with pytest.raises((OSError, TypeError)):
            Client(address if security else address.replace("tls:", "tcp:"), security=security, timeout="3s")
    assert local.client.submit(sum, [1, 2]).result(30) == 3


def test_a_local_cluster_listens_on_loopback_only(local: Connection) -> None:
    (worker,) = local.workers().values()
    here = psutil.Process()
    assert listening([here, *here.children(recursive=True)]) == {"127.0.0.1"}
    for port in {*worker["services"].values(), local.client.scheduler_info()["services"].get("dashboard")} - {None}:
        # Closed, or nothing to see.
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 10) as page:
            page.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert page.recv(1000).startswith(b"HTTP/1.1 404")


def test_no_key_lies_where_others_read_it(local: Connection, scratch: Path) -> None:
    assert local.client.submit(sum, [1, 2]).result(30) == 3
    for path in (scratch, *scratch.rglob("*")):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # Nor in a command line, which everybody can read.
    processes = psutil.Process().children(recursive=True)
    assert not any("PRIVATE KEY" in word for process in processes for word in process.cmdline())
    (folder,) = scratch.glob("neuroshed-workers-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_in_process_clusters_open_no_port() -> None:
    here = psutil.Process()

    def ports() -> set[tuple[str, int]]:
        found = (place for place in here.net_connections("inet") if place.status == psutil.CONN_LISTEN)
        return {(place.laddr.ip, place.laddr.port) for place in found}

    before = ports()
    with connect(ClusterConfig(kind="in-process", workers=1), NOWHERE) as connection:
        assert connection.client.submit(sum, [1, 2]).result(30) == 3
        assert ports() - before == set()


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    affinities = write_affinities(tmp_path / "a.zarr", random_affinities(np.random.default_rng(1), (4, 4, 8), 256))
    return [
        f"affinities={affinities}",
        f"output={tmp_path / 'run'}",
        "block_shape=[4, 4, 4]",
        "cluster=in-process:1",
        "failures.attempts=1",
    ]


def test_no_secret_of_the_environment_lies_in_the_run_folder(settings: list[str], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        neuroshed.run("segment", settings)
        neuroshed.resume(tmp_path / "run")
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert any(file.name == "provenance.json" for file in files)
    for file in files:
        found = [name for name, value in SECRETS.items() if value.encode() in file.read_bytes()]
        assert found == [], file


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture
def bomb(tmp_path: Path) -> Iterator[bytes]:
    mark = tmp_path / "exploded"
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)
    mark.unlink()
    yield data
    assert not mark.exists()


@pytest.mark.parametrize("change", ["kind", "field", "types", "pickle", "list", "yaml"])
def test_a_hostile_stage_is_an_error(change: str, settings: list[str], tmp_path: Path, bomb: bytes) -> None:
    neuroshed.run("segment", settings)
    file = next((tmp_path / "run").glob("fragments-*")) / "stage.json"
    values = json.loads(file.read_text())
    file.write_bytes(
        {
            "kind": json.dumps(values | {"kind": "os.system"}).encode(),
            "field": json.dumps(values | {"command": "touch /tmp/x"}).encode(),
            "types": json.dumps(values | {"block_shape": {"py/reduce": ["os.system", ["true"]]}}).encode(),
            "pickle": bomb,
            "list": json.dumps([values]).encode(),
            "yaml": b'!!python/object/apply:os.system ["touch %s"]' % os.fsencode(tmp_path / "exploded"),
        }[change]
    )
    with pytest.raises(InputError, match=r"stage\.json"):
        load_stage(file)


@pytest.mark.parametrize("file", ["plan.json", "workflow.yaml", "live.json", "provenance.json", "journal/epoch-000001"])
def test_a_hostile_file_of_a_run_is_never_executed(
    file: str, settings: list[str], tmp_path: Path, bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever finds a holder that nobody knows waits for as long.
    monkeypatch.setattr("neuroshed.storage.lease.PACE", Pace(beat_seconds=0.05, silence_seconds=1.0))
    neuroshed.run("segment", settings)
    code = b'!!python/object/apply:os.system ["touch %s"]' % os.fsencode(tmp_path / "exploded")
    for data in (bomb, code, b"\x00\xff" * 100, b"[" * 10_000, b'{"holder": {"pid": "x"}, "epoch": "y"}'):
        (tmp_path / "run" / file).write_bytes(data)
        for verb in (neuroshed.status, neuroshed.resume):
            # Errors are lines for the user; where nothing depends on the file, all goes on.
            with suppress(NeuroshedError):
                verb(tmp_path / "run")


def test_a_plan_never_makes_a_run_write_elsewhere(settings: list[str], tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    neuroshed.run("segment", settings)
    plan = run / "plan.json"
    plan.write_text(plan.read_text().replace(str(run), str(elsewhere)))
    neuroshed.resume(run)
    neuroshed.verify(run)
    assert not elsewhere.exists()
    values = json.loads((run / "plan.json").read_text())
    values[0]["agglomerate"]["fragments"]["kind"] = "../../elsewhere/x"
    plan.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"plan\.json"):
        neuroshed.status(run)
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    "event",
    [
        {"e": "__class__"},
        {"e": "done", "id": 99, "at": [0]},
        {"e": "part", "id": 1, "stage": "../../x", "step": "", "first": [0, 0, 0], "counts": [-1, 1, 1]},
        {"e": "part", "id": 7, "stage": "x", "step": "", "first": [0, 0, 0], "counts": [1 << 40, 1 << 40, 1]},
        {"e": "bits", "id": 1, "state": "done", "data": "gASVDQAAAAAAAACMBXBvc2l4lJMu"},
        {"e": "done", "id": 1, "at": [[-5, 3]]},
        {"e": "figures", "stage": "x", "values": "text"},
        {"no": "e"},
        [],
    ],
)
def test_a_hostile_line_of_the_journal_is_an_error(event: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Journal(run):
        pass
    segment = next((run / "journal").glob("*.log"))
    segment.write_bytes(segment.read_bytes() + encode(event))
    with pytest.raises(InputError) as caught:
        read_ledger(run)
    assert "\n" not in str(caught.value)


def test_a_hostile_table_is_an_error(tmp_path: Path, bomb: bytes) -> None:
    path = tmp_path / "0_0_0.parquet"
    path.write_bytes(bomb)
    with pytest.raises(BlockError, match="damaged"):
        read_node(Location.of(path), "edges")


def configured(file: Path) -> Security:
    """As with DASK_CONFIG."""
    with dask.config.set(dask.config.merge(dask.config.config, yaml.safe_load(file.read_text()))):
        return Security()


def test_certificates_let_those_in_who_have_them_and_nobody_else(tmp_path: Path) -> None:
    files = neuroshed.cluster_certificates(tmp_path / "certs", days=2)
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o600}
    neuroshed.cluster_certificates(tmp_path / "others")
    mine, others = (configured(tmp_path / name / "dask.yaml") for name in ("certs", "others"))
    assert mine.require_encryption

    async def ask() -> None:
        async with Scheduler(
            protocol="tls://", host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0", security=mine
        ) as scheduler:
            async with (
                Worker(scheduler.address, security=mine, protocol="tls://", host="127.0.0.1", nthreads=1),
                Client(scheduler.address, security=mine, asynchronous=True) as client,
            ):
                assert await client.submit(sum, [1, 2]) == 3
            with pytest.raises(OSError, match="TLS certificate does not match"):
                await Client(scheduler.address, security=others, asynchronous=True, timeout="3s")

    asyncio.run(ask())
    with pytest.raises(WorkflowError, match=r"ca\.pem is there already"):
        neuroshed.cluster_certificates(tmp_path / "certs")


def test_no_other_certificate_can_be_made(tmp_path: Path) -> None:
    files = neuroshed.cluster_certificates(tmp_path)
    assert sum(b"PRIVATE KEY" in file.read_bytes() for file in files.values()) == 1
    authority, own = (x509.load_pem_x509_certificate(files[name].read_bytes()) for name in ("ca.pem", "cluster.pem"))
    own.verify_directly_issued_by(authority)
    key = serialization.load_pem_private_key(files["cluster-key.pem"].read_bytes(), None)
    assert key.public_key() == own.public_key() != authority.public_key()
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_schedulers_and_workers_of_ones_own_do_not_start_without_certificates() -> None:
    with pytest.raises(WorkflowError, match="make certificates with `neuroshed cluster certs"):
        serve("127.0.0.1", 0, 0)
    with pytest.raises(WorkflowError, match="make certificates with `neuroshed cluster certs"):
        join("tls://127.0.0.1:1", "cpu-1", 1, 1.0, 0)


def test_certificates_may_be_for_another_folder(tmp_path: Path) -> None:
    neuroshed.cluster_certificates(tmp_path, at="/certs")
    tls = yaml.safe_load((tmp_path / "dask.yaml").read_text())["distributed"]["comm"]["tls"]
    assert tls["ca-file"] == "/certs/ca.pem"
    assert tls["worker"] == {"cert": "/certs/cluster.pem", "key": "/certs/cluster-key.pem"}
