"""Deleting what blocks wrote that nothing reads any more, while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import TracebackType

import numpy as np

from neuroshed.engine.readiness import Key, Positions
from neuroshed.errors import WorkflowError
from neuroshed.stages.base import Stage
from neuroshed.storage.locations import Location

log = logging.getLogger(__name__)

DELETING_THREADS = 4
MOST_STANDING = 1_000_000
"""Names of files that are held in memory at a time."""


class Discarding:
    """Deletes outputs of blocks in threads of its own; leaving it waits until they are done."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = {stage.fingerprint: stage for stage in stages}
        self._pool = ThreadPoolExecutor(DELETING_THREADS, "discard")
        # Of its own, so that what is dropped now does not wait for what was dropped long ago.
        self._leftovers = ThreadPoolExecutor(1, "leftovers")

    def __enter__(self) -> Discarding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leftovers.shutdown()
        self._pool.shutdown()

    def discard(self, key: Key, positions: Positions) -> None:
        """Delete what these blocks of a step wrote."""
        for part in np.array_split(positions, min(DELETING_THREADS, positions.size)):
            self._pool.submit(_drop, self._stages[key[0]], key[1], part, None)

    def finish(self, key: Key, dropped: Iterable[Positions]) -> None:
        """Delete what still stands of blocks that were dropped by a session that did not live to delete it all."""
        self._leftovers.submit(_finish, self._stages[key[0]], key[1], dropped)


def _finish(stage: Stage, step: str, dropped: Iterable[Positions]) -> None:
    try:
        standing = _standing(stage.folder)
    except (OSError, WorkflowError) as error:
        log.warning("what was dropped of %s before may still take space: %s", stage.title, error)
        return
    for positions in dropped:
        _drop(stage, step, positions, standing)


def _standing(folder: Location) -> frozenset[str] | None:
    """Names of all files of a stage; None if they are too many to hold."""
    names = frozenset(str(file) for file, _ in islice(folder.files(), MOST_STANDING + 1))
    return names if len(names) <= MOST_STANDING else None


def _drop(stage: Stage, step: str, positions: Positions, standing: frozenset[str] | None) -> None:
    """Delete what blocks wrote, of files that are named in `standing` (None: of any)."""
    grid = next(found.grid for found in stage.steps if found.name == step)
    errors = []
    for position in positions.tolist():
        index = grid.index(position)
        if standing is not None and standing.isdisjoint(str(file) for file in stage.outputs(step, index)):
            continue
        try:
            stage.drop(step, index)
        except (OSError, WorkflowError) as error:
            errors.append(error)
    if errors:
        log.warning("%d blocks of %s that nothing reads any more stay: %s", len(errors), stage.title, errors[0])
