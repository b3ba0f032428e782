"""How a run is asked to stop from another terminal or machine: by a file in its folder that names its coordinator."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

from neuroshed.engine.control import Control, Wish
from neuroshed.engine.providers.slurm import call_slurm
from neuroshed.errors import InputError, RunFailedError, RunStoppedError, WorkflowError
from neuroshed.storage.holders import Holder
from neuroshed.storage.lease import holder_of
from neuroshed.storage.locations import Location
from neuroshed.workflow.folder import is_run
from neuroshed.workflow.provenance import user
from neuroshed.workflow.slurm_job import waiting_jobs

REQUEST_FILE = "request.json"
ANSWER_SECONDS = 60.0
"""In which a coordinator that can reach its run folder has heard a request and ended its work."""
POLL_SECONDS = 0.5


def put_request(run_folder: Location, holder: Holder, wish: Wish) -> None:
    """Leave a request for the coordinator that holds the run, and for no other one. Raises `WorkflowError` if this user
    may not.
    """
    values = {"token": holder.token, "wish": wish.name.lower(), "by": f"{user()}@{socket.gethostname()}"}
    try:
        (run_folder / REQUEST_FILE).put(json.dumps(values).encode())
    except OSError as error:
        raise WorkflowError(
            f"run folder {run_folder} cannot be written ({error.strerror}); ask {holder.name} to cancel it"
        ) from error


def hear(run_folder: Location, holder: Holder, control: Control) -> str | None:
    """Take in a request for `holder`, by removing it, which is the answer; returns what was asked for, if anything.

    A request for an earlier coordinator is removed and comes to nothing.
    """
    file = run_folder / REQUEST_FILE
    try:
        values = json.loads(file.read_bytes())
        wish, by = Wish[values["wish"].upper()], str(values["by"])
        is_mine = values["token"] == holder.token
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        wish, by, is_mine = Wish.RUN, "", False
    file.delete()
    if not is_mine:
        return None
    control.ask(wish, f"cancelled by {by}")
    return f"{wish.name.lower()}, cancelled by {by}"


def cancel(
    run_folder: Location,
    *,
    drain: bool = False,
    timeout: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Ask the coordinator of a run to stop, and wait until it has; with `drain` it first ends what is at work.

    `timeout` in seconds, by default 60 to be heard and, but for `drain`, 60 more to stop. `tell` is called with what is
    waited for. Raises `InputError` if there is no run, `WorkflowError` if nobody works on it, `RunFailedError` if there
    is no answer.
    """
    jobs = waiting_jobs(run_folder)
    if not jobs and not is_run(run_folder):
        raise InputError(f"{run_folder} holds no run; check the path")
    holder = holder_of(run_folder)
    if jobs:
        tell(f"taking back Slurm job {', '.join(jobs)}, which was to go on with it")
        try:
            call_slurm(["scancel", *jobs])
        except OSError as error:
            raise RunFailedError(f"Slurm did not take back job {', '.join(jobs)} ({error}); try again") from error
        if holder is None:
            return
    if holder is None:
        raise WorkflowError(f"nobody works on run {run_folder}; there is nothing to cancel")
    if holder.alive is False:
        raise WorkflowError(
            f"{holder}, who worked on run {run_folder}, is gone; there is nothing to cancel, "
            f"`neuroshed resume {run_folder}` goes on"
        )
    put_request(run_folder, holder, Wish.DRAIN if drain else Wish.STOP)
    try:
        _await_end(run_folder, holder, drain, timeout, tell)
    except KeyboardInterrupt:
        raise RunStoppedError(
            f"{holder} was asked to stop run {run_folder}, and is not waited for any more; `neuroshed status "
            f"{run_folder}` shows it"
        ) from None


def _await_end(
    run_folder: Location, holder: Holder, drain: bool, timeout: float | None, tell: Callable[[str], None]
) -> None:
    patience = ANSWER_SECONDS if timeout is None else timeout
    tell(f"waiting for {holder} to hear it")
    if not _wait(lambda: _gone(run_folder, holder) or not (run_folder / REQUEST_FILE).exists(), patience):
        raise RunFailedError(_unheard(run_folder, holder, patience, "did not answer"))
    tell("it heard; waiting for the blocks that are at work" if drain else "it heard; waiting for its end")
    if not _wait(lambda: _gone(run_folder, holder), None if drain and timeout is None else patience):
        raise RunFailedError(_unheard(run_folder, holder, patience, "was asked to stop but still holds it"))


def _gone(run_folder: Location, holder: Holder) -> bool:
    now = holder_of(run_folder)
    return now is None or now.token != holder.token or now.alive is False


def _wait(condition: Callable[[], bool], seconds: float | None) -> bool:
    begin = time.monotonic()
    while not condition():
        if seconds is not None and time.monotonic() - begin > seconds:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _unheard(run_folder: Location, holder: Holder, seconds: float, what: str) -> str:
    if holder.alive:
        remedy = f"wait, or end process {holder.pid} of this machine, which leaves the run resumable"
    else:
        remedy = f"wait, or look for process {holder.pid} on {holder.host}; if that machine is gone, `neuroshed resume "
        remedy += f"{run_folder}` takes over"
    return f"{holder} works on run {run_folder} and {what} within {seconds:g} s; {remedy}"
