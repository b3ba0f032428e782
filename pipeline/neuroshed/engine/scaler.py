"""Which workers a run asks for and lets go, second by second: from its backlog, by pool, and what its workers are at.

A worker is only ever ended when it has nothing to do and gets nothing any more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from neuroshed.engine.dispatch import Windows, is_time_for
from neuroshed.engine.fleet import Fleet, Member
from neuroshed.engine.pools import Backlog, Pool, workers_wanted
from neuroshed.errors import RunFailedError

IDLE_SECONDS = 30.0
"""That a worker has nothing to do before it is let go, while there is work for the pool at all."""
REFUSED_SECONDS = 10.0
"""After a worker that cannot be used, before another of its pool is asked for."""
FAILED_STARTS = 5
"""Workers of a pool that end before they ever connect, one after another, before that is told as an error."""


class Scaler:
    """Asks for workers and lets them go."""

    def __init__(self, fleet: Fleet, pools: Mapping[str, Pool], clock: Callable[[], float] = time.time) -> None:
        self._fleet, self._pools, self._clock = fleet, pools, clock
        self._idle_since: dict[str, float] = {}
        self._seen: dict[str, str] = {}
        self._connected: set[str] = set()
        self._failed: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self.members: list[Member] = []
        """As last seen."""

    def tick(self, backlogs: Mapping[str, Backlog], windows: Windows) -> None:
        """Take in what there is to do and who is there, and order accordingly.

        Raises `RunFailedError` if workers of a pool end again and again before they connect, and what the fleet raises.
        """
        self.members, ordered = self._fleet.look()
        jobs = windows.jobs_by_member()
        self._count_failures(jobs.keys())
        windows.set_ends({member.name: member.ends_at for member in self.members})
        for name, pool in self._pools.items():
            self._scale(name, pool, backlogs.get(name, Backlog()), ordered[name], windows, jobs)

    def refuse(self, member: str, reason: str, *, broken: bool = False) -> None:
        """Let a worker go that cannot be used, and ask for no other in its pool for a while. `broken`: the place where
        it ran is, for good.
        """
        known = next((known for known in self.members if known.name == member), None)
        if known is None:
            return
        self._reasons[known.pool] = reason
        self._not_before[known.pool] = self._clock() + REFUSED_SECONDS
        if broken:
            self._broken[known.pool] += 1
            # It had connected, and its end is no failure to start.
            self._seen.pop(member, None)
        self._fleet.stop([member], broken=broken)

    def waiting(self, pool: str | None = None) -> int:
        """How many workers, of a pool or at all, were asked for and have not begun."""
        return sum(not member.running for member in self.members if pool in (None, member.pool))

    def _scale(
        self, name: str, pool: Pool, backlog: Backlog, ordered: int, windows: Windows, jobs: Mapping[str, int]
    ) -> None:
        members = [member for member in self.members if member.pool == name]
        now = self._clock()
        # One that has not the time for another block is as good as gone.
        staying = [member for member in members if is_time_for(backlog.shortest, member.ends_at, now)]
        # The range of a pool is that of places that work.
        wanted = min(workers_wanted(pool, backlog), max(pool.range[1] - self._broken[name], 0))
        if (missing := wanted - len(staying) - ordered) > 0 and now >= self._not_before.get(name, now):
            self._fleet.start(name, missing)
        idle = [member.name for member in members if not jobs.get(member.name, 0)]
        for member in members:
            if member.name in idle:
                self._idle_since.setdefault(member.name, now)
            else:
                self._idle_since.pop(member.name, None)
        patience = IDLE_SECONDS if backlog.left else 0.0
        going = [member.name for member in members if member not in staying and member.name in idle and member.running]
        # Those first that wait in a queue, then those that were idle longest.
        spare = [member for member in staying if member.name in idle]
        spare.sort(key=lambda member: (member.running, self._idle_since[member.name]))
        for member in spare[: max(len(staying) - wanted, 0)]:
            if now - self._idle_since[member.name] >= patience:
                going.append(member.name)
        if going:
            windows.dismiss(going)
            self._fleet.stop(going)
            for gone in going:
                self._idle_since.pop(gone, None)
                self._seen.pop(gone, None)

    def _count_failures(self, connected: Collection[str]) -> None:
        """Workers that ended without ever having connected."""
        self._connected.update(connected)
        there = {member.name: member.pool for member in self.members}
        for name, pool in self._seen.items():
            if name in self._connected:
                self._failed[pool] = 0
            elif name not in there:
                self._failed[pool] += 1
        self._seen = there
        self._connected &= there.keys()
        for pool, count in self._failed.items():
            if count >= FAILED_STARTS:
                reason = self._reasons.get(pool)
                raise RunFailedError(
                    f"{count} workers of pool {pool} could not be used, one after another: {reason}"
                    if reason
                    else f"{count} workers of pool {pool} ended one after another before they connected; their output "
                    f"is in {self._fleet.provider.logs}"
                )
