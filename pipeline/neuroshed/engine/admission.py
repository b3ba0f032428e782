"""Which of the workers that a scheduler lists are given work: those with the same versions, on GPUs that work."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from neuroshed.engine.clusters import Connection
from neuroshed.engine.readiness import Key
from neuroshed.engine.versions import differences, versions

log = logging.getLogger(__name__)

STRIKES = 2
"""A worker whose GPU fails is started again; if it fails so often without having done a block, it is given up."""
REASONS_TOLD = 3

Info = dict[str, Any]


class Admission:
    """Asks each new worker for its versions, and remembers who is not to be used and why."""

    def __init__(self, connection: Connection, refuse: Callable[[str, str], None] = lambda name, reason: None) -> None:
        """`refuse` is told the name and the reason of each worker that is not to be used because of its versions."""
        self._connection, self._refuse = connection, refuse
        self._here = versions()
        self._answers: dict[str, str | None] = {}
        self._strikes: Counter[tuple[str, Key]] = Counter()
        self.reasons: dict[str, str] = {}
        """Why workers are not used, by name."""

    def sift(self, found: Mapping[str, Info]) -> dict[str, Info]:
        """Of all workers by address, those that are given work. New ones are asked first, and not among them yet."""
        # Answers come in another thread.
        self._answers = {address: answer for address, answer in list(self._answers.items()) if address in found}
        admitted = {}
        for address, info in found.items():
            name = str(info.get("name", address))
            if name in self.reasons:
                continue
            if self._connection.elsewhere:
                if address not in self._answers:
                    self._answers[address] = None
                    self._connection.client.loop.add_callback(self._ask, address)
                answer = self._answers.get(address)
                if answer:
                    self.give_up(name, info.get("host", ""), answer)
                    self._refuse(name, answer)
                if answer != "":
                    continue
            admitted[address] = info
        return admitted

    def device_failed(self, name: str, host: str, key: Key, error: str) -> bool:
        """Note that the GPU of a worker failed at a step; whether the worker is given up for it."""
        self._strikes[name, key] += 1
        if self._strikes[name, key] < STRIKES:
            log.warning("the GPU of worker %s on %s failed; the worker is started again (%s)", name, host, error)
            return False
        self.give_up(name, host, f"its GPU failed {STRIKES} times without a block between ({error})")
        return True

    def device_works(self, name: str, key: Key) -> None:
        """Note that a worker did a block of a step. Those that need no GPU say nothing of it."""
        self._strikes.pop((name, key), None)

    @property
    def told(self) -> str:
        """Who is not used and why, for people; empty if all are."""
        lines = [f"{name}: {reason}" for name, reason in list(self.reasons.items())[-REASONS_TOLD:]]
        return f"{len(self.reasons)} workers are not used, such as {'; '.join(lines)}" if lines else ""

    def give_up(self, name: str, host: str, reason: str) -> None:
        """Not use a worker any more."""
        self.reasons[name] = reason
        log.warning("worker %s on %s is not used: %s", name, host, reason)

    async def _ask(self, address: str) -> None:
        """Runs in the loop of Dask's client."""
        try:
            answer = await self._connection.client._run(versions, workers=[address])
            self._answers[address] = differences(answer[address], self._here)
        except (OSError, KeyError):
            # It is gone, or cannot be reached now. If it is still listed then, it is asked again.
            self._answers.pop(address, None)
        except Exception as error:
            # A worker without neuroshed cannot even be asked.
            self._answers[address] = f"it cannot be asked for its versions ({type(error).__name__}: {error})"
