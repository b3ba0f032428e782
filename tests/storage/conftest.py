"""Run folders on disk and in an object store, and machines other than this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroshed.storage import holders
from neuroshed.storage.locations import Location
from tests.storage.objects import Store

Client = Callable[[], Location]
Machine = Callable[[str], None]


@pytest.fixture(params=["disk", "memory"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    """The same run folder, for one more client at each call."""
    if request.param == "disk":
        return lambda: Location.of(tmp_path)
    store = Store()
    return lambda: store.client() / "run"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """From now on the calling thread is on another machine, as far as leases can tell."""
    here = threading.local()
    real = holders._machine()
    monkeypatch.setattr(holders, "_machine", lambda: getattr(here, "machine", real))

    def be(name: str) -> None:
        here.machine = (name, f"boot of {name}", "pid:[1]")

    return be
