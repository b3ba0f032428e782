"""Starting coordinators in the background, with launchers that do so and with such that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import neuroshed
from neuroshed.errors import InputError, RunFailedError, WorkflowError
from neuroshed.storage.lease import Lease
from neuroshed.storage.locations import Location
from neuroshed.workflow import launch
from neuroshed.workflow.launch import LocalLauncher, submit

from .commands import coordinator_ended, wait_until
from .held import settings


@dataclass
class Elsewhere:
    """A launcher, and what it launched: a coordinator that takes the run when it is first asked after, and puts its
    plan there when it is asked again.
    """

    lease: Lease | None
    output: Path
    code: int | None = None
    description: str = "job 17"
    waits: bool = False
    commands: list[Sequence[str]] = field(default_factory=list)

    def launch(self, command: Sequence[str], run_folder: Location) -> Elsewhere:
        self.commands.append(command)
        return self

    def alive(self) -> bool:
        if self.lease is not None:
            if self.lease.epoch:
                (self.lease.run_folder / "plan.json").put(b"[]")
            else:
                self.lease.__enter__()
        return self.code is None

    def queued(self) -> bool:
        return self.waits

    def exit_code(self) -> int | None:
        return self.code


def test_it_returns_when_the_run_is_held(tmp_path: Path) -> None:
    run = Location.of(tmp_path / "run")
    lease = Lease(run, "job")
    launcher = Elsewhere(lease, tmp_path / "output")
    try:
        found = submit(["run", "x"], run, launcher)
        assert (found["state"], found["holder"], found["coordinator"]) == ("running", str(lease.holder), "job 17")
        assert launcher.commands == [["run", "x"]]
        assert (run / "plan.json").exists()
        with pytest.raises(WorkflowError, match=r"is being worked on by job .* stop it with `neuroshed cancel"):
            submit(["run", "x"], run, launcher)
        assert len(launcher.commands) == 1
    finally:
        lease.__exit__(None, None, None)


def test_one_that_ends_before_it_holds_the_run_is_told_of(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.write_text("noise\nneuroshed: image is gone; put it back\nmore noise\n")
    with pytest.raises(RunFailedError, match="ended with exit code 2: image is gone; put it back") as caught:
        submit(["run"], Location.of(tmp_path / "run"), Elsewhere(None, output, code=2))
    assert caught.value.exit_code == 2
    assert caught.value.summary["lines"] == ["noise", "neuroshed: image is gone; put it back", "more noise"]
    output.write_text("")
    with pytest.raises(RunFailedError, match="it said nothing"):
        submit(["run"], Location.of(tmp_path / "run"), Elsewhere(None, output, code=1))


def test_one_that_waits_for_its_turn_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "QUEUE_SECONDS", 0.3)
    found = submit(["run"], Location.of(tmp_path / "run"), Elsewhere(None, tmp_path / "output", waits=True))
    assert (found["state"], found["holder"], found["coordinator"]) == ("queued", None, "job 17")


def test_one_that_was_quick_is_done(tmp_path: Path) -> None:
    found = submit(["run"], Location.of(tmp_path / "run"), Elsewhere(None, tmp_path / "output", code=0))
    assert (found["state"], found["holder"]) == ("done", None)


def test_a_command_that_fails_leaves_no_process(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="exit code 2: no workflow nowhere"):
        submit(["run", "nowhere"], Location.of(tmp_path / "run"))
    wait_until(lambda: not [child for child in psutil.Process().children() if child.status() == "zombie"])
    assert (tmp_path / "run" / "log" / "output.log").read_text().startswith("neuroshed: no workflow nowhere")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkflowError, match=r"no coordinator can be started .* choose another folder"):
        LocalLauncher().launch(["run"], Location.of(tmp_path / "file" / "run"))


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        neuroshed.submit("stitch", ["affinities=nowhere.zarr", f"output={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_a_tiny_run_in_the_background(tmp_path: Path) -> None:
    with coordinator_ended(tmp_path / "run"):
        found = neuroshed.submit("stitch", settings(tmp_path, "cluster=in-process:1"))
        assert found["state"] in ("running", "done")
        *_, last = neuroshed.follow(tmp_path / "run")
    assert last["state"] == "done"
    assert neuroshed.resume(tmp_path / "run", detach=True, verify_writes=True)["state"] in ("running", "done")
    *_, last = neuroshed.follow(tmp_path / "run")
    assert last["state"] == "done"
