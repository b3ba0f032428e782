"""Promise 2 with image and run folder in a bucket: killed at any instant, a run ends in the bytes of a local one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.storage.locations import Location

from .chaos import KINDS, Case, Place, below, endure, sample_files
from .storm import Storm, check_same, check_tidy, total_blocks, undisturbed

pytestmark = pytest.mark.system

SEED = 20261124
MOMENTS = ("before", "after")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "chaos", SEED)
    yield place
    place.end()


def deaths_inside(place: Place, what: str) -> set[str]:
    """Moments about a put of an `object` or to the `journal` at which somebody died."""
    return {event["when"] for event in place.events("inside") if event["inside"] == what}


def test_killed_again_and_again_a_run_in_a_bucket_ends_in_the_bytes_of_a_local_one(
    bucket: Location, place: Place, tmp_path: Path
) -> None:
    case = Case(tmp_path / "input", bucket)
    alone = undisturbed(case, tmp_path / "alone")
    output = bucket / "run"
    storm = Storm(place, ["worker"] * 6 + ["coordinator"] * 3, total_blocks(alone))
    # Tables and shards of every stage: half of their writers die just before the put, half just after it.
    files = place.rng.sample(found := sample_files(place.rng, alone, 1), len(found))

    def orders(number: int) -> dict[str, Any]:
        ends = {"before": files[::2], "after": files[1::2]}
        # In its second or third put to the journal, until both have happened: every start has as many.
        missing = [when for when in MOMENTS if when not in deaths_inside(place, "journal")]
        for when in missing[:1]:
            ends[when] = [*ends[when], f"-{place.rng.randrange(2, 4):06d}.log"]
        return ends

    codes = endure(place, output, case.settings(output, "local:2"), storm, orders)
    killed, inside = Counter(event["victim"] for event in place.events("victim")), place.events("inside")
    assert set(codes[:-1]) == {-9}, place.told()
    # The storm's last target may come when all is done.
    assert killed["worker"] >= 5, place.told()
    assert killed["coordinator"] >= 2, place.told()
    assert killed.total() + len(inside) >= 15, place.told()
    assert deaths_inside(place, "journal") == deaths_inside(place, "object") == {*MOMENTS}, place.told()
    assert {event["stage"] for event in inside} >= set(KINDS)
    check_same(place, output, alone)
    verified = neuroshed.verify(str(output), blocks=1, cluster=ClusterConfig(kind="in-process"))
    assert (verified["status"], verified["unfinished"]) == ("equal", [])
    check_tidy(place, output)
    # Neither is there anything beside the run, nor in it what a local one has not.
    assert {name.partition("/")[0] for name in below(bucket)} == {"image.zarr", "run"}
    assert output.names() == Location.of(alone).names()
    assert neuroshed.status(str(output))["state"] == "done"
