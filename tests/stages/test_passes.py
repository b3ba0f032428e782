"""Stages that pass once over volumes of others: what is read was there all the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from neuroshed.errors import BlockError, InputError
from neuroshed.stages.base import Stage
from neuroshed.stages.compare import Compare
from neuroshed.stages.copy import Copy
from neuroshed.stages.evaluate import Contingency
from neuroshed.stages.precomputed import Precomputed
from neuroshed.stages.tiff import Tiff
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import open_volume

BLOCK = (16, 16, 16)
MAKERS: dict[str, Callable[[Location, Location], Stage]] = {
    "compare": lambda run, given: Compare.of(run, open_volume(given), open_volume(given), False, BLOCK),
    "copy": lambda run, given: Copy.of(run, given, "new.zarr"),
    "evaluate": lambda run, given: Contingency.of(run, given, given, BLOCK),
    "precomputed": lambda run, given: Precomputed.of(run, given, "new"),
    "tiff": lambda run, given: Tiff.of(run, given, "new"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("harm", ["gone", "smaller"])
def test_a_volume_that_goes_under_a_stage_is_told_and_gives_nothing(
    make: Callable[[Location, Location], Stage], harm: str, tmp_path: Path
) -> None:
    given, moved = tmp_path / "a.zarr", tmp_path / "moved.zarr"
    zarr.create_array(given, data=np.full((20, 20, 20), 7, np.uint32), chunks=(20, 20, 20))
    stage = make(Location.of(tmp_path / "run"), Location.of(given))
    stage.prepare()
    step = stage.steps[0]
    index = next(iter(step.grid))
    # Some have opened it by now, others do so at their first block.
    stage.memory_bytes(step.name)
    given.rename(moved)
    if harm == "smaller":
        zarr.create_array(given, data=np.full((9, 20, 20), 7, np.uint32), chunks=(9, 20, 20))
    said = r"a\.zarr(: the path does not exist| was removed or replaced since this was planned; put it back)"
    with pytest.raises((BlockError, InputError), match=said):
        stage.run(step.name, index)
    assert not any(file.exists() for file in stage.outputs(step.name, index))
    if harm == "smaller":
        given.rename(tmp_path / "smaller.zarr")
    moved.rename(given)
    stage = make(Location.of(tmp_path / "run"), Location.of(given))
    stage.run(step.name, index)
    stage.check_outputs(step.name, index)
