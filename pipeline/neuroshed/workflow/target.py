"""New volumes that appear when they are whole: a run of a few stages beside the target, of which nothing else stays."""

from __future__ import annotations

import json
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
from neuroshed.storage.growing import Growing
from neuroshed.storage.locations import Location
from neuroshed.workflow.run import run_stages

CLAIM_FILE = ".neuroshed.json"
"""In a target that grows in a bucket: what of."""

PathLike = str | os.PathLike[str] | Location


def quiet(progress: object) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class Target:
    """A folder that is to be made by some `work`: import, crop or export.

    On disk it is made elsewhere and moved. In a bucket it grows in its place, where readers find nothing to open before
    all is there, and a file in it says whose it is until then.
    """

    goal: Location
    work: str

    @classmethod
    def of(cls, target: PathLike, work: str, *sources: PathLike) -> Target:
        """Raises `WorkflowError` if there is something already, if it would lie in one of the sources, or where nobody
        can write.
        """
        goal = Location.of(target)
        if not goal.can_list:
            raise WorkflowError(f"target {goal} is on a web server, which is only read; choose a folder or bucket")
        if not goal.is_local and goal.parent == goal:
            raise WorkflowError(f"target {goal} is all of a bucket; choose a folder in it")
        new = cls(goal, work)
        if goal.local.exists() if goal.is_local else goal.exists() and not new._claim.exists():
            raise WorkflowError(f"target {goal} exists already; choose another or remove it")
        for source in map(Location.of, sources):
            if goal.is_relative_to(source):
                raise WorkflowError(f"target {goal} is in {source}, which is never changed; choose another place")
        return new

    @property
    def run_folder(self) -> Location:
        """Beside the target, so that a second call finds what the first one did; gone at the end."""
        return self.goal.parent / f".{self.goal.name}.{self.work}"

    @property
    def _claim(self) -> Location:
        return self.goal / CLAIM_FILE

    def run(self, stages: Sequence[Stage], cluster: ClusterConfig | None, watch: Watcher) -> None:
        """Run the stages, or go on with them."""
        if not self.goal.is_local:
            self._take(stages)
        options = Options(cluster=cluster or ClusterConfig(), watch=watch)
        run_stages(self.run_folder, stages, options, again=f"the same {self.work} goes on")

    def _take(self, stages: Sequence[Stage]) -> None:
        """Claim the place in a bucket for these stages, so that nothing else is mixed with what they write."""
        told = json.dumps({"work": self.work, "stages": [stage.fingerprint for stage in stages]}).encode()
        if not self._claim.exists():
            # What is left of a target that somebody has removed: none of it is true any more.
            self.run_folder.delete_tree()
        if not self._claim.create(told) and self._claim.read_bytes() != told:
            raise WorkflowError(
                f"target {self.goal} holds a part of something else, which was broken off; go on with that, choose "
                f"another or remove it"
            )

    def finish(self, made: Location) -> Path | str:
        """Put what was made in its place; returns that, as path or URL."""
        if isinstance(made, Growing):
            made.put_in_place()
            # Before the run folder, of which a part says nothing true any more.
            self._claim.delete()
            self.run_folder.delete_tree()
            return str(self.goal)
        made.local.rename(self.goal.local)
        sync_path(self.goal.local.parent)
        self.run_folder.delete_tree()
        return self.goal.local
