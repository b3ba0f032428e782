"""A worker that was started elsewhere: it learns from the run where the scheduler is, joins, and leaves when told to.

What it has to know, keys included, comes in a file that only its owner can read, or through standard input; never as an
argument, which every user of a machine sees.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuroshed.engine import watchdog
from neuroshed.engine.pools import Pool
from neuroshed.engine.scratch import scratch_folder
from neuroshed.engine.settings import WORKER_ENVIRONMENT, dask_settings, environment
from neuroshed.errors import WorkflowError

ALONE_SECONDS = 60
"""That a worker looks for its scheduler before it ends."""
BEAT_SECONDS = 10
"""Between two signs of life."""
LOOPBACK = "127.0.0.1"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What it takes to join: the scheduler's address and, in PEM, one certificate for both sides and its key."""

    scheduler: str
    certificate: str
    key: str

    @classmethod
    def parse(cls, text: str, source: str) -> Invitation:
        """From JSON; raises `WorkflowError` if it is none."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise WorkflowError(
                f"{source} is no invitation of a run ({error}); a run writes it for its workers"
            ) from error

    @classmethod
    def configured(cls, scheduler: str) -> Invitation:
        """To a scheduler of whose cluster Dask's own configuration has the certificates; raises `WorkflowError` if it
        has none.
        """
        demand_certificates()
        return cls(scheduler, "", "")

    def at(self, scheduler: str) -> Invitation:
        """The same from where the scheduler has another address."""
        return replace(self, scheduler=scheduler)

    def text(self) -> str:
        """As JSON in one line."""
        return json.dumps({"scheduler": self.scheduler, "certificate": self.certificate, "key": self.key})

    @property
    def security(self) -> Any:
        """For Dask: whoever has the key belongs to the run, nobody else gets in."""
        from distributed.security import Security

        if not self.certificate:
            return Security()
        pair = {
            f"tls_{role}_{part}": getattr(self, name)
            for role in ("client", "scheduler", "worker")
            for part, name in (("cert", "certificate"), ("key", "key"))
        }
        return Security(require_encryption=True, tls_ca_file=self.certificate, **pair)


def demand_certificates() -> None:
    """Raise `WorkflowError` unless Dask is configured to talk under mutual TLS alone."""
    from distributed.security import Security

    security = Security()
    if not (security.require_encryption and security.tls_ca_file and security.tls_worker_cert):
        raise WorkflowError(
            "Dask unpickles what a peer sends, so anybody could run code here: make certificates with `neuroshed "
            "cluster certs FOLDER` and set DASK_CONFIG to FOLDER/dask.yaml"
        )


def worker_command(python: str, source: str, name: str, pool: Pool) -> list[str]:
    """The command of a worker; `source` is the file of its invitation, or - for standard input."""
    size = ["--cores", str(pool.cores), "--memory-gb", f"{pool.memory_gb:g}", "--gpus", str(pool.gpus)]
    return [python, "-m", "neuroshed", "worker", source, "--name", name, *size]


def join(source: str, name: str, cores: int, memory_gb: float, gpus: int, alive: Path | None = None) -> None:
    """Work until told to stop, the scheduler is gone, or standard input ends, if that is where the invitation is from.

    `source` is the file of an invitation, - for standard input, or the address of a scheduler for which Dask's own
    configuration has certificates. One process of one thread for each core, or one for each GPU with its share of the
    cores; all of them share the memory. A file `alive` is touched every few seconds, for whoever looks after this
    process. Raises `WorkflowError` if there is no invitation.
    """
    import dask

    invitation = _invitation(source)
    with scratch_folder() as scratch, dask.config.set(dask_settings(str(scratch))), environment(WORKER_ENVIRONMENT):
        asyncio.run(
            _work(invitation, name, _layout(cores, gpus), round(memory_gb * 1e9), scratch, source == "-", alive)
        )


def _invitation(source: str) -> Invitation:
    if "://" in source:
        return Invitation.configured(source)
    if source == "-":
        return Invitation.parse(sys.stdin.readline(), "standard input")
    try:
        return Invitation.parse(Path(source).read_text(), source)
    except OSError as error:
        raise WorkflowError(f"{source} cannot be read ({error.strerror}): its run is over, or elsewhere") from error


def _layout(cores: int, gpus: int) -> list[tuple[int, Mapping[str, str]]]:
    """Threads and environment of each process.

    >>> _layout(2, 0)
    [(1, {}), (1, {})]
    """
    if not gpus:
        return [(1, {})] * cores
    given = os.environ.get(VISIBLE_GPUS)
    names = given.split(",") if given else [str(number) for number in range(gpus)]
    shares = [cores // gpus + (number < cores % gpus) for number in range(gpus)]
    return [(share, {VISIBLE_GPUS: name}) for share, name in zip(shares, names, strict=False)]


async def _work(
    invitation: Invitation,
    name: str,
    layout: list[tuple[int, Mapping[str, str]]],
    memory_bytes: int,
    scratch: Path,
    until_input_ends: bool,
    alive: Path | None,
) -> None:
    from distributed import Nanny

    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    if until_input_ends:
        loop.add_reader(sys.stdin.fileno(), _look_for_end, told)
    nannies = [
        Nanny(
            invitation.scheduler,
            nthreads=threads,
            name=f"{name}/{number}",
            memory_limit=memory_bytes,
            resources={"GPU": 1} if VISIBLE_GPUS in extra else None,
            security=invitation.security,
            protocol="tls://",
            # Reached from nowhere else, it need not be heard elsewhere.
            host=LOOPBACK if f"://{LOOPBACK}:" in invitation.scheduler else None,
            dashboard_address=f"{LOOPBACK}:0",
            death_timeout=ALONE_SECONDS,
            local_directory=str(scratch),
            env={watchdog.WORKER: "1", **WORKER_ENVIRONMENT, **extra},
        )
        for number, (threads, extra) in enumerate(layout)
    ]
    ended = asyncio.ensure_future(_all_ended(nannies))
    waiting = asyncio.ensure_future(told.wait())
    beating = asyncio.ensure_future(_beat(alive)) if alive else None
    await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if beating:
        beating.cancel()
    for nanny in nannies:
        with suppress(Exception):
            await nanny.close(timeout=ALONE_SECONDS)


async def _beat(file: Path) -> None:
    while True:
        file.touch()
        await asyncio.sleep(BEAT_SECONDS)


async def _all_ended(nannies: list[Any]) -> bool:
    await asyncio.gather(*(_serve(nanny) for nanny in nannies), return_exceptions=True)
    return True


async def _serve(nanny: Any) -> None:
    await nanny
    await nanny.finished()


def _look_for_end(told: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1024):
        told.set()
