"""One workflow on every kind of cluster gives the same bytes, through losses, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import dask
import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster

import neuroshed
from neuroshed.engine.hosting import run_name
from neuroshed.storage.locations import Location

from ..kubernetes_site import NAMESPACE, Site, kubernetes_site
from ..promises.chunks import random_affinities, write_affinities
from ..workflow.commands import free_port
from .sites import answer, daemon, queue, slurm, ssh_hosts, wait_for

pytestmark = pytest.mark.system
POOLS = {
    "cpu": {"cores": 2, "memory_gb": 2, "workers": [0, 2], "walltime": "00:30:00"},
    "highmem": {"cores": 1, "memory_gb": 3},
}
SECONDS = 120.0


@pytest.fixture(scope="module")
def affinities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 blocks of noise."""
    path = tmp_path_factory.mktemp("input") / "affinities.zarr"
    return write_affinities(path, random_affinities(np.random.default_rng(1), (32, 32, 48), 256))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm, for all tests of this file."""
    # Sockets have short names.
    with slurm(tmp_path_factory.mktemp("slurm")):
        yield


def settings(affinities: Path, run: Path, cluster: Any) -> list[str]:
    return [f"affinities={affinities}", f"output={run}", "block_shape=[8,8,8]", f"cluster={json.dumps(cluster)}"]


def digest(run: Path) -> dict[str, str]:
    """Of all that the blocks of a run wrote."""
    files = (file for mark in run.glob("*/stage.json") for file in mark.parent.rglob("*") if file.is_file())
    found = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.name != "stage.json"
    }
    assert len(found) > 20
    return found


@pytest.fixture(scope="module")
def expected(affinities: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By threads of one process."""
    run = tmp_path_factory.mktemp("plain") / "run"
    neuroshed.run("segment", settings(affinities, run, "in-process:2"))
    return digest(run)


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process of a worker is there any more that was not there before."""
    before = set(workers())
    yield
    end = time.monotonic() + SECONDS
    while left := set(workers()) - before:
        assert time.monotonic() < end, [psutil.Process(pid).cmdline() for pid in left if psutil.pid_exists(pid)]
        time.sleep(0.2)


def workers(word: str = "worker") -> list[int]:
    """Processes that runs have started as workers, with a word among their arguments."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if {"neuroshed", "worker", word} <= {*(process.info["cmdline"] or ())}
    ]


@contextmanager
def plain_cluster(folder: Path) -> Iterator[Any]:
    yield folder.name


@contextmanager
def running_scheduler(folder: Path) -> Iterator[Any]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        yield cluster.scheduler_address


@contextmanager
def pooled(folder: Path) -> Iterator[Any]:
    yield {"kind": "gpus", "pools": POOLS | {"highmem": {"memory_gb": 3, "workers": 1}}}


@contextmanager
def slurm_jobs(folder: Path) -> Iterator[Any]:
    yield {"kind": "slurm", "pools": POOLS}


@contextmanager
def by_ssh(folder: Path) -> Iterator[Any]:
    with ssh_hosts(folder / "ssh", 2) as (here, hosts):
        yield {"kind": "ssh", "host": here, "pools": {"cpu": {"cores": 1, "memory_gb": 2, "hosts": hosts}}}


@contextmanager
def pods(folder: Path) -> Iterator[Any]:
    """Worker groups of a Kubernetes whose pods are processes here, started with the very arguments of the manifests."""
    neuroshed.cluster_certificates(folder / "certs")
    port, health = free_port(), free_port()
    address = f"tls://127.0.0.1:{port}"
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(site: Site, deployment: dict[str, Any]) -> None:
        site.make_pod(deployment)
        name = deployment["metadata"]["name"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        variables = {item["name"]: item["value"] for item in container["env"] if "value" in item}
        command, *arguments = (word.replace("$(DASK_WORKER_NAME)", name) for word in container["args"])
        assert command == "neuroshed"
        there = {
            "tls://neuroshed-scheduler.neuroshed.svc:8786": address,
            "--alive=/tmp/alive": f"--alive={folder}/{name}",
            "/certs/dask.yaml": str(folder / "certs" / "dask.yaml"),
        }
        small = {"--cores=8": "--cores=2", "--memory-gb=28": "--memory-gb=2"}
        arguments = [(there | small).get(word, word) for word in arguments]
        environment = os.environ | {key: there.get(value, value) for key, value in variables.items()}
        log = (folder / f"{name}.log").open("wb")
        running[name] = subprocess.Popen(
            [sys.executable, "-m", "neuroshed", *arguments], env=environment, stdout=log, stderr=log
        )

    def kill(name: str) -> None:
        running[name].terminate()
        running[name].wait(SECONDS)

    serving = [sys.executable, "-m", "neuroshed", "scheduler", "--host", "127.0.0.1", "--port", str(port)]
    with pytest.MonkeyPatch.context() as patch, kubernetes_site(folder) as site:
        patch.setenv("KUBECONFIG", str(site.kubeconfig))
        patch.setenv("DASK_CONFIG", str(folder / "certs" / "dask.yaml"))
        site.kubelet, site.killer = start, kill
        with daemon([*serving, "--health", str(health)], folder / "scheduler.log"), configured(folder / "certs"):
            wait_for(lambda: answers(health), "neuroshed scheduler", folder / "scheduler.log")
            pools = {"cpu": {"cores": 2, "memory_gb": 2}}
            yield {"kind": "kubernetes", "namespace": NAMESPACE, "address": address, "pools": pools}
        assert running
        assert all((folder / name).exists() for name in running)
        assert not site.named("deployments")
        assert not site.retired


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def configured(certificates: Path) -> Iterator[None]:
    """Dask as it is where DASK_CONFIG was set before the start."""
    settings = yaml.safe_load((certificates / "dask.yaml").read_text())
    with dask.config.set(dask.config.merge(dask.config.config, settings)):
        yield


KINDS: dict[str, Callable[[Path], Any]] = {
    "local": plain_cluster,
    "processes": plain_cluster,
    "address": running_scheduler,
    "gpus": pooled,
    "slurm": slurm_jobs,
    "ssh": by_ssh,
    "kubernetes": pods,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_cluster_gives_the_same_bytes(
    kind: str, affinities: Path, expected: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "slurm":
        request.getfixturevalue("site")
    (tmp_path / kind).mkdir()
    with nothing_left(), KINDS[kind](tmp_path / kind) as cluster:
        summary = neuroshed.run("segment", settings(affinities, tmp_path / "run", cluster))
    assert summary["status"] == "done"
    assert digest(tmp_path / "run") == expected
    if kind == "slurm":
        assert not queue()
        assert not (tmp_path / "run" / "workers" / "invitation.json").exists()


@pytest.mark.parametrize("kind", ["slurm", "ssh", "kubernetes"])
def test_the_doctor_sees_a_worker_of_each_pool(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "slurm":
        request.getfixturevalue("site")
    (tmp_path / kind).mkdir()
    with nothing_left(), KINDS[kind](tmp_path / kind) as cluster:
        (tmp_path / "site.yaml").write_text(json.dumps(cluster))
        report = neuroshed.doctor(str(tmp_path / "site.yaml"), tmp_path / "runs")
        found = {(line["pool"], line["check"]): line for line in report["lines"]}
        for pool in cluster["pools"]:
            for check in ("connects", "versions", "reads", "writes", "memory", "clock"):
                assert found[pool, check]["ok"], found[pool, check]
    assert not list((tmp_path / "runs").iterdir())
    assert not (kind == "slurm" and queue())


def submit(affinities: Path, run: Path, cluster: Any) -> subprocess.Popen[bytes]:
    """A coordinator of its own."""
    words = [word for setting in settings(affinities, run, cluster) for word in ("--set", setting)]
    return subprocess.Popen([sys.executable, "-m", "neuroshed", "run", "segment", *words], stderr=subprocess.DEVNULL)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def done_blocks(run: Path) -> int:
    try:
        return sum(row["done"] for row in neuroshed.status(run)["stages"].values())
    except neuroshed.NeuroshedError:
        return 0


@pytest.mark.usefixtures("site")
def test_a_run_survives_the_end_of_its_jobs(affinities: Path, expected: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nothing_left():
        process = submit(affinities, run, {"kind": "slurm", "pools": POOLS})
        until(lambda: any("RUNNING" in job for job in queue()))
        until(lambda: done_blocks(run) > 5 or process.poll() is not None)
        killed = [job.split()[0] for job in queue() if "RUNNING" in job]
        assert killed
        answer("scancel", "--signal=KILL", "--full", killed[0])
        assert process.wait(SECONDS) == 0
    assert digest(run) == expected
    assert not queue()


@pytest.mark.usefixtures("site")
def test_a_coordinator_that_is_a_job_goes_on_in_another(
    affinities: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    run, file = tmp_path / "run", tmp_path / "site.yaml"
    file.write_text(json.dumps({"kind": "slurm", "pools": POOLS, "coordinator": {"memory_gb": 2}}))
    with nothing_left():
        # Enough to do for several seconds after the first blocks.
        more = f"thresholds={[round(0.25 + 0.05 * number, 2) for number in range(12)]}"
        found = neuroshed.submit("segment", [*settings(affinities, run, str(file)), more])
        assert found["coordinator"].startswith("Slurm job ")
        number = found["coordinator"].split()[-1]
        until(lambda: done_blocks(run) > 5)
        # What Slurm does some minutes before the job's time is over.
        answer("scancel", "--batch", "--signal=USR1", number)
        until(lambda: number not in {job.split()[0] for job in queue()})
        until(lambda: neuroshed.status(run)["state"] == "done" and not queue())
    assert expected.items() <= digest(run).items()
    assert (run / "workers" / "coordinator.exit").read_text() == "0\n"
    assert len(list((run / "workers").glob("*-coordinator-*.log"))) == 2


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_nothing_is_left_of_a_run_that_is_stopped(how: str, affinities: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with nothing_left():
        process = submit(affinities, run, {"kind": "slurm", "pools": POOLS})
        until(lambda: done_blocks(run) > 5 or process.poll() is not None)
        assert process.poll() is None
        mine = [job for job in queue() if run_name(Location.of(run)) in job]
        assert mine
        if how == "cancel":
            neuroshed.cancel(run)
            assert process.wait(SECONDS) == 130
            assert not queue()
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            # Its workers see that it is gone.
            until(lambda: not queue())
    neuroshed.resume(run)
    assert not queue()


def test_on_kubernetes_nothing_is_left_and_what_is_left_is_taken_over(
    affinities: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (tmp_path / "kubernetes").mkdir()
    with nothing_left(), pods(tmp_path / "kubernetes") as cluster:
        process = submit(affinities, run, cluster)
        until(lambda: done_blocks(run) > 5 or process.poll() is not None)
        left = workers(cluster["address"])
        assert left
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # Pods stay; the coordinator's next pod has them at once.
        process = submit(affinities, run, cluster)
        until(lambda: done_blocks(run) > 20 or process.poll() is not None)
        assert set(left) <= set(workers(cluster["address"]))
        neuroshed.cancel(run)
        assert process.wait(SECONDS) == 130
        assert not workers(cluster["address"])
        neuroshed.resume(run)
    assert digest(run) == expected
