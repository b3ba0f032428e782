"""`neuroshed doctor`: what a cluster's workers lack, before a run finds out; each with what to do about it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from neuroshed.engine.clusters import Connection, connect
from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.pools import Pool
from neuroshed.engine.versions import differences, versions
from neuroshed.errors import WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.workflow.examine import ASKED, Findings, examine

Report = dict[str, Any]
SECONDS = 300.0
"""For a worker of each pool to come."""
POLL_SECONDS = 0.5
CLOCK_SECONDS = 30.0
"""That clocks may differ: certificates and signed requests of stores are refused beyond some minutes."""
CONNECTS = "connects"
SCRATCH_BYTES = 10 * 10**9
OPEN_FILES = 4096
FREE_SHARE = 0.9
"""Of a GPU, that must be free."""
GPU_REMEDY = "end what else uses it, or lower gpu_memory_gb of the pool"
SHARED = "mount the same file system under the same path there, or use a bucket and give its credentials"


@dataclass(frozen=True)
class Line:
    """One check of one worker."""

    pool: str
    host: str
    check: str
    ok: bool
    told: str
    remedy: str = ""


def doctor(
    cluster: ClusterConfig,
    folder: Location,
    *,
    seconds: float = SECONDS,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Start a worker of each pool, or take those that are there, one a host, and examine them.

    `folder`, where runs are to be written, is read and written from everywhere; what is written is removed, but for the
    output of workers if one did not come. Returns `lines` (pool, host, check, ok, told, remedy) and `faults`, how many
    of them are not ok. Raises `WorkflowError` if the cluster cannot be reached at all, or the folder not be written
    here.
    """
    place = folder / f"doctor-{uuid.uuid4().hex[:12]}"
    lines: list[Line] = []
    word = uuid.uuid4().hex
    try:
        place.make_folder()
        (place / ASKED).put(word.encode())
    except OSError as error:
        raise WorkflowError(f"folder {folder} cannot be written here ({error.strerror}); choose another") from error
    try:
        with connect(cluster, place) as connection:
            for worker in _workers(connection, seconds, tell):
                lines += _examined(worker, place, word)
    finally:
        if all(line.ok for line in lines if line.check == CONNECTS):
            place.delete_tree()
    return {"lines": [asdict(line) for line in lines], "faults": sum(not line.ok for line in lines)}


@dataclass(frozen=True)
class _Worker:
    """A worker to be examined, or a pool of which none came."""

    connection: Connection
    pool: str
    address: str
    host: str


def _workers(connection: Connection, seconds: float, tell: Callable[[str], None]) -> Iterator[_Worker]:
    fleet = connection.fleet
    if fleet is None:
        hosts = {info["host"]: address for address, info in connection.workers().items()}
        yield from (_Worker(connection, "", address, host) for host, address in hosts.items())
        return
    wanted = {name for name, pool in connection.pools.items() if pool.range[1]}
    for pool in sorted(wanted):
        fleet.start(pool, 1)
    end = time.monotonic() + seconds
    while wanted and time.monotonic() < end:
        tell(f"waiting for a worker of {', '.join(sorted(wanted))}; their output is in {fleet.provider.logs}")
        for address, info in connection.workers().items():
            pool = connection.described(address, info).pool
            if pool in wanted:
                wanted.remove(pool)
                yield _Worker(connection, pool, address, info["host"])
        fleet.look()
        time.sleep(POLL_SECONDS)
    yield from (_Worker(connection, pool, "", "") for pool in sorted(wanted))


def _examined(worker: _Worker, place: Location, word: str) -> list[Line]:
    if not worker.address:
        logs = worker.connection.fleet.provider.logs if worker.connection.fleet else ""
        told = f"no worker came; what it printed is in {logs}"
        remedy = "read that; does its host reach this one (cluster.host, cluster.port, firewalls)?"
        return [Line(worker.pool, "", CONNECTS, ok=False, told=told, remedy=remedy)]
    name = uuid.uuid4().hex
    begin = time.time()
    try:
        answer = worker.connection.client.run(examine, str(place), word, name, workers=[worker.address])
    except Exception as error:
        # One that cannot import us cannot even read the question; whatever it says is told.
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = "install neuroshed there, in the Python that its workers are started with"
        return [Line(worker.pool, worker.host, "imports neuroshed", ok=False, told=told, remedy=remedy)]
    end = time.time()
    found: Findings = answer[worker.address]
    lines = [Line(worker.pool, found.host, CONNECTS, ok=True, told=f"{worker.address}, {end - begin:.1f} s")]

    def line(check: str, fault: str, told: str, remedy: str) -> None:
        lines.append(Line(worker.pool, found.host, check, not fault, fault or told, remedy if fault else ""))

    pool = worker.connection.pools.get(worker.pool)
    line("versions", *_versions(found))
    line("reads", f"cannot read {place} ({found.read})" if found.read else "", "what was written here", SHARED)
    line("writes", _written(found, place / name, word), "what is read here", SHARED)
    line("memory", *_memory(found, pool))
    if pool is not None and pool.gpus:
        gpus = f"{', '.join(found.gpus)}; {found.gpu_bytes / 1e9:.1f} GB free"
        line("GPU", "" if found.gpus else "torch finds none", gpus, "install torch with CUDA there, and its driver")
        if found.gpus and pool.gpu_memory_gb:
            short = found.gpu_bytes < FREE_SHARE * pool.gpu_memory_gb * 1e9
            line("GPU memory", f"{gpus}, the pool says {pool.gpu_memory_gb:g}" if short else "", gpus, GPU_REMEDY)
    low = found.scratch_bytes < SCRATCH_BYTES
    free = f"{found.scratch_bytes / 1e9:.1f} GB free in {found.scratch}"
    line("disk", free if low else "", free, "set TMPDIR to a larger local disk")
    off = max(begin - found.time, found.time - end, 0.0)
    line("clock", f"{off:.0f} s off" if off > CLOCK_SECONDS else "", f"within {off:.0f} s", "set it by NTP")
    few = found.open_files < OPEN_FILES
    line(
        "open files", f"{found.open_files}" if few else "", f"{found.open_files}", f"ulimit -n {OPEN_FILES} in `before`"
    )
    return lines


def _versions(found: Findings) -> tuple[str, str, str]:
    here = versions()
    told = ", ".join(f"{name} {version}" for name, version in here.items())
    return (
        differences(found.versions, here),
        told,
        "install the same there: other versions may give other affinities, or not connect",
    )


def _written(found: Findings, file: Location, word: str) -> str:
    if found.wrote:
        return f"cannot write {file.parent} ({found.wrote})"
    try:
        same = file.read_bytes() == word.encode()
    except OSError as error:
        return f"what it wrote is not to be seen here ({error.strerror})"
    return "" if same else "what it wrote is read otherwise here"


def _memory(found: Findings, pool: Pool | None) -> tuple[str, str, str]:
    told = f"{found.memory_bytes / 1e9:.1f} GB"
    if pool is None or found.memory_bytes >= 0.95 * pool.memory_bytes:
        return "", told, ""
    return f"{told}, the pool says {pool.memory_gb:g} GB", "", "lower memory_gb of the pool"
