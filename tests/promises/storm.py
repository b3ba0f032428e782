"""Deaths at seeded instants of a run, and what must be true once it has come through: for tests of faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import neuroshed
from neuroshed.storage.locations import Location

from .chaos import Case, Cluster, Place, Process, contents, drafts, endure


class Storm:
    """Kills somebody each time that so many blocks are done."""

    def __init__(self, place: Place, victims: list[str], total: int, cluster: Cluster | None = None) -> None:
        """Of `total` blocks, the last tenth is left in peace."""
        self._place, self._cluster = place, cluster
        self._victims = place.rng.sample(victims, len(victims))
        self._targets = sorted(place.rng.randrange(total * 9 // 10) for _ in victims)

    def __call__(self, coordinator: Process, done: int) -> None:
        if self._cluster is not None:
            self._cluster.tend()
        if self._targets and done >= self._targets[0] and self._kill(self._victims[0], coordinator):
            del self._targets[0], self._victims[0]

    def _kill(self, victim: str, coordinator: Process) -> bool:
        """Whether there was one."""
        if victim == "coordinator":
            killed = self._place.kill(victim, coordinator)
            coordinator.wait()
            return killed
        if victim == "scheduler":
            assert self._cluster is not None
            return self._place.kill(victim, self._cluster.scheduler)
        workers = (self._cluster.nannies if self._cluster else coordinator).workers()
        return bool(workers) and self._place.kill(victim, self._place.rng.choice(workers))


def undisturbed(
    case: Case, folder: Path, *extra: str, watch: Callable[[Process, int], None] = lambda *now: None
) -> Path:
    """The run of a case that nobody disturbs, in a folder."""
    place = Place(folder / "chaos", 0)
    output = place.folder / "run"
    try:
        assert endure(place, output, case.settings(output, "local:2", *extra), watch, lambda number: {}) == [0]
        assert place.wait_for_silence() == []
    finally:
        place.end()
    assert drafts(output) == drafts(place.folder / "temporary") == []
    return output


def total_blocks(run_folder: Path) -> int:
    return sum(row["blocks"] for row in neuroshed.status(run_folder)["stages"].values())


def check_same(place: Place, output: Location | Path, alone: Path) -> None:
    """Same bytes, nothing left over, nobody left alive."""
    assert place.wait_for_silence() == [], place.told()
    found, expected = contents(output), contents(alone)
    assert sorted(found) == sorted(expected), place.told()
    assert [name for name in expected if found[name] != expected[name]] == [], place.told()
    assert neuroshed.status(output)["status"] == "done"


def check_tidy(place: Place, output: Location | Path) -> None:
    """Nothing that killed processes began is left: neither drafts in the run folder, nor temporary folders."""
    assert drafts(output) == [], place.told()
    assert sorted(path.name for path in (place.folder / "temporary").iterdir()) == [], place.told()
