"""What one process can tell of another: that it holds a lease, that it is gone, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroshed.storage import holders
from neuroshed.storage.holders import Holder
from tests.storage.dying import child_of


def test_what_is_known_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Holder.here("me")
    assert mine.alive is False, "it holds no lease"
    monkeypatch.setattr(holders, "held", {mine.token})
    assert mine.alive is True
    first = Holder("init", mine.host, 1, mine.boot_id, mine.pid_space, 10**15)
    assert first.alive is False, "another process has its number now"
    assert Holder("far", "elsewhere", 1, mine.boot_id, mine.pid_space).alive is None
    assert Holder("caged", mine.host, 1, mine.boot_id, "pid:[2]").alive is None, "containers number for themselves"
    assert Holder("before", mine.host, mine.pid, "another boot", mine.pid_space).alive is None
    assert Holder.parse({**{name: getattr(mine, name) for name in Holder.__slots__}, "mood": "new"}) == mine


def test_processes_that_cannot_be_seen_are_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Holder.here("other")
    with child_of("input()", tmp_path) as child:
        state = holders._state_of(child.pid)
        assert state is not None
        seen = Holder("child", other.host, child.pid, other.boot_id, other.pid_space, state[1])
        assert seen.alive is True
        monkeypatch.setattr(holders, "_state_of", lambda pid: None)
        assert seen.alive is None
    assert seen.alive is False
