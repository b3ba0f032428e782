"""Workers that are jobs of Slurm: one array of jobs each time that some are asked for.

Everything is told by Slurm itself: which jobs wait, run or have ended, and when a job's time is over. The jobs of a run
have its name, so that a coordinator that comes after one which died ends what that has left.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from neuroshed.engine.fleet import Member
from neuroshed.engine.joining import worker_command
from neuroshed.engine.pools import Job, Pool
from neuroshed.errors import RunFailedError, WorkflowError

ANSWER_SECONDS = 60.0
"""For a command of Slurm."""
GONE_SECONDS = 60.0
"""For cancelled jobs to leave the queue."""
WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
RUNNING = frozenset({"RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"})
_FORMAT = "%F|%K|%i|%j|%T|%e"


class SlurmJobs:
    """A `Provider` of jobs named `NAME-POOL`, which read their invitation from a file on a file system they share."""

    def __init__(self, name: str, pools: Mapping[str, Pool], invitation: Path, folder: Path, python: str) -> None:
        """`folder`, on the same file system, is for scripts and the jobs' output. Jobs of `name` that are left from an
        earlier coordinator are ended.

        Raises `WorkflowError` if Slurm does not answer.
        """
        self._name, self._pools, self._invitation, self._folder, self._python = name, pools, invitation, folder, python
        self._excluded: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.close()
        except OSError as error:
            raise WorkflowError(
                f"Slurm does not answer here ({error}); submit from a machine where `squeue` works"
            ) from error

    @property
    def logs(self) -> str:
        """Folder of one file for each job."""
        return str(self._folder)

    def start(self, pool: str, count: int) -> None:
        """Submit an array of jobs; raises `RunFailedError` with what sbatch says if it refuses."""
        script = self._folder / f"{pool}.sh"
        script.write_text(self._script(pool))
        try:
            call_slurm(["sbatch", "--parsable", f"--array=0-{count - 1}", str(script)])
        except OSError as error:
            raise RunFailedError(f"Slurm takes no workers of pool {pool} ({error}); see {script}") from error

    def members(self) -> list[Member]:
        """Jobs that wait or run, by `squeue`."""
        found = []
        for array, index, number, name, state, end in self._listed():
            pool = name.removeprefix(f"{self._name}-")
            if pool not in self._pools or state not in WAITING | RUNNING:
                continue
            # An array of which several still wait is one line: 12_[3-5].
            for place in _places(index):
                own = number if place is None else f"{array}_{place}"
                ends_at = float(end) if state in RUNNING and end.isdigit() else None
                found.append(Member(f"{pool}-{own}", pool, state in RUNNING, ends_at))
        return found

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        """Cancel jobs. Nodes that are `broken` are excluded from those of later ones."""
        jobs = [name.rpartition("-")[2] for name in names]
        if broken:
            listed = call_slurm(["squeue", "--noheader", f"--jobs={','.join(jobs)}", "--format=%N"])
            self._excluded |= {node for node in listed.split() if node}
        call_slurm(["scancel", "--quiet", *jobs])

    def close(self) -> None:
        """Cancel all jobs of this name, and wait until none is in the queue; raises OSError if Slurm is silent."""
        until = time.monotonic() + GONE_SECONDS
        while listed := self._listed():
            call_slurm(["scancel", "--quiet", *sorted({array for array, *_ in listed})])
            if time.monotonic() > until:
                raise OSError(f"jobs {', '.join(sorted({array for array, *_ in listed}))} do not end")
            time.sleep(0.5)

    def _listed(self) -> list[list[str]]:
        names = ",".join(f"{self._name}-{pool}" for pool in self._pools)
        text = call_slurm(["squeue", "--me", "--noheader", f"--name={names}", f"--format={_FORMAT}"])
        return [line.split("|") for line in text.splitlines()]

    def _script(self, name: str) -> str:
        pool = self._pools[name]
        command = worker_command(self._python, str(self._invitation), "$NAME", pool)
        options = [
            f"--job-name={self._name}-{name}",
            f"--output={self._folder}/%x-%A_%a.log",
            # A worker that is taken away is asked for anew by the coordinator.
            "--no-requeue",
            *([f"--exclude={','.join(sorted(self._excluded))}"] if self._excluded else []),
            *job_options(pool, pool.gpus),
        ]
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            pool.before.rstrip(),
            f'NAME={name}-"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"',
            "exec " + " ".join('"$NAME"' if word == "$NAME" else shlex.quote(word) for word in command),
        ]
        return "\n".join(line for line in lines if line) + "\n"


def job_options(job: Job, gpus: int = 0) -> list[str]:
    """What a job asks sbatch for."""
    given = {"gpus": gpus or None, "time": job.walltime, "partition": job.partition, "account": job.account}
    return [
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={job.cores}",
        f"--mem={-(-job.memory_bytes // 2**20)}M",
        *(f"--{key}={value}" for key, value in given.items() if value),
        *job.options,
    ]


def call_slurm(command: Sequence[str]) -> str:
    """What a command of Slurm says; raises OSError if it fails or does not answer."""
    # In a job of its own: what that was given is not meant for others.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
    environment = {**kept, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=environment, check=False
        )
    except FileNotFoundError as error:
        raise OSError(f"there is no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} gave no answer in {ANSWER_SECONDS:.0f} s") from error
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def _places(index: str) -> list[int | None]:
    """Places in an array that squeue lists together.

    >>> _places("3"), _places("[0-2,7%2]"), _places("N/A")
    ([3], [0, 1, 2, 7], [None])
    """
    found: list[int | None] = []
    for part in index.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if not first.isdigit():
            return [None]
        found += range(int(first), int(last or first) + 1)
    return found
