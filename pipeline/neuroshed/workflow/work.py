"""Work of which an answer is all that stays: a comparison, a check, an evaluation. One stage in a folder that goes when
the answer is there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Watcher
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.storage.locations import Location
from neuroshed.workflow.run import run_stages
from neuroshed.workflow.target import PathLike


@dataclass(frozen=True)
class Work:
    """A folder for the blocks of one stage, and how to go on if it is broken off."""

    run_folder: Location
    again: str

    def run(self, stage: Stage, cluster: ClusterConfig | None, watch: Watcher, failure_code: int = 1) -> int:
        """Run what is missing of a stage, by default in this process; returns how many blocks were done before.
        `failure_code` is the exit code if blocks fail, where 1 is an answer.
        """
        used = cluster or ClusterConfig(kind="in-process")
        try:
            summary = run_stages(self.run_folder, [stage], Options(cluster=used, watch=watch), again=self.again)
        except RunFailedError as error:
            error.exit_code = failure_code
            raise
        return int(summary["restored_blocks"])


@contextmanager
def work_on(purpose: str, folder: PathLike | None, volumes: tuple[Location, ...], *options: object) -> Iterator[Work]:
    """Work on volumes: temporary files, or, in a `folder`, one of its own that outlives what is broken off, so that the
    same question finds it again. What the volumes held is for the stage to know: its fingerprint.

    Raises `WorkflowError` for a folder in one of the volumes.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=f"neuroshed-{purpose}-") as temporary:
            yield Work(Location.of(temporary), f"{purpose} again")
        return
    place = Location.of(folder)
    for volume in volumes:
        if place.is_relative_to(volume):
            raise WorkflowError(f"work folder {place} is in {volume}, which is never changed; choose another place")
    asked = json.dumps([purpose, *map(str, volumes), *map(str, options)])
    own = place / f"{purpose}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    yield Work(own, "the same command goes on")
    own.delete_tree()
