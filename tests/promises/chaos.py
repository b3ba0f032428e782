"""Real runs in processes of their own, on disk or in a bucket: what those work with who kill them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import obstore
import psutil
from distributed.security import Security

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.model.lattice import Lattice
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Architecture, new_network
from neuroshed.storage.buckets import client
from neuroshed.storage.journal import read_events
from neuroshed.storage.ledger import positions_of
from neuroshed.storage.locations import Location
from neuroshed.storage.models import ModelCard, save_model
from neuroshed.storage.object_stores import Bucket

BOX, BLOCK = [[0, 0, 0], [70, 100, 35]], [24, 36, 18]
KINDS = ("predict", "fragments", "agglomerate", "segment")
POLL_SECONDS, BUCKET_POLL_SECONDS = 0.02, 0.3
LONGEST_SECONDS = 240.0
"""Of all starts of a run together; then it counts as stuck."""


def import_image(folder: Path) -> Path:
    """The electron micrograph that ships with neuroshed, as a volume."""
    with resources.as_file(resources.files("neuroshed") / "assets" / "demo" / "fib25.h5") as source:
        return neuroshed.import_volume(
            source, folder / "image.zarr", (10, 10, 10), dataset="raw", cluster=ClusterConfig(kind="in-process")
        )


def write_model(folder: Path) -> Path:
    """An untrained network whose affinities of that image fall into thousands of pieces."""
    architecture = Architecture(features=(4, 8), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),), groups=4)
    card = ModelCard(
        architecture=architecture,
        offsets=NEAREST,
        lattice=Lattice((16, 16, 16), (2, 2, 2)),
        normalisation=(0.0, 255.0),
        voxel_size=(10.0, 10.0, 10.0),
    )
    weights = new_network(architecture, 5).state_dict()
    weights["head.weight"] *= 4
    weights["head.bias"] -= 4
    return save_model(folder / "model" / "tiny", card, weights)


def contents(run_folder: Location | Path) -> dict[str, bytes]:
    """All bytes that the stages wrote, by path, but for the files that name the run folder. Drafts are nobody's."""
    root = Location.of(run_folder)
    files = {str(file).removeprefix(f"{root}/"): file for file, _ in root.files() if file.name != "stage.json"}
    written = files.keys() - drafts(root)
    return {name: files[name].read_bytes() for name in written if "-" in name.partition("/")[0]}


def drafts(folder: Location | Path) -> list[str]:
    """Files and folders that were never put in place. Locks are no drafts."""
    names = [name for name in below(Location.of(folder)) if not name.endswith(".lock")]
    return sorted(name for name in names if name.endswith(".partial") or name.rpartition("/")[2].startswith("."))


def below(folder: Location) -> list[str]:
    """Names of all that lies below a folder, however they begin; on disk those of folders too."""
    if folder.is_local:
        return [str(path.relative_to(folder.local)) for path in folder.local.rglob("*")]
    scheme, _, bucket, *rest = str(folder).split("/", 3)
    key = "".join(rest)
    pages = obstore.list(client(Bucket(scheme.removesuffix(":"), bucket)), key or None)
    return [entry["path"].removeprefix(f"{key}/") for page in pages for entry in page]


def done_blocks(run_folder: Location | Path) -> int:
    """How often the journal says that a block was done."""
    return sum(positions_of(event["at"]).size for event in read_events(run_folder) if event["e"] == "done")


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def session_members(session: int) -> list[psutil.Process]:
    """Living processes of a session, children of children of those that are gone included."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and is_alive(process):
                found.append(process)
    return found


def is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "spawn_main" in " ".join(process.cmdline())
    return False


class Process:
    """A command in a session of its own, in a process that tests may kill."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def workers(self) -> list[psutil.Process]:
        """Living worker processes of its session."""
        return sorted(filter(is_worker, session_members(self.pid)), key=lambda process: process.pid)

    def send(self, number: signal.Signals) -> None:
        """A signal to the process itself, not to its children."""
        self._process.send_signal(number)

    def wait(self, seconds: float = LONGEST_SECONDS) -> int:
        return self._process.wait(seconds)

    def text(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")


class Place:
    """A folder in which all happens, the environment of the processes, and the log of what befell them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.rng = folder, seed, random.Random(seed)
        self.log = folder / "chaos.log"
        self.processes: list[Process] = []
        self.extra: dict[str, str] = {}
        for name in ("temporary", "home", "inject", "output"):
            (folder / name).mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("saboteur.py"), folder / "inject" / "sitecustomize.py")

    def environment(self, **orders: Any) -> dict[str, str]:
        """For a process that `saboteur` is to give these orders."""
        file = self.folder / f"orders-{len(self.processes)}.json"
        file.write_text(json.dumps({"log": str(self.log), "seed": self.seed, **orders}))
        temporary = str(self.folder / "temporary")
        own = {
            "TMPDIR": temporary,
            "DASK_TEMPORARY_DIRECTORY": temporary,
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home"),
            "PYTHONPATH": os.pathsep.join([str(self.folder / "inject"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "CHAOS_ORDERS": str(file),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "1000",
        }
        return os.environ | own | self.extra

    def start(self, *words: str, **orders: Any) -> Process:
        """The command `neuroshed` with these words."""
        return self.begin([str(Path(sys.executable).with_name("neuroshed")), *words], **orders)

    def begin(self, command: list[str], **orders: Any) -> Process:
        output = self.folder / "output" / f"{len(self.processes)}.txt"
        process = Process(command, self.environment(**orders), output)
        self.processes.append(process)
        return process

    def kill(self, victim: str, process: psutil.Process | Process) -> bool:
        """SIGKILL; whether it was in time, in which case it is noted in the log."""
        if isinstance(process, Process):
            if process.code is not None:
                return False
            process.send(signal.SIGKILL)
        else:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                return False
        with self.log.open("a") as file:
            file.write(json.dumps({"victim": victim, "pid": process.pid}) + "\n")
        return True

    def events(self, key: str) -> list[dict[str, Any]]:
        """Lines of the log that have a key: `victim` (killed from outside), `inside` (a write), `fault`."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if key in event]

    def alive(self) -> list[psutil.Process]:
        """What lives of all sessions begun here."""
        return [member for process in self.processes for member in session_members(process.pid)]

    def wait_for_silence(self, seconds: float = 30.0) -> list[str]:
        """Wait until nothing lives any more; returns the command lines of what still does."""
        end = time.monotonic() + seconds
        while (alive := self.alive()) and time.monotonic() < end:
            time.sleep(0.1)
        found = []
        for process in alive:
            with suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return found

    def end(self) -> None:
        """Kill all that was begun here, by session."""
        for process in self.alive():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes:
            process.wait()

    def told(self) -> str:
        """For the message of an assertion: the seed and the last words of each process."""
        texts = (f"{process.pid}: {' | '.join(process.text().splitlines()[-3:])}" for process in self.processes)
        return f"seed {self.seed}\n" + "\n".join(texts)


class Case:
    """One workflow on one volume, as often as wanted."""

    def __init__(self, folder: Path, bucket: Location | None = None) -> None:
        """With a bucket, the image lies there."""
        self.image, self.model = Location.of(import_image(folder)), write_model(folder)
        if bucket is not None:
            self.image = copied(self.image, bucket / self.image.name)

    def settings(self, output: Location | Path, cluster: str, *extra: str) -> list[str]:
        """Words for `neuroshed run`; failures are many, and none of them is a block's own."""
        settings = [
            f"image={self.image}",
            f"model={self.model}",
            f"output={output}",
            f"block_shape={BLOCK}",
            f"box={BOX}",
            f"cluster={cluster}",
            "failures={worker_deaths: 100, attempts: 100, backoff_seconds: 0.01}",
            *extra,
        ]
        return ["segment", *(word for text in settings for word in ("--set", text))]


def copied(source: Location, target: Location) -> Location:
    """A folder with all its files, copied into a bucket."""
    for file, _ in source.files():
        (target / str(file).removeprefix(f"{source}/")).put(file.read_bytes())
    return target


def endure(
    place: Place,
    output: Location | Path,
    settings: list[str],
    disturb: Callable[[Process, int], None],
    orders: Callable[[int], dict[str, Any]],
) -> list[int]:
    """Start a run, and again with `resume` until it says that all is done; returns the exit codes.

    `disturb` is called again and again with the coordinator and the number of done blocks; `orders` gives those of
    the n-th start.
    """
    codes: list[int] = []
    # Where each look is many requests, there are fewer.
    poll = POLL_SECONDS if Location.of(output).is_local else BUCKET_POLL_SECONDS
    end = time.monotonic() + LONGEST_SECONDS
    while not codes or codes[-1]:
        begun = codes and (output / "workflow.yaml").exists() and (output / "plan.json").exists()
        command = ["resume", str(output)] if begun else ["run", *settings]
        coordinator = place.start(*command, **orders(len(codes)))
        while coordinator.code is None:
            if time.monotonic() > end:
                coordinator.send(signal.SIGUSR1)
                time.sleep(1)
                raise AssertionError(f"stuck: {coordinator.text()}\n{place.told()}")
            disturb(coordinator, done_blocks(output))
            time.sleep(poll)
        codes.append(coordinator.code)
    return codes


class Cluster:
    """A Dask scheduler and workers on loopback under TLS, as processes that can be killed and are started again."""

    def __init__(self, place: Place, workers: int = 2) -> None:
        self._place, self._workers = place, workers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"tls://127.0.0.1:{self._port}"
        place.extra = _certificates(place.folder)
        self.scheduler = self._start_scheduler()
        self.nannies = self._start_workers()
        self.wanted = True
        """Whether workers that ended are started again."""

    def tend(self) -> None:
        """Start what ended, as systemd or Kubernetes would."""
        if self.scheduler.code is not None:
            self.scheduler = self._start_scheduler()
        if self.nannies.code is not None and self.wanted:
            self.nannies = self._start_workers()

    def _start_scheduler(self) -> Process:
        place = ["--host", "127.0.0.1", "--port", str(self._port), "--protocol", "tls", "--no-dashboard"]
        return self._dask("scheduler", *place, "--dashboard-address", "127.0.0.1:0")

    def _start_workers(self) -> Process:
        many = ["--nworkers", str(self._workers), "--nthreads", "1", "--no-dashboard"]
        return self._dask("worker", self.address, *many, "--dashboard-address", "127.0.0.1:0")

    def _dask(self, *words: str) -> Process:
        return self._place.begin([sys.executable, "-m", "dask", *words])


def _certificates(folder: Path) -> dict[str, str]:
    """Write a certificate with its key; returns Dask's settings, as environment variables."""
    made = Security.temporary().get_tls_config_for_role("client")
    found = {}
    for name, text in (("ca-file", made["ca_file"]), ("cert", made["cert"]), ("key", made["key"])):
        path = folder / f"{name}.pem"
        path.touch(mode=0o600)
        path.write_text(text)
        found[name] = str(path)
    prefix = "DASK_DISTRIBUTED__COMM__TLS__"
    roles = {
        f"{prefix}{role}__{name.upper()}": found[name]
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for name in ("cert", "key")
    }
    return {f"{prefix}CA_FILE": found["ca-file"], **roles, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}


def sample_files(rng: random.Random, run_folder: Path, each: int) -> list[str]:
    """Ends of the paths of some files that each stage wrote, of tables and shards both where it wrote both."""
    found: list[str] = []
    for folder in sorted(run_folder.glob("*-*")):
        names = sorted(str(file.relative_to(run_folder)) for file in folder.rglob("*") if file.is_file())
        tables = [name for name in names if name.endswith(".parquet")]
        shards = [name for name in names if "/c/" in name]
        for kind in (tables, shards):
            found += rng.sample(kind, min(each, len(kind)))
    return found
