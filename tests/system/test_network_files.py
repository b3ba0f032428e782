"""Runs on a file system that shows machines what was, for a minute, and loses answers: NFS at its worst."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import neuroshed
from neuroshed.errors import LeaseLostError
from neuroshed.storage.journal import Journal
from neuroshed.storage.lease import Lease, Pace, holder_of
from neuroshed.storage.locations import Location
from tests.storage.records import positions_in, recorded, write

from ..promises.chunks import random_affinities, write_affinities
from .sites import mounted, mounting, ssh_hosts
from .test_clusters import digest, settings, until

pytestmark = pytest.mark.system
QUICK = Pace(beat_seconds=0.2, silence_seconds=1.0)


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[tuple[Location, Location]]:
    """One folder as two machines see it."""
    with mounted(tmp_path / "store", tmp_path / "a") as one, mounted(tmp_path / "store", tmp_path / "b") as other:
        yield Location.of(one), Location.of(other)


def test_the_file_system_is_as_bad_as_it_should_be(clients: tuple[Location, Location]) -> None:
    one, other = clients
    assert not (other / "x").exists()
    assert other.names() == []
    (one / "x").put(b"1")
    assert (one / "x").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError):
        (other / "x").read_bytes()
    assert other.names() == []
    # Until it changes something there itself.
    (other / "y").put(b"2")
    assert (other / "x").read_bytes() == b"1"
    assert other.names() == ["x", "y"]


def test_a_run_changes_hands_in_spite_of_old_listings(clients: tuple[Location, Location]) -> None:
    here, there = (place / "run" for place in clients)
    write(here, [0])
    for number in range(1, 7):
        # What is looked at now is kept for a minute.
        recorded(here), recorded(there), holder_of(here), holder_of(there)
        write((here, there)[number % 2], [number])
    assert recorded(there) == list(range(7)) or recorded(here) == list(range(7))
    with Journal(here) as journal:
        assert positions_in(journal.ledger) == list(range(7))


def test_a_holder_that_was_thought_dead_stops(clients: tuple[Location, Location], foreign: None) -> None:
    here, there = (place / "run" for place in clients)
    here.make_folder()
    slow = Lease(here, "slow", Pace(beat_seconds=600, silence_seconds=1200))
    with slow:
        holder_of(there)
        with Lease(there, "quick", QUICK), pytest.raises(LeaseLostError, match="taken over by quick"):
            slow.renew()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process can be looked up: as on two machines."""
    monkeypatch.setattr("neuroshed.storage.holders.Holder.alive", None)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_answer_is_not_taken_for_a_refusal(lost: int, tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "a", lost=lost) as mountpoint:
        place = Location.of(mountpoint)
        for number in range(6):
            file = place / f"file{number}"
            assert file.create(b"first")
            assert not file.create(b"second")
            assert file.read_bytes() == b"first"
            file.put(b"third")
            assert file.read_bytes() == b"third"
            file.delete()
            assert not file.exists()
        assert not any((tmp_path / "store").iterdir())


def test_two_machines_and_a_coordinator_work_on_one_run(tmp_path: Path) -> None:
    """Three machines with caches of their own. The coordinator is killed, and another machine goes on."""
    store, data = tmp_path / "store", tmp_path / "data"
    affinities = random_affinities(np.random.default_rng(1), (16, 32, 48), 256)
    before = f"{shlex.join(mounting(store, data))} & until mountpoint -q {shlex.quote(str(data))}; do sleep 0.1; done"
    # Beside what is mounted for this machine, which they see at first.
    before = f"umount -l {shlex.quote(str(data))}\n{before}"
    with mounted(store, data), ssh_hosts(tmp_path / "ssh", 2, before) as (here, hosts):
        image, run = write_affinities(data / "affinities.zarr", affinities), data / "run"
        neuroshed.run("segment", settings(image, tmp_path / "plain", "in-process:2"))
        cluster = {"kind": "ssh", "host": here, "pools": {"cpu": {"cores": 1, "memory_gb": 2, "hosts": hosts}}}
        words = [word for setting in settings(image, run, cluster) for word in ("--set", setting)]
        process = subprocess.Popen([sys.executable, "-m", "neuroshed", "run", "segment", *words])
        until(lambda: done(run) > 5 or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # From one of the hosts, which has looked at the run before.
        there = ["ssh", *hosts[0]["options"], hosts[0]["name"]]
        program = shlex.join([sys.executable, "-m", "neuroshed"])
        shown = subprocess.run([*there, f"{program} status {run} --json"], capture_output=True, text=True, check=True)
        assert json.loads(shown.stdout)["state"] != "done"
        words = [word for setting in settings(image, run, "local:2") for word in ("--set", setting)]
        again = shlex.join([sys.executable, "-m", "neuroshed", "run", "segment", *words])
        subprocess.run([*there, again], check=True, timeout=300)
        assert digest(store / "run") == digest(tmp_path / "plain")


def done(run: Path) -> int:
    try:
        return sum(row["done"] for row in neuroshed.status(run)["stages"].values())
    except neuroshed.NeuroshedError:
        return 0
