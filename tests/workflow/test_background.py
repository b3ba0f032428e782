"""Runs that outlive the terminal, and being stopped from this and from other terminals: real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import neuroshed
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location

from .commands import (
    COMMAND,
    call,
    coordinator_ended,
    done_so_far,
    end_group,
    live,
    started,
    wait_until,
    write_workflow,
)

pytestmark = pytest.mark.system
LONG = (32, 64, 64)
"""Thousands of blocks: half a minute for one thread."""


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    """Of a long run, which nobody works on any more at the end."""
    write_workflow(tmp_path, shape=LONG)
    with coordinator_ended(tmp_path / "run"):
        yield tmp_path / "run"


def test_a_submitted_run_outlives_its_terminal(run_folder: Path) -> None:
    # A shell, in a session of its own like a terminal's.
    shell = subprocess.Popen(
        ["sh", "-c", '"$@"; sleep 600', "sh", *COMMAND, "submit", str(run_folder.with_name("workflow.yaml")), "--json"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert shell.stdout is not None
        told = json.loads("".join(iter(shell.stdout.readline, "}\n")) + "}")
    finally:
        # As a terminal that is closed does.
        os.killpg(shell.pid, signal.SIGHUP)
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()
    holder = holder_of(Location.of(run_folder))
    assert holder is not None
    assert (told["state"], told["holder"]) == ("running", str(holder))
    assert os.getsid(holder.pid) == holder.pid
    before = done_so_far(run_folder)
    wait_until(lambda: done_so_far(run_folder) > before)
    assert holder.alive

    again = call("run", run_folder.with_name("workflow.yaml"))
    assert again.returncode == 2
    assert f"is being worked on by {holder}" in again.stderr
    assert f"is being worked on by {holder}" in call("submit", run_folder.with_name("workflow.yaml")).stderr

    cancelled = call("cancel", run_folder)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "it heard" in cancelled.stderr
    assert "stopped at" in cancelled.stdout
    assert "cancelled by" in cancelled.stdout
    wait_until(lambda: not psutil.pid_exists(holder.pid))
    assert not (run_folder / "request.json").exists()
    assert not (run_folder / "live.json").exists()
    found = neuroshed.status(run_folder)
    assert (found["state"], found["status"], found["holder"], found["live"]) == ("stopped", "unfinished", None, None)
    assert "nobody works on run" in call("cancel", run_folder).stderr
    output = (run_folder / "log" / "output.log").read_text()
    assert "stopped (cancelled by" in output


def test_a_drained_run_leaves_nothing_half_done(run_folder: Path) -> None:
    others = {child.pid for child in psutil.Process().children()}
    told = neuroshed.submit(run_folder.with_name("workflow.yaml"))
    assert told["state"] == "running"
    children = {child.pid for child in psutil.Process().children()} - others
    wait_until(lambda: done_so_far(run_folder))
    found = neuroshed.cancel(run_folder, drain=True)
    assert found["state"] == "stopped"
    # This process goes on: whom it started is not left over as a zombie.
    wait_until(lambda: not [child for child in psutil.Process().children() if child.pid in children])
    with pytest.raises(neuroshed.WorkflowError, match="nobody works on"):
        neuroshed.cancel(run_folder)
    done = sum(row["done"] for row in found["stages"].values())
    assert 0 < done < sum(row["blocks"] for row in found["stages"].values())
    log = (run_folder / "log" / "coordinator.log").read_text()
    assert "to drain: cancelled by" in log

    detached = call("resume", run_folder, "--detach")
    assert detached.returncode == 0, detached.stderr
    assert f"follow  neuroshed status {run_folder} --watch" in detached.stdout
    lines = call("status", run_folder, "--watch", "--json").stdout.splitlines()
    seen = [json.loads(line) for line in lines]
    assert [one["state"] for one in seen] == ["running"] * (len(seen) - 1) + ["done"]
    counts = [sum(row["done"] for row in one["stages"].values()) for one in seen]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert counts[0] >= done


@pytest.mark.parametrize("cluster", ["local:2", "in-process:2"])
def test_one_ctrl_c_drains(tmp_path: Path, cluster: str) -> None:
    run_folder = tmp_path / "run"
    with started("run", write_workflow(tmp_path, shape=LONG, cluster=cluster)) as process:
        wait_until(lambda: done_so_far(run_folder))
        # As a terminal does: to all processes of the command, workers included.
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=100)
    assert process.returncode == 130
    assert re.search(r"finishing up to \d+ blocks that are at work; Ctrl-C again stops at once", told)
    assert f"run {run_folder} stopped (Ctrl-C); what is done is kept, `neuroshed resume {run_folder}` goes on" in told
    assert "Traceback" not in told
    assert neuroshed.status(run_folder)["state"] == "stopped"
    log = (run_folder / "log" / "coordinator.log").read_text()
    assert "died" not in log
    assert " is gone" not in log


def test_a_second_ctrl_c_stops_what_would_take_long(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    workflow = write_workflow(tmp_path, shape=(8, 16, 16), cluster="local:1")
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, script, "run", workflow], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: any(row["running"] for row in live(run_folder).get("stages", {}).values()))
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: live(run_folder).get("wish") == "drain")
        assert process.poll() is None
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=100)
        assert time.monotonic() - begin < 30
        assert process.returncode == 130
        assert "stopped (Ctrl-C)" in told
        assert neuroshed.status(run_folder)["state"] == "stopped"
    finally:
        end_group(process.pid)
        process.communicate()


SLOW = """
import time
from neuroshed.stages.fragments import Fragments

def run(self, step, index):
    time.sleep(600)

Fragments.run = run
if __name__ == "__main__":
    from neuroshed.cli import main
    main()
"""


def test_a_killed_coordinator_is_known_to_be_lost(run_folder: Path) -> None:
    with started("run", run_folder.with_name("workflow.yaml")) as process:
        wait_until(lambda: done_so_far(run_folder))
        process.kill()
        process.communicate(timeout=100)
    found = neuroshed.status(run_folder)
    assert (found["state"], found["live"]) == ("lost", None)
    assert found["holder"]["alive"] is False
    with pytest.raises(neuroshed.WorkflowError, match="is gone; there is nothing to cancel"):
        neuroshed.cancel(run_folder)
    told = call("status", run_folder)
    assert "lost: " in told.stdout
    assert "`neuroshed resume" in told.stdout
    assert [row["state"] for row in neuroshed.runs(run_folder.parent)] == ["lost"]


def test_one_that_does_not_answer_is_named(run_folder: Path) -> None:
    with started("run", run_folder.with_name("workflow.yaml")) as process:
        wait_until(lambda: done_so_far(run_folder))
        process.send_signal(signal.SIGSTOP)
        told = call("cancel", run_folder, "--timeout", 2)
        assert told.returncode == 1
        assert f"end process {process.pid} of this machine" in told.stderr
        process.send_signal(signal.SIGCONT)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "cancelled by" in said


def test_watching_in_a_terminal(run_folder: Path) -> None:
    neuroshed.submit(run_folder.with_name("workflow.yaml"))
    primary, secondary = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    watcher = subprocess.Popen(
        [*COMMAND, "status", run_folder, "--watch"], stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    try:
        shown = b""
        while shown.count(b"fragments") < 3:
            assert select.select([primary], [], [], 60)[0]
            shown += os.read(primary, 65536)
        # Ctrl-C ends the looking, not the run.
        watcher.send_signal(signal.SIGINT)
        # A terminal that nobody reads would hold the watcher up.
        while watcher.poll() is None:
            if select.select([primary], [], [], 0.1)[0]:
                try:
                    shown += os.read(primary, 65536)
                except OSError:
                    break
        assert watcher.wait(60) == 0
    finally:
        watcher.kill()
        watcher.wait()
        os.close(primary)
    text = shown.decode()
    assert "running, by" in text
    assert "voxels/s" in text
    assert "1 worker, CPU" in text
    holder = holder_of(Location.of(run_folder))
    assert holder is not None
    assert holder.alive
