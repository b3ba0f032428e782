"""How a run stands: at work, ended in any way, seen quickly or thoroughly, on one screen."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

import neuroshed
from neuroshed.cli import main
from neuroshed.engine import failures
from neuroshed.engine.control import Control, Wish
from neuroshed.errors import InputError, RunFailedError, RunStoppedError
from neuroshed.geometry import Vec
from neuroshed.storage import holders
from neuroshed.storage.holders import Holder
from neuroshed.storage.journal import read_ledger
from neuroshed.storage.lease import Lease, holder_of
from neuroshed.storage.ledger import Ledger
from neuroshed.storage.locations import Location
from neuroshed.terminal.state import screen, title
from neuroshed.workflow import sessions
from neuroshed.workflow import status as status_module
from neuroshed.workflow import summary as summary_module
from neuroshed.workflow.live import HOSTS_SHOWN, gather
from neuroshed.workflow.status import glance

from .commands import wait_until
from .held import before_blocks, failing, halted, settings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ON_DISK", sessions.Every(live=0.05, requests=0.05, log=0.05))


def shown(summary: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(screen(summary))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return text


def test_a_run_at_work_is_shown_with_its_coordinator(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with halted(settings(tmp_path)) as (future, go_on):
        holder = holder_of(Location.of(run))
        assert holder is not None
        found = wait_until(lambda: (s := neuroshed.status(run))["live"] and s["live"]["workers"]["workers"] and s)
        assert (found["state"], found["status"]) == ("running", "unfinished")
        assert found["holder"] == {
            "name": holder.name,
            "host": holder.host,
            "pid": holder.pid,
            "alive": True,
            "text": str(holder),
        }
        row = found["stages"]["fragments"]
        assert (row["blocks"], row["done"], row["failed"]) == (16, 0, 0)
        assert row["running"] >= 1
        assert row["running"] + row["waiting"] == 16
        assert found["live"]["seconds_left"] is None
        assert found["live"]["workers"]["threads"] == 2
        assert found["live"]["memory_bytes"] > 0
        quick_look = glance(Location.of(run))
        assert quick_look["stages"]["fragments"]["running"] == row["running"]
        assert quick_look["state"] == "running"
        text = shown(found)
        assert f"running, by {holder}, since 20" in text
        assert "time left unknown until the first blocks of fragments and 2 more stages are done" in text
        assert "1 worker, CPU" in text
        assert "by prediction" in text
        assert f"log: {run}" in text.replace("\n", "")
        following = neuroshed.follow(run, 0.05)
        assert next(following)["state"] == "running"
        with pytest.raises(neuroshed.WorkflowError, match="is being worked on by"):
            neuroshed.clean(run)
        go_on.set()
        *_, last = following
        summary = future.result()
    assert last["state"] == last["status"] == "done"
    assert last["stages"] == summary["stages"]
    assert not (run / "live.json").exists()
    assert glance(Location.of(run)) == neuroshed.status(run) == last
    assert "done since 20" in shown(last)
    assert "100 %" in shown(last)


def test_a_run_that_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with Lease(Location.of(run), "alice") as lease:
        found = neuroshed.status(run)
        assert (found["state"], found["status"], found["stages"]) == ("starting", "unfinished", {})
        assert found["holder"]["text"] == str(lease.holder)
        told = CliRunner().invoke(main, ["status", str(run)])
        assert (told.exit_code, told.stderr) == (0, "")
        assert f"being started, by alice (process {lease.holder.pid} on" in " ".join(told.stdout.split())
        assert "stage" not in told.stdout
        (row,) = neuroshed.runs(tmp_path)
        assert (row["name"], row["state"], row["holder"], row["blocks"]) == ("run", "starting", str(lease.holder), 0)
        listed = CliRunner().invoke(main, ["runs", str(tmp_path)]).stdout
        assert " starting " in listed
        following = neuroshed.follow(run, 0.0)
        assert [next(following)["state"] for _ in range(3)] == ["starting"] * 3
        with monkeypatch.context() as patch:
            patch.setattr(holders, "_machine", lambda: ("elsewhere", "another boot", "pid:[1]"))
            assert "cannot be seen from here" in title(neuroshed.status(run))
    with pytest.raises(InputError, match="holds no run"):
        neuroshed.status(run)


def test_a_run_that_ends_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with halted(settings(tmp_path)) as (future, go_on):

        def read(run_folder: Location) -> Ledger:
            ledger = read_ledger(run_folder)
            go_on.set()
            future.result()
            return ledger

        monkeypatch.setattr(status_module, "read_ledger", read)
        found = neuroshed.status(run)
    # What was read is of a run at work, and so is all that is told.
    assert (found["state"], found["status"], found["holder"]["alive"]) == ("running", "unfinished", True)
    monkeypatch.undo()
    assert neuroshed.status(run)["state"] == "done"


def test_a_run_that_is_given_back_while_its_holder_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with halted(settings(tmp_path)) as (future, go_on):

        def look(run_folder: Location) -> Holder | None:
            holder = holder_of(run_folder)
            go_on.set()
            future.result()
            return holder

        monkeypatch.setattr(status_module, "holder_of", look)
        found = neuroshed.status(run)
    assert (found["state"], found["holder"]) == ("done", None)


def test_figures_of_another_machine_are_shown_with_their_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with halted(settings(tmp_path)):
        wait_until(lambda: neuroshed.status(run)["live"])
        monkeypatch.setattr(holders, "_machine", lambda: ("elsewhere", "another boot", "pid:[1]"))
        # However wrong the clock here.
        monkeypatch.setattr(time, "time", lambda now=time.time: now() + 5000)
        found = neuroshed.status(run)
        assert (found["state"], found["holder"]["alive"]) == ("running", None)
        assert "cannot be seen from here, figures written 1 h 23 min ago by its clock)" in title(found)
        monkeypatch.undo()


def test_figures_of_an_earlier_session_are_not_shown(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with halted(settings(tmp_path)):
        stale = wait_until(lambda: (run / "live.json").exists() and (run / "live.json").read_text())
    values = json.loads(stale) | {"token": "of another"}
    with halted(settings(tmp_path, "fragments.small=11")):
        wait_until(lambda: neuroshed.status(run)["live"])
        wait_until(lambda: _replaced(run / "live.json", json.dumps(values), lambda: neuroshed.status(run)))


def _replaced(file: Path, text: str, look: Any) -> bool:
    file.write_text(text)
    found = look()
    return found["live"] is None and title(found).endswith("starting")


@pytest.mark.parametrize("wish", [Wish.DRAIN, Wish.STOP])
def test_a_run_that_was_asked_to_stop(tmp_path: Path, wish: Wish) -> None:
    control = Control()
    with halted(settings(tmp_path), control) as (future, go_on):
        wait_until(lambda: neuroshed.status(tmp_path / "run")["live"])
        control.ask(wish, "enough")
        shows = wait_until(
            lambda: (s := neuroshed.status(tmp_path / "run"))["live"] and s["live"]["wish"] != "run" and s
        )
        assert ("finishing blocks at work" if wish == Wish.DRAIN else "stopping") in title(shows)
        assert "(enough)" in title(shows)
        go_on.set()
        with pytest.raises(RunStoppedError, match=r"stopped \(enough\); what is done is kept") as caught:
            future.result()
    found = neuroshed.status(tmp_path / "run")
    assert (found["state"], found["status"]) == ("stopped", "unfinished")
    assert found["ended"]["reason"] == "enough"
    assert "(enough); `neuroshed resume" in title(found)
    assert caught.value.exit_code == 130
    assert caught.value.summary["stages"] == found["stages"]
    assert 0 <= found["stages"]["fragments"]["done"] < 16
    assert neuroshed.run("stitch", settings(tmp_path))["status"] == "done"


def test_failures_are_told_with_all_that_is_known(tmp_path: Path) -> None:
    with failing((0, 0, 1), (1, 1, 1)), pytest.raises(RunFailedError) as caught:
        neuroshed.run("stitch", settings(tmp_path))
    found = neuroshed.status(tmp_path / "run")
    assert found["state"] == "failed"
    assert found["failures"] == caught.value.summary["failures"]
    assert found["stages"]["fragments"] == caught.value.summary["stages"]["fragments"]
    assert found["stages"]["fragments"]["failed"] == 2
    (first, second) = found["failures"]
    assert {tuple(first["block"]), tuple(second["block"])} == {(0, 0, 1), (1, 1, 1)}
    assert (first["attempts"], first["host"] != "", first["worker"] != "") == (3, True, True)
    text = shown(found)
    assert "failed: fragments [0, 0, 1], 3 attempts, worker" in text
    assert "  BlockError: this block is damaged" in text
    assert "Traceback" not in text
    told = CliRunner().invoke(main, ["status", str(tmp_path / "run"), "--errors", "1"])
    assert told.stdout.count("Traceback") == 1
    log = (tmp_path / "run" / "log" / "coordinator.log").read_text()
    assert "set aside after 3 attempts: fragments" in log
    assert "ended by RunFailedError" in log


def test_failures_that_are_alike_are_told_with_the_traceback_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(index: Vec) -> None:
        raise neuroshed.BlockError(f"no data at {index}")

    def told() -> str:
        result = CliRunner().invoke(main, ["status", str(run), "--errors", "4"])
        assert result.exit_code == 0
        return result.stdout

    run = tmp_path / "run"
    monkeypatch.setattr(failures, "FULL_FAILURES", 0)
    with before_blocks(fail), pytest.raises(RunFailedError, match="16 blocks of run"):
        neuroshed.run("stitch", settings(tmp_path, "failures.attempts=1"))
    first, *others = neuroshed.status(run)["failures"]
    assert len(others) == 15
    assert (first["like"], "Traceback" in first["trace"]) == (None, True)
    assert {(row["trace"], len(row["log"]), str(row["like"]["block"])) for row in others} == {
        ("", 0, str(first["block"]))
    }
    left_out = f"  traceback and log lines left out: they were like those of fragments {first['block']}\n"
    assert (told().count("Traceback"), told().count(left_out)) == (1, 4)
    assert "16 failed in all; --errors 16 shows" in told()
    with pytest.raises(RunFailedError):
        neuroshed.retry(run, blocks=[tuple(first["block"])])
    # That one is done.
    assert (told().count("Traceback"), told().count(left_out)) == (0, 4)


def test_failures_that_are_not_told_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_module, "FAILURES_TOLD", 7)
    with before_blocks(lambda index: 1 / 0), pytest.raises(RunFailedError):  # type: ignore[arg-type, return-value]
        neuroshed.run("stitch", settings(tmp_path, "failures.attempts=1"))
    found = neuroshed.status(tmp_path / "run")
    assert (len(found["failures"]), found["failures_left_out"], found["stages"]["fragments"]["failed"]) == (7, 9, 16)
    text = CliRunner().invoke(main, ["status", str(tmp_path / "run"), "--errors", "10"]).stdout
    assert "16 failed in all" in text
    assert "3 more failures are not told one by one" in text
    assert text.count("Traceback") == 7


def test_blocks_that_were_dropped_count_as_done(tmp_path: Path) -> None:
    ran = neuroshed.run("stitch", settings(tmp_path, "keep=[segmentation]"))
    found = neuroshed.status(tmp_path / "run")
    assert (found["state"], found["status"]) == ("done", "done")
    assert {name: row["done"] for name, row in found["stages"].items()} == {
        name: row["blocks"] for name, row in ran["stages"].items()
    }


def test_what_is_left_beside_a_run(tmp_path: Path) -> None:
    summary = neuroshed.run("stitch", settings(tmp_path))
    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    (entry,) = json.loads((run / "provenance.json").read_text())
    assert entry["neuroshed"] == neuroshed.__version__
    assert entry["gpus"] is not None
    lines = (run / "log" / "coordinator.log").read_text().splitlines()
    for part in ("session of process", "cluster: {", "stages: fragments", "joined", "ended: everything is done"):
        assert any(part in line for line in lines), part
    neuroshed.resume(run)
    assert len(json.loads((run / "provenance.json").read_text())) == 2


def test_a_folder_that_cannot_be_written_for_a_while_does_not_end_the_run(tmp_path: Path) -> None:
    # What others see is put in the way of, by a folder of the file's name.
    with halted(settings(tmp_path)) as (future, go_on):
        run = tmp_path / "run"
        wait_until(lambda: (run / "live.json").exists())
        (run / "request.json").mkdir()
        log = run / "log" / "coordinator.log"
        wait_until(lambda: "others cannot follow run" in log.read_text())
        go_on.set()
        assert future.result()["status"] == "done"
    assert log.read_text().count("others cannot follow run") == 1
    (run / "request.json").rmdir()


def worker(host: str, **metrics: float) -> dict[str, Any]:
    return {"host": host, "nthreads": 2, "memory_limit": 100, "metrics": {"cpu": 50.0, "memory": 10, **metrics}}


def test_what_workers_use_in_all_and_by_host() -> None:
    gpu = {"gpu_utilization": 80, "gpu-memory-used": 7}
    found = gather({"a": worker("one"), "b": worker("one", **gpu), "c": worker("two", cpu=150.0, gpu_utilization=20)})
    assert (found["workers"], found["threads"], found["gpus"]) == (3, 6, 2)
    # In percent of all threads: 250 of 600.
    assert (found["cpu_percent"], found["gpu_percent"]) == (41.7, 50.0)
    assert (found["memory_bytes"], found["memory_limit_bytes"], found["gpu_memory_bytes"]) == (30, 300, 7)
    assert [row["host"] for row in found["hosts"]] == ["one", "two"]
    assert found["hosts"][0]["workers"] == 2
    assert gather({"a": worker("one"), "b": worker("one")}, 100)["memory_limit_bytes"] == 100
    many = gather({str(number): worker(f"host{number}") for number in range(HOSTS_SHOWN + 3)})
    assert (len(many["hosts"]), many["more_hosts"]) == (HOSTS_SHOWN, 3)
    # A thousand workers are told in a few kilobytes.
    assert len(json.dumps(gather({str(n): worker(f"host{n}") for n in range(1000)}))) < 10_000
    assert gather({})["gpu_percent"] is None


def test_a_large_cluster_on_one_screen(tmp_path: Path) -> None:
    neuroshed.run("stitch", settings(tmp_path))
    found = neuroshed.status(tmp_path / "run")
    gpu = {"gpu_utilization": 80, "gpu-memory-used": 7 << 30}
    found |= {
        "state": "running",
        "holder": {"text": "alice (process 12 on login)", "alive": True},
        "live": {
            "began": 0.0,
            "time": 4000.0,
            "wish": "run",
            "reason": "",
            "note": "waiting for workers",
            "seconds_left": 90_000.0,
            "memory_bytes": 3 << 30,
            "failed": 40,
            "age_seconds": 1.0,
            "workers": gather({str(n): worker(f"gpu{n:03}", **gpu) for n in range(100)}),
            "pools": {"gpu": {"connected": 100, "queued": 7}, "cpu": {"connected": 0, "queued": 0}},
        },
        "failures": [failure(n) for n in range(20)],
        "failures_left_out": 20,
    }
    text = shown(found)
    assert len(text.splitlines()) < 40
    assert "about 1 d 1 h left, at the speed so far" in text
    assert "100 workers, CPU 25 %, memory 1000 B of 9.8 KiB, 100 GPUs 80 %, 700.0 GiB" in text
    assert "and 92 more hosts" in text
    assert "pools: gpu 100 and 7 in the queue, cpu 0" in text
    assert "waiting for workers" in text
    assert "40 failed in all; --errors 40 shows" in text
    assert "for 1 h 6 min" in text


def failure(number: int) -> dict[str, Any]:
    return {
        "stage": "predict",
        "step": "",
        "block": [number, 0, 0],
        "error": "RuntimeError: " + "long " * 100,
        "trace": "",
        "worker": "3",
        "host": "gpu003",
        "attempts": 3,
        "log": [],
        "like": None,
    }
