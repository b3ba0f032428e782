"""What becomes of blocks that fail: tried again later, or set aside. Pure: the caller brings the clock."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Block = tuple[str, str, int]
"""Fingerprint of the stage, name of the step, place of the block in the step's grid."""

LONGEST_BACKOFF_SECONDS = 300.0


class FailureOptions(BaseModel):
    """`failures:` of a workflow. None of it changes a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempts: int = Field(default=3, ge=1)
    """How often a block is tried before it is set aside."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """Wait before a block is tried again, doubled with every attempt up to five minutes."""
    worker_deaths: int = Field(default=3, ge=1)
    """How often a block may be at work in a worker that dies. Where workers are taken away at any time (spot
    instances), 10 to 20.
    """
    block_seconds: float | None = Field(default=None, gt=0)
    """Longest time that a block may take; its worker is ended then, and that counts as an attempt."""
    on_failure: Literal["continue", "stop"] = "continue"
    """What a block that is set aside does to the rest: `continue` with all that does not depend on it, or `stop`."""


class Attempts:
    """Counts attempts and deaths by block, and holds blocks back until they are due again."""

    def __init__(self, options: FailureOptions) -> None:
        self._options = options
        self._failed: Counter[Block] = Counter()
        self._died: Counter[Block] = Counter()
        self._waiting: list[tuple[float, Block, bool]] = []
        self.retries = 0
        """How often a block was, or is to be, tried again."""

    def failed(self, block: Block, now: float) -> bool:
        """Note that a block failed; whether it is tried again (else it is to be set aside)."""
        self._failed[block] += 1
        return self._again(block, self._failed[block], self._options.attempts, now, alone=False)

    def died(self, block: Block, now: float) -> bool:
        """Note that a block was at work in a worker that died; whether it is tried again, alone."""
        self._died[block] += 1
        return self._again(block, self._died[block], self._options.worker_deaths, now, alone=True)

    def count(self, block: Block) -> int:
        """How often a block was tried in vain."""
        return self._failed[block] + self._died[block]

    def forget(self, blocks: Iterable[Block]) -> None:
        """Blocks that are done."""
        if self._failed or self._died:
            for block in blocks:
                self._failed.pop(block, None)
                self._died.pop(block, None)

    def due(self, now: float) -> list[tuple[Block, bool]]:
        """Blocks whose wait is over, each with whether it has to travel alone."""
        found = []
        while self._waiting and self._waiting[0][0] <= now:
            _, block, alone = heapq.heappop(self._waiting)
            found.append((block, alone))
        return found

    @property
    def waiting(self) -> int:
        """Blocks that wait to be tried again."""
        return len(self._waiting)

    @property
    def next_due(self) -> float | None:
        """When the next of them is due; None if there is none."""
        return self._waiting[0][0] if self._waiting else None

    def _again(self, block: Block, count: int, limit: int, now: float, *, alone: bool) -> bool:
        if count >= limit:
            return False
        self.retries += 1
        wait = min(self._options.backoff_seconds * 2.0 ** min(count - 1, 20), LONGEST_BACKOFF_SECONDS)
        heapq.heappush(self._waiting, (now + wait, block, alone))
        return True
