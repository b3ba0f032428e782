"""The rule of readiness as it is written down, looked up anew for every block whenever it is asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from neuroshed.engine.readiness import Counts, Key
from neuroshed.geometry import Vec
from neuroshed.stages.base import Step

Block = tuple[Key, Vec]


class PlainReadiness:
    """Same answers as `Readiness`, with blocks as (step, index) and sets instead of arrays."""

    def __init__(self, steps: Sequence[tuple[str, Step]], droppable: Collection[Key] = ()) -> None:
        self.steps = {(fingerprint, step.name): step for fingerprint, step in steps}
        self.droppable = droppable
        self.states: dict[Block, str] = {(key, i): "waiting" for key, step in self.steps.items() for i in step.grid}
        self.reads = {block: [*self._touched(*block)] for block in self.states}
        self.readers: dict[Block, list[Block]] = {block: [] for block in self.states}
        for block, touched in self.reads.items():
            for upstream in touched:
                self.readers[upstream].append(block)
        self.told: set[Block] = set()

    def _touched(self, key: Key, index: Vec) -> Iterable[Block]:
        step = self.steps[key]
        for need in step.needs:
            upstream = (need.fingerprint, need.step)
            if upstream in self.steps:
                box = step.grid.block_box(index).grow(need.low, need.high)
                yield from ((upstream, touched) for touched in self.steps[upstream].grid.touching(box))

    def restore(self, key: Key, done: npt.NDArray[np.bool_], dropped: npt.NDArray[np.bool_] | None = None) -> None:
        for position, index in enumerate(self.steps[key].grid):
            if done[position]:
                self.states[key, index] = "done"
            if dropped is not None and dropped[position]:
                self.states[key, index] = "dropped"

    def start(self) -> set[Block]:
        missing = {block: self._to_run(block) for block in self.states}
        for block, to_run in missing.items():
            if to_run:
                self.states[block] = "waiting"
            elif self.states[block] == "waiting":
                self.states[block] = "skipped"
        return self._to_drop()

    def _left_out(self, block: Block) -> bool:
        step = self.steps[block[0]]
        return step.skipped is not None and bool(step.skipped.ravel()[step.grid.position(block[1])])

    def _to_run(self, block: Block) -> bool:
        if self.states[block] == "done" or self._left_out(block):
            return False
        return block[0] not in self.droppable or any(self._to_run(reader) for reader in self.readers[block])

    def _to_drop(self) -> set[Block]:
        """Done blocks of droppable steps without a reader to come, each once; nobody reads what is left out."""
        to_come = {"waiting", "running", "failed"}
        idle = {
            block
            for block, state in self.states.items()
            if state == "done" and block[0] in self.droppable
            if self._left_out(block) or to_come.isdisjoint(self.states[reader] for reader in self.readers[block])
        }
        new = idle - self.told
        self.told |= new
        return new

    def ready(self) -> dict[Key, list[Vec]]:
        """Ready blocks in sweep order, by step, furthest down the flow first."""
        out = {}
        for key, step in reversed(self.steps.items()):
            counts = step.grid.counts
            slowest = counts.index(max(counts))
            indices = [i for i in step.grid if self.states[key, i] == "waiting" and self._may_run((key, i))]
            if indices:
                out[key] = sorted(indices, key=lambda index: (index[slowest], index))
        return out

    def _may_run(self, block: Block) -> bool:
        return all(self.states[read] == "done" or self._left_out(read) for read in self.reads[block])

    def set(self, blocks: Iterable[Block], state: str) -> set[Block]:
        """Blocks are running, waiting (once more), failed, dropped or done; returns those to drop now."""
        self.states.update(dict.fromkeys(blocks, state))
        return self._to_drop()

    def counts(self) -> dict[str, Counts]:
        ready = {(key, index) for key, indices in self.ready().items() for index in indices}
        out = {}
        for stage in {fingerprint for fingerprint, _ in self.steps}:
            states = [
                "ready" if block in ready else state for block, state in self.states.items() if block[0][0] == stage
            ]
            out[stage] = Counts(
                total=len(states),
                done=states.count("done") + states.count("dropped"),
                running=states.count("running"),
                failed=states.count("failed"),
                ready=states.count("ready"),
                waiting=states.count("waiting"),
                skipped=states.count("skipped"),
            )
        return out
