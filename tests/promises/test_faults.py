"""Promise 2 at its hardest: whatever dies, hangs or lies, a run ends in the bytes of one left alone, or says why."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import neuroshed
from neuroshed.errors import BlockError
from neuroshed.storage.volumes import open_volume

from .chaos import KINDS, Case, Cluster, Place, Process, contents, done_blocks, endure, sample_files
from .storm import Storm, check_same, check_tidy, total_blocks, undisturbed

pytestmark = pytest.mark.system

SEEDS = random.Random(20261123)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("input"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "chaos", SEEDS.getrandbits(32))
    yield place
    place.end()


@pytest.fixture(scope="module")
def alone(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return undisturbed(case, tmp_path_factory.mktemp("alone"))


def test_killed_again_and_again_a_run_ends_in_the_same_bytes(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    storm = Storm(place, ["worker"] * 18 + ["coordinator"] * 4, total_blocks(alone))
    files = sample_files(place.rng, alone, 1)
    # Two starts in which the coordinator dies in a write of its own.
    appends = {number: place.rng.randrange(2, 9) for number in place.rng.sample(range(4), 2)}

    def orders(number: int) -> dict[str, Any]:
        return {"die": files, **({"append": appends[number]} if number in appends else {})}

    codes = endure(place, output, case.settings(output, "local:2"), storm, orders)
    killed, inside = Counter(event["victim"] for event in place.events("victim")), place.events("inside")
    assert set(codes[:-1]) == {-9}, place.told()
    assert killed["worker"] >= 12
    assert killed["coordinator"] >= 4
    assert killed.total() + len(inside) >= 30
    assert sum(event["inside"] == "journal" for event in inside) >= 1
    assert {event["stage"] for event in inside} >= set(KINDS)
    check_same(place, output, alone)
    assert neuroshed.verify(output, blocks=1)["status"] == "equal"
    check_tidy(place, output)


def test_a_scheduler_killed_again_and_again_sinks_no_run(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    cluster = Cluster(place)
    victims = ["scheduler"] * 5 + ["worker"] * 2 + ["coordinator"]
    storm = Storm(place, victims, total_blocks(alone), cluster)
    settings = case.settings(output, f"{{kind: address, address: '{cluster.address}', patience_seconds: 40}}")
    codes = endure(place, output, settings, storm, lambda number: {})
    killed = Counter(event["victim"] for event in place.events("victim"))
    # Not one start more than the coordinator's own death costs: it outlives all schedulers.
    assert codes == [-9, 0], place.told()
    assert killed == Counter(victims)
    place.end()
    check_same(place, output, alone)
    # Of the scheduler and its workers, which neither start nor end with a run.
    shutil.rmtree(place.folder / "temporary" / "dask-scratch-space")
    check_tidy(place, output)


def test_a_store_that_fails_delays_and_reorders_costs_time_only(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"

    def orders(number: int) -> dict[str, Any]:
        # An error of its own journal ends a coordinator, so it has fewer of them with every start.
        return {"worker_rate": 0.3, "coordinator_rate": 0.2 / (number + 1) ** 2}

    codes = endure(place, output, case.settings(output, "local:2"), lambda *now: None, orders)
    faults = Counter(event["fault"] for event in place.events("fault"))
    assert set(faults) == {"before", "cut", "after", "delay"}, place.told()
    assert {event["stage"] for event in place.events("fault")} >= set(KINDS)
    assert set(codes[:-1]) <= {1, 2}, place.told()
    for process in place.processes:
        assert "Traceback" not in process.text(), process.text()
    check_same(place, output, alone)
    check_tidy(place, output)


def test_writes_that_lie_are_caught_when_they_are_verified(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    files = sample_files(place.rng, alone, 1)
    settings = case.settings(output, "in-process:2", "failures={attempts: 3, backoff_seconds: 0.01}")
    assert place.start("run", *settings, "--verify-writes", cut=files).wait() == 0, place.told()
    lies = place.events("fault")
    assert len(lies) == len(files), place.told()
    assert {event["stage"] for event in lies} == set(KINDS)
    check_same(place, output, alone)


def test_a_write_that_lies_is_an_error_where_it_is_read_and_never_a_wrong_result(
    case: Case, alone: Path, place: Place
) -> None:
    output = place.folder / "run"
    settings = case.settings(output, "in-process:2", "failures={attempts: 1}")
    files = {Path(name).parts[0].partition("-")[0]: name for name in sample_files(place.rng, alone, 1)}
    # The last stage is read by nobody but the user.
    segmentation = files.pop("segment")
    coordinator = place.start("run", *settings, cut=[*files.values()])
    assert coordinator.wait() == 1, place.told()
    failures = neuroshed.status(output)["failures"]
    assert failures, place.told()
    folders = [Path(name).parts[0] for name in files.values()]
    assert all(any(folder in failure["error"] for folder in folders) for failure in failures), failures
    whole = contents(alone)
    found = contents(output)
    lies = {name for name in files.values() if name in found and len(found[name]) < len(whole[name])}
    # What reads them was never written.
    assert lies
    assert {name for name, data in found.items() if data != whole.get(name)} == lies, place.told()
    # What the message says brings it back.
    for name in lies:
        shutil.rmtree(output / Path(name).parts[0])
    assert place.start("resume", str(output), cut=[segmentation]).wait() == 0, place.told()
    shard = output / segmentation
    assert shard.stat().st_size < len(whole[segmentation])
    assert {name for name, data in contents(output).items() if data != whole[name]} == {segmentation}
    path = next(folder for folder in shard.parents if folder.suffix == ".zarr")
    volume = open_volume(path)
    with pytest.raises(BlockError, match="damaged"):
        volume.read(volume.box)


def test_blocks_that_kill_or_hang_are_set_aside_and_the_rest_is_done(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    failures = "failures={worker_deaths: 2, block_seconds: 5, backoff_seconds: 0.1}"
    deadly, endless = ["fragments", [0, 0, 0]], ["fragments", [2, 2, 1]]
    coordinator = place.start("run", *case.settings(output, "local:2", failures), deadly=deadly, endless=endless)
    assert coordinator.wait() == 1, place.told()
    summary = neuroshed.status(output)
    found = {(failure["stage"], *failure["block"]): failure for failure in summary["failures"]}
    assert set(found) == {(kind, *index) for kind, index in (deadly, endless)}, place.told()
    died, hung = found["fragments", 0, 0, 0], found["fragments", 2, 2, 1]
    assert "worker process died" in died["error"], died
    assert "time limit of a block" in hung["error"], hung
    assert "fragments blocks [2, 2, 1]" in hung["error"], hung
    assert "in hang_for_ever" in hung["trace"], hung
    assert died["attempts"] == hung["attempts"] == 2
    rows = summary["stages"]
    assert rows["predict"]["done"] == rows["predict"]["blocks"]
    assert rows["fragments"]["done"] == rows["fragments"]["blocks"] - 2
    assert rows["agglomerate"]["done"] > 0
    assert place.start("resume", str(output)).wait() == 0, place.told()
    check_same(place, output, alone)


def test_workers_that_stop_or_all_die_cost_a_local_run_time_only(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    stopped: list[float] = []

    def disturb(coordinator: Process, done: int) -> None:
        workers = coordinator.workers()
        if not stopped and done > 10 and len(workers) == 2:
            workers[0].suspend()
            stopped.append(time.monotonic())
        elif len(stopped) == 1 and time.monotonic() > stopped[0] + 5:
            workers[0].resume()
            stopped.append(0)
        elif len(stopped) == 2 and done > 40 and len(workers) == 2:
            for worker in workers:
                place.kill("worker", worker)
            stopped.append(0)

    # The first worker of all is the one that was stopped, for its number stays the lowest.
    assert endure(place, output, case.settings(output, "local:2"), disturb, lambda number: {}) == [0], place.told()
    assert len(stopped) == 3, place.told()
    assert neuroshed.status(output)["failures"] == []
    check_same(place, output, alone)


def test_without_workers_a_run_waits_and_then_says_how_to_go_on(case: Case, alone: Path, place: Place) -> None:
    output = place.folder / "run"
    cluster = Cluster(place)
    settings = case.settings(output, f"{{kind: address, address: '{cluster.address}', patience_seconds: 4}}")

    def disturb(coordinator: Process, done: int) -> None:
        if cluster.wanted and done > 10:
            cluster.wanted = False
            for process in (cluster.nannies, *cluster.nannies.workers()):
                place.kill("worker", process)

    while len(cluster.nannies.workers()) < 2:
        time.sleep(0.1)
    time.sleep(3)
    coordinator = place.start("run", *settings)
    while coordinator.code is None:
        disturb(coordinator, done_blocks(output))
        time.sleep(0.05)
    assert coordinator.code == 1, place.told()
    last = coordinator.text().splitlines()[-1]
    assert "waited 4 s for workers in vain; start some" in last, last
    assert f"`neuroshed resume {output}` goes on" in last, last
    assert neuroshed.status(output)["failures"] == []
    cluster.wanted = True
    cluster.tend()
    time.sleep(4)
    assert place.start("resume", str(output)).wait() == 0, place.told()
    place.end()
    check_same(place, output, alone)


def test_a_run_told_to_stop_at_failures_begins_nothing_more(case: Case, place: Place) -> None:
    output = place.folder / "run"
    failures = "failures={worker_deaths: 2, backoff_seconds: 0, on_failure: stop}"
    coordinator = place.start("run", *case.settings(output, "local:2", failures), deadly=["predict", [0, 1, 0]])
    assert coordinator.wait() == 1, place.told()
    assert "predict at [0, 1, 0]" in coordinator.text().splitlines()[-1], coordinator.text()
    summary = neuroshed.status(output)
    assert summary["status"] == "failed"
    assert summary["stages"]["predict"]["done"] < summary["stages"]["predict"]["blocks"]
    assert len(summary["failures"]) == 1
    assert place.wait_for_silence() == []
