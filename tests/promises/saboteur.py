"""Faults inside the processes of a run. Tests put this file on their PYTHONPATH as `sitecustomize.py` (`chaos.Place`).

What is to happen stands in the JSON file that CHAOS_ORDERS names; without it nothing does. It patches the lowest layer
that writes and deletes: drafts of files (`storage.files.replacing`), shards (`put_in_place`), lines of the journal, the
deletion of files, and objects in buckets (obstore's `put` and uploads).
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import hashlib
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Orders = dict[str, Any]
"""`log`: where deaths and faults are noted. `die`: ends of paths, in the first write of which the process dies.
`before`, `after`: ends of names of objects, just before or just after the first put of which the process dies.
`cut`: ends of paths whose first write is cut in half and said to be whole. `drop`: ends of paths, right before whose
deletion the coordinator dies. `append`: the coordinator dies in its n-th write to the journal. `worker_rate`,
`coordinator_rate`: share of their writes that go wrong, how by `seed`. `deadly`, `endless`: [kind of stage, index] of a
block that kills its process, that never ends.
"""


def note(orders: Orders, **what: Any) -> None:
    """Add a line to the log, on disk before anything else happens."""
    file = os.open(orders["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, json.dumps({"pid": os.getpid(), **what}).encode() + b"\n")
    os.fsync(file)
    os.close(file)


def first(orders: Orders, path: Path, what: str) -> bool:
    """Whether a path is one of those listed, and nobody met it before."""
    if not any(str(path).endswith(end) for end in orders.get(what, ())):
        return False
    mark = Path(orders["log"]).with_suffix(f".{what}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}")
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def stage_of(path: Path) -> str:
    """Kind of the stage whose folder a path lies in; empty for a file of the run itself."""
    return next((part.partition("-")[0] for part in path.parts if re.fullmatch("[a-z]+-[0-9a-f]{12}", part)), "")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Chance:
    """Faults drawn by a hash of the seed, the path and how often this process wrote it: no run goes the same way twice,
    yet the seed decides how often what happens.
    """

    FAULTS = ("before", "cut", "after", "delay", "delay", "delay")

    def __init__(self, orders: Orders, rate: float) -> None:
        self._orders, self._rate = orders, rate
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def draw(self, path: Path) -> str:
        """What befalls this write: nothing, or one of `FAULTS`. Waits itself for a delay."""
        name = "/".join(path.parts[-3:])
        with self._lock:
            self._count[name] += 1
            key = f"{self._orders['seed']} {name} {self._count[name]} {os.getpid()}"
        drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        if drawn % 1000 >= 1000 * self._rate:
            return ""
        fault = self.FAULTS[drawn // 1000 % len(self.FAULTS)]
        note(self._orders, fault=fault, stage=stage_of(path), file=name)
        if fault == "delay":
            # Writes that do not wait for each other arrive in any order.
            time.sleep(drawn // 1_000_000 % 51 / 1000)
        return fault


def broken(path: Path) -> OSError:
    return OSError(errno.EIO, "Input/output error (made by the test)", str(path))


def spoil_files(orders: Orders, chance: Chance) -> None:
    """Drafts of files: tables of nodes, plans, stages, summaries."""
    from neuroshed.storage import files

    plain = files.replacing

    @contextlib.contextmanager
    def replacing(path: Path) -> Iterator[Any]:
        fault = chance.draw(path)
        if fault == "before":
            raise broken(path)
        with plain(path) as file:
            yield file
            file.flush()
            half = file.tell() // 2
            if first(orders, path, "die"):
                os.truncate(file.fileno(), half)
                note(orders, inside="file", stage=stage_of(path), file=path.name)
                die()
            elif first(orders, path, "cut"):
                os.truncate(file.fileno(), half)
                note(orders, fault="silent cut", stage=stage_of(path), file=path.name)
            elif fault == "cut":
                os.truncate(file.fileno(), half)
                raise broken(path)
        if fault == "after":
            raise broken(path)

    files.replacing = replacing


def spoil_shards(orders: Orders, chance: Chance) -> None:
    """Shards of volumes, which are whole drafts of another's making."""
    from neuroshed.storage import files

    plain = files.put_in_place

    def put_in_place(draft: Path, path: Path) -> None:
        if "c" not in path.parts[-5:]:
            # A file that was spoilt while it was written.
            plain(draft, path)
            return
        fault = chance.draw(path)
        half = draft.stat().st_size // 2
        if fault == "before":
            raise broken(path)
        if first(orders, path, "die"):
            os.truncate(draft, half)
            note(orders, inside="shard", stage=stage_of(path), file=path.name)
            die()
        if first(orders, path, "cut"):
            os.truncate(draft, half)
            note(orders, fault="silent cut", stage=stage_of(path), file=path.name)
        elif fault == "cut":
            os.truncate(draft, half)
            raise broken(path)
        plain(draft, path)
        if fault == "after":
            raise broken(path)

    files.put_in_place = put_in_place


def spoil_objects(orders: Orders) -> None:
    """Objects in buckets: tables of nodes, shards, and segments of the journal, each of which is one put."""
    import obstore

    from neuroshed.storage import buckets

    plain, plain_async, plain_finish = obstore.put, obstore.put_async, buckets.ObjectWriter.finish

    @contextlib.contextmanager
    def deadly(path: Path) -> Iterator[None]:
        if first(orders, path, "before"):
            end(path, "before")
        yield
        if first(orders, path, "after"):
            end(path, "after")

    def end(path: Path, when: str) -> None:
        inside = "journal" if path.parent.name == "journal" else "object"
        note(orders, inside=inside, when=when, stage=stage_of(path), file=path.name)
        die()

    def put(store: Any, key: str, *given: Any, **more: Any) -> Any:
        with deadly(Path(store.prefix or "", key)):
            return plain(store, key, *given, **more)

    async def put_async(store: Any, key: str, *given: Any, **more: Any) -> Any:
        with deadly(Path(store.prefix or "", key)):
            return await plain_async(store, key, *given, **more)

    def finish(writer: Any) -> None:
        with deadly(Path(writer._place)):
            plain_finish(writer)

    obstore.put, obstore.put_async, buckets.ObjectWriter.finish = put, put_async, finish


def spoil_journal(orders: Orders, chance: Chance) -> None:
    """Lines of the journal, which its one writer adds."""
    from neuroshed.storage import journal

    plain, calls = journal._append, itertools.count(1)
    place = Path("journal", "segment")

    def append(file: int, lines: bytes) -> None:
        half = lines[: len(lines) // 2]
        if next(calls) == orders.get("append"):
            os.write(file, half)
            note(orders, inside="journal", stage="", file="")
            die()
        fault = chance.draw(place)
        if fault == "before":
            raise broken(place)
        if fault == "cut":
            os.write(file, half)
            raise broken(place)
        plain(file, lines)
        if fault == "after":
            raise broken(place)

    journal._append = append


def spoil_deletions(orders: Orders) -> None:
    """Files of blocks that nothing reads any more, which the coordinator deletes."""
    from neuroshed.storage.locations import _OnDisk

    plain = _OnDisk.delete

    def delete(self: Any) -> None:
        path = self.local
        if first(orders, path, "drop"):
            note(orders, inside="drop", stage=stage_of(path), file=str(path))
            die()
        plain(self)

    _OnDisk.delete = delete  # type: ignore[method-assign]


def spoil_blocks(orders: Orders) -> None:
    """Blocks that never end well, whatever stage they are of."""
    from neuroshed.engine import worker

    plain: Callable[..., Any] = worker._load

    def spoiled(stage: Any) -> Any:
        run = type(stage).run

        def deadly(step: str, index: Any) -> Any:
            block = [stage.kind, list(index)]
            if block == orders.get("deadly"):
                die()
            if block == orders.get("endless"):
                hang_for_ever()
            return run(stage, step, index)

        # Stages are frozen.
        object.__setattr__(stage, "run", deadly)
        return stage

    def load(*which: Any) -> Any:
        stage, grid = plain(*which)
        return spoiled(stage), grid

    worker._load = load


def hang_for_ever() -> None:
    """A name to be found in a traceback."""
    time.sleep(100_000)


def main(file: str) -> None:
    words = sys.orig_argv
    is_worker = any("spawn_main" in word for word in words)
    is_coordinator = any(Path(word).name == "neuroshed" for word in words)
    if not is_worker and not is_coordinator:
        return
    # What a process that is stuck is at.
    faulthandler.register(signal.SIGUSR1)
    orders: Orders = json.loads(Path(file).read_text())
    chance = Chance(orders, orders.get("worker_rate" if is_worker else "coordinator_rate", 0.0))
    # First, for others take the name from it.
    spoil_files(orders, chance)
    spoil_shards(orders, chance)
    if "before" in orders or "after" in orders:
        spoil_objects(orders)
    if is_coordinator:
        spoil_journal(orders, chance)
        spoil_deletions(orders)
    if "deadly" in orders or "endless" in orders:
        spoil_blocks(orders)


if file := os.environ.get("CHAOS_ORDERS"):
    main(file)
