"""Promise 2 where intermediates are not kept: nothing of them is missed, nothing is left, whoever dies and when."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import neuroshed
from neuroshed.errors import WorkflowError
from neuroshed.storage.journal import read_events, read_ledger
from neuroshed.storage.ledger import positions_of
from neuroshed.storage.locations import Location
from neuroshed.workflow.run import planned_stages

from .chaos import Case, Place, Process, contents, done_blocks, endure, sample_files
from .storm import Storm, check_same, check_tidy, total_blocks, undisturbed

pytestmark = pytest.mark.system

SEEDS = random.Random(20261124)
VOLUME = ("block_shape=[24, 16, 18]", "box=[[0, 0, 0], [48, 96, 35]]")
"""Long, so that few of its affinities are wanted at a time."""
SPARSE = ("thresholds=[0.5]", "keep=[segmentation]")
CHANGED = ("thresholds=[0.3]", "keep=[segmentation, fragments]")
WHOLE = ("thresholds=[0.3, 0.5]", "keep=[segmentation, fragments, merges, affinities]")
DROPPED_LAST = re.compile("(predict|fragments)-[0-9a-f]{12}/.*/c/")
MOST_SHARE = 0.85
"""Of the bytes that a run which keeps everything takes, at the peak of one that does not."""


@dataclass(frozen=True)
class Alone:
    """A run that nothing disturbed, what `neuroshed plan` said of it, and the most bytes that it ever had on disk."""

    folder: Path
    plan: dict[str, Any]
    peak_bytes: int


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("input"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "chaos", SEEDS.getrandbits(32))
    yield place
    place.end()


@pytest.fixture(scope="module")
def sparse(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """It keeps the segmentation at 0.5 and nothing else."""
    return run_alone(case, tmp_path_factory.mktemp("sparse"), *SPARSE)


@pytest.fixture(scope="module")
def whole(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """It keeps everything, and has the segmentations of all others."""
    return run_alone(case, tmp_path_factory.mktemp("whole"), *WHOLE)


def run_alone(case: Case, folder: Path, *extra: str) -> Alone:
    output = folder / "chaos" / "run"
    plan = neuroshed.plan("segment", case.settings(output, "local:2", *VOLUME, *extra)[2::2])
    samples: list[int] = []
    assert output == undisturbed(case, folder, *VOLUME, *extra, watch=lambda *now: samples.append(bytes_of(output)))
    return Alone(output, plan, max(*samples, bytes_of(output)))


def bytes_of(folder: Path, without: frozenset[str] = frozenset()) -> int:
    """Of all files that are there, but for those in the folders that are named; of files that go meanwhile nothing."""
    found = (place for place in Location.of(folder).files())
    skipped = [Location.of(folder) / name for name in without]
    return sum(size for file, size in found if not any(file.is_relative_to(other) for other in skipped))


def computed(run_folder: Path) -> Counter[str]:
    """How many blocks of each stage the journal says were done, each as often as it was, by the stage's folder."""
    stages, found = {}, Counter[str]()
    for event in read_events(run_folder):
        if event["e"] == "part":
            stages[event["id"]] = event["stage"]
        elif event["e"] == "done":
            found[stages[event["id"]][:12]] += positions_of(event["at"]).size
    return found


def planned_blocks(run_folder: Path) -> Counter[str]:
    """Blocks of each stage of the newest plan, named as in `computed`."""
    stages = planned_stages(Location.of(run_folder))
    return Counter({stage.fingerprint[:12]: sum(len(step.grid) for step in stage.steps) for stage in stages})


def segmentations(run_folder: Path) -> dict[str, bytes]:
    """What the stages wrote that paint."""
    return {name: data for name, data in contents(run_folder).items() if name.startswith("segment-")}


def dropped_files(run_folder: Path) -> set[str]:
    """Files of blocks of which the journal says that they are dropped, whether they are there or not."""
    ledger = read_ledger(run_folder)
    return {
        str(file)
        for stage in planned_stages(Location.of(run_folder))
        for step in stage.steps
        for position in ledger.dropped(stage.fingerprint, step.name, step.grid).nonzero()[0].tolist()
        for file in stage.outputs(step.name, step.grid.index(position))
    }


def test_killed_again_and_again_also_while_it_drops_a_run_ends_as_one_left_alone(
    case: Case, sparse: Alone, whole: Alone, place: Place
) -> None:
    output = place.folder / "run"
    settings = case.settings(output, "local:2", *VOLUME, *SPARSE)
    storm = Storm(place, ["worker"] * 10 + ["coordinator"] * 3, total_blocks(sparse.folder))
    # Of a block of fragments the table goes first, then the shard.
    files = [name for name in sample_files(place.rng, whole.folder, 1) if DROPPED_LAST.match(name)]
    interrupted: dict[str, Path] = {}

    def orders(number: int) -> dict[str, Any]:
        for event in place.events("inside"):
            file = Path(event["file"])
            if event["stage"] not in interrupted:
                assert file.exists()
                assert str(file) in dropped_files(output)
                interrupted[event["stage"]] = file
        return {"drop": files}

    codes = endure(place, output, settings, storm, orders)
    killed = Counter(event["victim"] for event in place.events("victim"))
    assert set(codes[:-1]) == {-9}, place.told()
    assert killed["worker"] >= 10
    assert killed["coordinator"] >= 3
    assert set(interrupted) == {"predict", "fragments"}
    check_same(place, output, sparse.folder)
    assert segmentations(output).items() <= segmentations(whole.folder).items()
    # What is dropped was read by all, so that no death makes it come again.
    assert computed(output) == computed(sparse.folder) == planned_blocks(output)
    check_tidy(place, output)
    check_finished(output)


def check_finished(output: Path) -> None:
    """All that can be asked says that everything is done, and changes nothing."""
    before, done = contents(output), done_blocks(output)
    found = neuroshed.status(output)
    assert (found["status"], found["state"]) == ("done", "done")
    again = neuroshed.resume(output)
    assert again["restored_blocks"] == sum(row["done"] for row in again["stages"].values()) == done
    with pytest.raises(WorkflowError, match=r"cannot be verified: what predict, fragments, agglomerate, segment 0\.5 "):
        neuroshed.verify(output)
    assert contents(output) == before
    assert done_blocks(output) == done


def test_a_changed_threshold_computes_what_it_needs_of_what_was_dropped(
    case: Case, sparse: Alone, whole: Alone, place: Place
) -> None:
    output = Path(shutil.copytree(sparse.folder, place.folder / "run"))
    before, done = contents(output), computed(output)
    settings = case.settings(output, "local:2", *VOLUME, *CHANGED)
    needed = sum(row["blocks"] for row in neuroshed.plan("segment", settings[2::2])["stages"])
    total = done.total() + needed

    def kill(coordinator: Process, blocks: int) -> None:
        if not place.events("victim") and blocks >= total - needed // 2:
            place.kill("coordinator", coordinator)

    assert endure(place, output, settings, kill, lambda number: {}) == [-9, 0], place.told()
    assert computed(output) - done == planned_blocks(output)
    assert neuroshed.status(output)["status"] == "done"
    found, expected = contents(output), segmentations(whole.folder)
    assert {name: found[name] for name in expected} == expected
    # Beside the new segmentations nothing has come, and the old one has stayed.
    assert {name: data for name, data in found.items() if name in before or name not in expected} == before
    assert place.wait_for_silence() == []
    check_tidy(place, output)


def test_the_disk_never_holds_more_than_was_planned_and_less_than_if_all_were_kept(sparse: Alone, whole: Alone) -> None:
    assert sparse.peak_bytes <= sparse.plan["peak_disk_bytes"] < whole.plan["peak_disk_bytes"]
    others = frozenset(path.name for path in whole.folder.glob("segment-*") if not (sparse.folder / path.name).exists())
    assert len(others) == 2
    kept = bytes_of(whole.folder, others)
    assert sparse.peak_bytes <= MOST_SHARE * kept, (sparse.peak_bytes, kept)
    # At the end the segmentation and its tables are nearly all.
    final = bytes_of(sparse.folder)
    assert final <= 0.5 * sparse.peak_bytes, (final, sparse.peak_bytes)
