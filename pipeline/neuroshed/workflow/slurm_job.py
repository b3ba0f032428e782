"""Coordinators that are jobs of Slurm, which go on in another job when their time is over."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from neuroshed.engine.config import ClusterConfig
from neuroshed.engine.hosting import FOLDER, run_name, shared_folder
from neuroshed.engine.pools import Job
from neuroshed.engine.providers.slurm import RUNNING, WAITING, call_slurm, job_options
from neuroshed.errors import WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.workflow.folder import WORKFLOW_FILE
from neuroshed.workflow.launch import Launched, Launcher, LocalLauncher

ROLE = "coordinator"
DEFAULT = Job(cores=2, memory_gb=8)
LEAD_SECONDS = 300
"""Before the end of its job, in which a coordinator lets workers finish what they are at."""
LAST_SECONDS = 30
"""Of these, for what must be left if that takes too long."""
_SCRIPT = """\
#!/bin/bash
{options}
{before}
exit_code() {{ echo "$1" > {exit_file}; exit "$1"; }}
# Slurm tells the script that its time is nearly over: what is at work is finished, and another job goes on.
leave() {{
    leaving=1
    {neuroshed} cancel --drain {run} &
    {{ sleep {patience}; kill -TERM "$coordinator"; }} &
    impatient=$!
}}
trap leave USR1
if [ "$1" = again ]; then
    {neuroshed} {again} &
else
    {neuroshed} {command} &
fi
coordinator=$!
wait "$coordinator"
code=$?
if [ -n "$leaving" ]; then
    # The signal has ended the waiting, not the coordinator.
    wait "$coordinator"
    code=$?
    kill "$impatient"
    if [ "$code" -eq {stopped} ]; then
        sbatch {script} again
        exit
    fi
fi
exit_code "$code"
"""
_STOPPED = 130
"""Exit code of a command that was asked to stop."""


def launcher_for(cluster: ClusterConfig) -> Launcher:
    """What starts coordinators of runs on a cluster."""
    return SlurmLauncher(cluster) if cluster.kind == "slurm" else LocalLauncher()


def waiting_jobs(run_folder: Location) -> list[str]:
    """Numbers of jobs of a run's coordinator that have not begun; none of runs that are not for Slurm."""
    try:
        if not _is_for_slurm(run_folder):
            return []
        name = f"--name={run_name(run_folder)}-{ROLE}"
        listed = call_slurm(["squeue", "--me", "--noheader", name, "--format=%i|%T"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    jobs = (line.split("|") for line in listed.splitlines())
    return [number for number, state in jobs if state in WAITING]


def _is_for_slurm(run_folder: Location) -> bool:
    """Whether a run was begun on Slurm, or a coordinator submitted there that is to begin it."""
    if run_folder.is_local and (run_folder / FOLDER / f"{ROLE}.sh").exists():
        return True
    return bool(yaml.safe_load((run_folder / WORKFLOW_FILE).read_bytes())["cluster"]["kind"] == "slurm")


class _Job:
    """A job of Slurm that is a coordinator."""

    def __init__(self, number: str, output: Path, exit_file: Path) -> None:
        self.description, self.output = f"Slurm job {number}", output
        self._number, self._exit_file = number, exit_file

    def alive(self) -> bool:
        return self._state() in WAITING | RUNNING

    def queued(self) -> bool:
        return self._state() in WAITING

    def exit_code(self) -> int | None:
        try:
            return int(self._exit_file.read_text())
        except (OSError, ValueError):
            return None

    def _state(self) -> str:
        try:
            listed = call_slurm(["squeue", "--me", "--noheader", "--format=%i|%T"])
        except OSError:
            # It was submitted; of a Slurm that is silent for a while nothing else is known.
            return "PENDING"
        states = dict(line.split("|") for line in listed.splitlines())
        return str(states.get(self._number, ""))


class SlurmLauncher:
    """Submits coordinators as jobs."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster

    def launch(self, command: Sequence[str], run_folder: Location) -> Launched:
        """Submit a job in the folder and environment of this process.

        Raises `WorkflowError` with what sbatch says if it refuses.
        """
        folder = self._cluster.folder or shared_folder(run_folder)
        job, name = self._cluster.coordinator or DEFAULT, run_name(run_folder)
        script, exit_file = folder / f"{ROLE}.sh", folder / f"{ROLE}.exit"
        output = f"{folder}/{name}-{ROLE}-%j.log"
        lead = min(LEAD_SECONDS, job.walltime_seconds // 4 or LEAD_SECONDS)
        options = [
            f"--job-name={name}-{ROLE}",
            f"--output={output}",
            f"--signal=B:USR1@{lead}",
            "--requeue",
            *job_options(job),
        ]
        text = _SCRIPT.format(
            options="\n".join(f"#SBATCH {option}" for option in options),
            before=job.before.rstrip(),
            exit_file=shlex.quote(str(exit_file)),
            neuroshed=shlex.join([self._cluster.python, "-m", "neuroshed"]),
            run=shlex.quote(str(run_folder)),
            patience=max(lead - LAST_SECONDS, 1),
            command=shlex.join(command),
            # What was to be tried again is no failure any more.
            again=shlex.join(["resume", str(run_folder)] if command[0] == "retry" else command),
            stopped=_STOPPED,
            script=shlex.quote(str(script)),
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            exit_file.unlink(missing_ok=True)
            script.write_text(text)
            number = call_slurm(["sbatch", "--parsable", str(script)]).strip().partition(";")[0]
        except OSError as error:
            raise WorkflowError(f"no coordinator can be submitted for run {run_folder} ({error})") from error
        return _Job(number, Path(output.replace("%j", number)), exit_file)
