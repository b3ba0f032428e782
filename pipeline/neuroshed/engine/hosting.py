"""A scheduler in this process for workers that are started elsewhere, and the workers: asked for as they are needed."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.control import deaf_to_interrupts
from neuroshed.engine.fleet import Fleet, Provider
from neuroshed.engine.gpus import pools_here, visible_gpus
from neuroshed.engine.joining import VISIBLE_GPUS, Invitation, worker_command
from neuroshed.engine.loops import event_loop
from neuroshed.engine.pools import Host, Pool
from neuroshed.engine.providers.kubernetes import WorkerGroups
from neuroshed.engine.providers.processes import HeldProcesses, Place
from neuroshed.engine.providers.slurm import SlurmJobs
from neuroshed.engine.settings import SCHEDULER_PORT
from neuroshed.errors import WorkflowError
from neuroshed.storage.locations import Location

INVITATION_FILE = "invitation.json"
FOLDER = "workers"
"""In the run folder: scripts and output of workers."""
STATE = Path.home() / ".local" / "state" / "neuroshed"
"""For the output of workers of runs in object stores."""
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
"""Without questions; a connection over which nothing comes for a minute is given up."""


@contextmanager
def hosted(config: ClusterConfig, run_folder: Location) -> Iterator[tuple[Any, Fleet, Mapping[str, Pool]]]:
    """A Dask cluster whose workers a fleet starts as they are needed, and their pools; all of it ends at the end.

    Raises `WorkflowError` if nothing can listen, or the place where workers are to run does not answer.
    """
    from distributed.utils import get_ip

    host = "127.0.0.1" if config.kind == "gpus" else config.host or get_ip()
    with ExitStack() as stack:
        cluster, invitation = stack.enter_context(scheduler(host, config.port))
        pools = config.pools or pools_here()
        if config.kind == "slurm":
            folder = config.folder or shared_folder(run_folder)
            file = stack.enter_context(written(invitation, folder))
            provider: Provider = SlurmJobs(run_name(run_folder), pools, file, folder, config.python)
        else:
            places = _hosts(config, invitation) if config.kind == "ssh" else _places_here(pools)
            provider = HeldProcesses(places, invitation, config.folder or _logs(run_folder))
        yield cluster, stack.enter_context(Fleet(provider, config.patience_seconds)), pools


@contextmanager
def grouped(config: ClusterConfig) -> Iterator[tuple[str, Fleet]]:
    """The address of the scheduler of a `DaskCluster` of Kubernetes, and a fleet of its worker groups.

    Raises `WorkflowError` if Kubernetes does not answer, or the groups are not those of the pools.
    """
    groups = WorkerGroups(config.name, config.namespace, config.pools)
    address = config.address or f"tls://{config.name}-scheduler.{groups.namespace}.svc:{SCHEDULER_PORT}"
    with Fleet(groups, config.patience_seconds) as fleet:
        yield address, fleet


def run_name(run_folder: Location) -> str:
    """A name for what is started for a run, the same whenever it goes on."""
    return f"neuroshed-{hashlib.sha256(str(run_folder).encode()).hexdigest()[:8]}"


def shared_folder(run_folder: Location) -> Path:
    """For what the machines of a cluster have to see; raises `WorkflowError` if the run is not on a file system."""
    if not run_folder.is_local:
        raise WorkflowError(
            f"run {run_folder} is in an object store; set cluster.folder to a folder that all machines of the cluster "
            "share, for scripts, output and keys of workers"
        )
    return (run_folder / FOLDER).local


def _logs(run_folder: Location) -> Path:
    return (run_folder / FOLDER).local if run_folder.is_local else STATE / run_name(run_folder)


def _hosts(config: ClusterConfig, invitation: Invitation) -> list[Place]:
    port = invitation.scheduler.rpartition(":")[2]
    return [
        Place(
            name,
            re.sub(r"[^A-Za-z0-9.]", "_", host.name),
            _by_ssh(host, pool, host.python or config.python),
            scheduler=f"tls://{host.address}:{port}" if host.address else None,
        )
        for name, pool in config.pools.items()
        for host in pool.hosts
    ]


def _by_ssh(host: Host, pool: Pool, python: str) -> Callable[[str], list[str]]:
    def command(name: str) -> list[str]:
        there = "exec " + shlex.join(worker_command(python, "-", name, pool))
        return [*SSH, *host.options, host.name, f"{pool.before.rstrip()}\n{there}" if pool.before else there]

    return command


def _places_here(pools: Mapping[str, Pool]) -> list[Place]:
    """Room for the most workers of each pool, each with GPUs of its own."""
    gpus = visible_gpus()
    if (needed := sum(pool.range[1] * pool.gpus for pool in pools.values())) > len(gpus):
        raise WorkflowError(f"the pools need {needed} GPUs, there are {len(gpus)} here; give them fewer workers")
    free = iter(gpus)
    places = []
    for name, pool in pools.items():
        for number in range(pool.range[1]):
            environment = {**os.environ, VISIBLE_GPUS: ",".join(itertools.islice(free, pool.gpus))}
            command = functools.partial(worker_command, sys.executable, "-", pool=pool)
            places.append(Place(name, str(number), command, environment))
    return places


@contextmanager
def scheduler(host: str, port: int) -> Iterator[tuple[Any, Invitation]]:
    """A Dask cluster without workers, on `host` under mutual TLS, and what it takes to join it.

    Raises `WorkflowError` if nothing can listen there.
    """
    from distributed import Scheduler, SpecCluster
    from distributed.security import Security

    security = Security.temporary()
    options = {"protocol": "tls://", "host": host, "port": port, "security": security, "dashboard": False}
    listening = {"cls": Scheduler, "options": options | {"dashboard_address": "127.0.0.1:0"}}
    with ExitStack() as stack:
        try:
            # A terminal sends Ctrl-C to all processes of a command; the scheduler has to see the run to its end.
            with deaf_to_interrupts():
                loop = stack.enter_context(event_loop())
                made = SpecCluster(workers={}, scheduler=listening, loop=loop, security=security, silence_logs=50)
                cluster = stack.enter_context(made)
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise WorkflowError(
                f"no scheduler can listen on {host}:{port} ({reason}); set cluster.host to an address of this machine "
                "that workers reach, and cluster.port to one that is free"
            ) from error
        cluster.loop.add_callback(cluster.scheduler.http_server.stop)
        keys = security.get_tls_config_for_role("scheduler")
        yield cluster, Invitation(cluster.scheduler_address, keys["cert"], keys["key"])


@contextmanager
def written(invitation: Invitation, folder: Path) -> Iterator[Path]:
    """The invitation as a file that only its owner can read, gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INVITATION_FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(invitation.text())
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
