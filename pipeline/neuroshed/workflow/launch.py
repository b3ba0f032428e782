"""Coordinators that outlive the terminal: started here, looked after by nobody, followed through the run folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from neuroshed.errors import RunFailedError, RunStoppedError, WorkflowError
from neuroshed.storage.holders import Holder
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow.folder import PLAN_FILE
from neuroshed.workflow.logs import LOG_FOLDER, OUTPUT_FILE, last_lines, log_place
from neuroshed.workflow.summary import Summary

POLL_SECONDS = 0.2
QUEUE_SECONDS = 10.0
"""That a coordinator which waits for its turn is waited for."""


class Launched(Protocol):
    """A coordinator on its way."""

    @property
    def description(self) -> str:
        """What and where it is, for people."""

    @property
    def output(self) -> Path:
        """The file that holds what it prints."""

    def alive(self) -> bool:
        """Whether it is still on its way or at work."""

    def queued(self) -> bool:
        """Whether it waits for its turn, for which nobody knows the time."""

    def exit_code(self) -> int | None:
        """How it ended; None while it is alive, or if nobody can tell."""


class Launcher(Protocol):
    """Starts coordinators somewhere."""

    def launch(self, command: Sequence[str], run_folder: Location) -> Launched:
        """Start a command of neuroshed (`run`, ... and its arguments) that works on a run, detached from this process.

        Raises `WorkflowError` if it cannot be started.
        """


class _LocalProcess:
    """A process of this machine in a session of its own, which no terminal and no shell ends with itself."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.description = f"process {self._process.pid} of this machine"
        # Asks how it ended, whenever that is: otherwise it would stay in the list of processes as long as this one.
        threading.Thread(target=self._process.wait, name="neuroshed-reaper", daemon=True).start()

    def alive(self) -> bool:
        return self._process.poll() is None

    def queued(self) -> bool:
        return False

    def exit_code(self) -> int | None:
        return self._process.poll()


class LocalLauncher:
    """Starts coordinators as processes of this machine."""

    def launch(self, command: Sequence[str], run_folder: Location) -> Launched:
        """In the folder and environment of this process. What it prints goes to `log/output.log` of the run folder, or
        to a temporary file if that is in an object store.
        """
        folder = run_folder / LOG_FOLDER
        try:
            if folder.is_local:
                folder.make_folder()
                output = (folder / OUTPUT_FILE).local
            else:
                handle, name = tempfile.mkstemp(prefix=f"neuroshed-{run_folder.name}-", suffix=".log")
                os.close(handle)
                output = Path(name)
            return _LocalProcess([sys.executable, "-m", "neuroshed", *command], output)
        except OSError as error:
            raise WorkflowError(
                f"no coordinator can be started for run {run_folder} ({error.strerror}: {error.filename}); mend its "
                "permissions or choose another folder"
            ) from error


def submit(command: Sequence[str], run_folder: Location, launcher: Launcher | None = None) -> Summary:
    """Start a coordinator that outlives this process, and wait until it holds the run or has ended.

    Returns the run, its `state` (running, done if it ended at once, queued if it waits for its turn), who holds it, and
    where log and output are.
    Raises `WorkflowError` if somebody works on the run already, `RunFailedError` with its exit code and the last it
    said if it ended otherwise, `RunStoppedError` if Ctrl-C ends the waiting.
    """
    before = holder_of(run_folder)
    if before is not None and before.alive:
        raise WorkflowError(
            f"run {run_folder} is being worked on by {before}; wait for it, or stop it with "
            f"`neuroshed cancel {run_folder}`"
        )
    launched = (launcher or LocalLauncher()).launch(command, run_folder)
    try:
        holder, queued = _wait(launched, run_folder, before)
    except KeyboardInterrupt:
        raise RunStoppedError(
            f"{launched.description} was started for run {run_folder} and goes on by itself; `neuroshed status "
            f"{run_folder}` shows it, `neuroshed cancel {run_folder}` stops it"
        ) from None
    if holder is None and not queued and launched.exit_code() != 0:
        raise _ended(launched, run_folder)
    return {
        "run": str(run_folder),
        "state": "queued" if queued else "done" if holder is None else "running",
        "coordinator": launched.description,
        "holder": None if holder is None else str(holder),
        "log": str(log_place(run_folder)),
        "output": str(launched.output),
    }


def _wait(launched: Launched, run_folder: Location, before: Holder | None) -> tuple[Holder | None, bool]:
    """Who holds the run now, None if the coordinator ended before it was seen to hold it; and whether it waits."""
    begin = time.monotonic()
    while launched.alive():
        holder = holder_of(run_folder)
        # Whoever asks after the run now must find its plan.
        if holder is not None and holder != before and (run_folder / PLAN_FILE).exists():
            return holder, False
        if time.monotonic() - begin > QUEUE_SECONDS and launched.queued():
            return None, True
        time.sleep(POLL_SECONDS)
    return None, False


def _ended(launched: Launched, run_folder: Location) -> RunFailedError:
    code, lines = launched.exit_code(), last_lines(launched.output)
    told = [line for line in lines if line.startswith("neuroshed: ")] or lines
    reason = told[-1].removeprefix("neuroshed: ") if told else "it said nothing"
    error = RunFailedError(f"the coordinator of run {run_folder} ended with exit code {code}: {reason}")
    summary: dict[str, Any] = {"run": str(run_folder), "state": "ended", "exit_code": code, "lines": lines}
    error.summary = summary
    error.exit_code = 1 if code is None else code
    return error
