"""New volumes that appear when they are whole: a run of a few stages beside the target, of which nothing else stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.coordinator import Options
from neuroshed.engine.progress import Watcher
from neuroshed.errors import WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.storage.files import sync_path
from neuroshed.storage.locations import Location
from neuroshed.workflow.run import run_stages

PathLike = str | os.PathLike[str] | Location


def quiet(progress: object) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Target:
    """A folder of this machine that is to be made by some `work`: import, crop or export."""

    goal: Path
    work: str

    @classmethod
    def of(cls, target: PathLike, work: str, *sources: PathLike) -> Target:
        """Raises `WorkflowError` if there is something already, or if it would lie in one of the sources."""
        place = Location.of(target)
        goal = place.local
        if goal.exists():
            raise WorkflowError(f"target {goal} exists already; choose another or remove it")
        for source in map(Location.of, sources):
            if place.is_relative_to(source):
                raise WorkflowError(f"target {goal} is in {source}, which is never changed; choose another place")
        return cls(goal, work)

    @property
    def run_folder(self) -> Location:
        """Beside the target, so that a second call finds what the first one did; gone at the end."""
        return Location.of(self.goal.with_name(f".{self.goal.name}.{self.work}"))

    def run(self, stages: Sequence[Stage], cluster: ClusterConfig | None, watch: Watcher) -> None:
        """Run the stages, or go on with them."""
        options = Options(cluster=cluster or ClusterConfig(), watch=watch)
        run_stages(self.run_folder, stages, options, again=f"the same {self.work} goes on")

    def finish(self, made: Location) -> Path:
        """Put what was made in its place; returns that."""
        made.local.rename(self.goal)
        sync_path(self.goal.parent)
        self.run_folder.delete_tree()
        return self.goal
