"""What nothing reads any more goes, and what a session left standing that did not live to delete it all."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuroshed.engine import discarding
from neuroshed.engine.discarding import Discarding
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages.base import Step
from neuroshed.storage.locations import Location
from neuroshed.storage.many import delete_all

KEY = ("a" * 64, "")


class Written:
    """A stage of 20 blocks that each wrote two files; it notes which blocks it was told to drop."""

    def __init__(self, folder: Path) -> None:
        self.folder = Location.of(folder)
        (folder / "c").mkdir()
        self.fingerprint, self.title = KEY[0], "predict"
        self.steps = (Step("", Grid(Box.of_shape((5, 2, 2)), (1, 1, 1))),)
        self.told: list[Vec] = []
        for place in range(20):
            for file in self.outputs("", self.steps[0].grid.index(place)):
                file.put(b"data")

    def outputs(self, step: str, index: Vec) -> tuple[Location, ...]:
        name = ".".join(map(str, index))
        return self.folder / f"{name}.tables", self.folder / "c" / name

    def drop(self, step: str, index: Vec) -> None:
        self.told.append(index)
        delete_all(self.outputs(step, index))

    @property
    def standing(self) -> set[str]:
        return {file.name for file, _ in self.folder.files()}


def discarded(stage: Any, **what: list[int]) -> None:
    with Discarding([stage]) as found:
        for name, places in what.items():
            if name == "finish":
                found.finish(KEY, iter([np.array(places[:2]), np.array(places[2:], int)]))
            else:
                found.discard(KEY, np.array(places, int))


def test_what_is_discarded_is_gone_once_it_ends(tmp_path: Path) -> None:
    stage = Written(tmp_path)
    discarded(stage, discard=[*range(1, 20)])
    assert stage.standing == {"0.0.0.tables", "0.0.0"}
    assert sorted(stage.told) == [stage.steps[0].grid.index(place) for place in range(1, 20)]


@pytest.mark.parametrize("most", [1_000_000, 3])
def test_of_what_was_dropped_before_what_still_stands_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(discarding, "MOST_STANDING", most)
    stage = Written(tmp_path)
    index = stage.steps[0].grid.index
    discarded(stage, discard=[0, 1, 2, 3])
    # Of the block at 5 one file is gone.
    stage.outputs("", index(5))[0].delete()
    stage.told.clear()
    discarded(stage, finish=[0, 1, 2, 3, 4, 5])
    assert stage.standing == {file.name for place in range(6, 20) for file in stage.outputs("", index(place))}
    # Where more stand than are held, all are asked for.
    assert stage.told == [index(place) for place in (range(6) if most == 3 else (4, 5))]


def test_files_that_cannot_be_deleted_are_told_and_the_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Written(tmp_path)
    plain = stage.drop

    def drop(step: str, index: Vec) -> None:
        if index == (0, 0, 0):
            raise PermissionError("not yours")
        plain(step, index)

    monkeypatch.setattr(stage, "drop", drop)
    with caplog.at_level(logging.WARNING):
        discarded(stage, discard=[0, 1])
    assert [record.getMessage() for record in caplog.records] == [
        "1 blocks of predict that nothing reads any more stay: not yours"
    ]
    assert not {"0.0.1.tables", "0.0.1"} & stage.standing


def test_a_folder_that_cannot_be_listed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def files() -> None:
        raise OSError("the store is away")

    stage = SimpleNamespace(fingerprint=KEY[0], title="predict", folder=SimpleNamespace(files=files))
    with caplog.at_level(logging.WARNING):
        discarded(stage, finish=[0])
    (record,) = caplog.records
    assert record.getMessage() == "what was dropped of predict before may still take space: the store is away"
