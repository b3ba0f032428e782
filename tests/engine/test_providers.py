"""Providers against stand-ins of what they talk to; against the real ones see `tests/system/test_clusters.py`."""

from __future__ import annotations

import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroshed.engine.fleet import Member
from neuroshed.engine.hosting import INVITATION_FILE, run_name, written
from neuroshed.engine.joining import Invitation, _layout, join
from neuroshed.engine.pools import Pool
from neuroshed.engine.providers.processes import HeldProcesses, Place
from neuroshed.engine.providers.slurm import SlurmJobs
from neuroshed.errors import RunFailedError, WorkflowError
from neuroshed.storage.locations import Location

INVITATION = Invitation("tls://10.0.0.1:8786", "a certificate", "a-secret-key")
Slurm = Callable[[str, str], None]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Commands of Slurm that do what they are told in a line of shell; their arguments go to `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def command(name: str, body: str) -> None:
        file = folder / name
        file.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{body}\n')
        file.chmod(0o755)

    for name in ("squeue", "sbatch", "scancel"):
        command(name, "")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return command


def jobs(tmp_path: Path, **pools: Pool) -> SlurmJobs:
    return SlurmJobs("neuroshed-1234", pools or {"cpu": Pool(memory_gb=2)}, tmp_path / "i", tmp_path / "w", "/py thon")


def test_jobs_are_read_as_squeue_lists_them(slurm: Slurm, tmp_path: Path) -> None:
    provider = jobs(tmp_path, cpu=Pool(memory_gb=1), gpu=Pool(memory_gb=1))
    lines = [
        "12|3-4|12_[3-4]|neuroshed-1234-cpu|PENDING|N/A",
        "12|0|13|neuroshed-1234-cpu|RUNNING|1795938084",
        "12|1|14|neuroshed-1234-cpu|COMPLETING|1795938084",
        "15|0|15|neuroshed-1234-gpu|CONFIGURING|1795938084",
        "16|0|16|neuroshed-1234-other|RUNNING|1795938084",
    ]
    slurm("squeue", "\n".join(f"echo '{line}'" for line in lines))
    assert provider.members() == [
        Member("cpu-12_3", "cpu", running=False),
        Member("cpu-12_4", "cpu", running=False),
        Member("cpu-12_0", "cpu", running=True, ends_at=1795938084.0),
        Member("gpu-15_0", "gpu", running=False),
    ]
    provider.stop(["cpu-12_3", "gpu-15_0"])
    assert "scancel --quiet 12_3 15_0" in (tmp_path / "calls").read_text()


def test_a_script_says_all_that_a_pool_has(slurm: Slurm, tmp_path: Path) -> None:
    gpu = Pool(
        memory_gb=64, cores=4, gpus=2, walltime="08:00:00", partition="fast", account="lab",
        options=("--constraint=a100",), before="module load cuda\nexport X=1",
    )  # fmt: skip
    provider = jobs(tmp_path, gpu=gpu)
    provider.start("gpu", 3)
    assert f"sbatch --parsable --array=0-2 {tmp_path}/w/gpu.sh" in (tmp_path / "calls").read_text()
    lines = (tmp_path / "w" / "gpu.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert asked >= {
        "--job-name=neuroshed-1234-gpu", "--cpus-per-task=4", "--mem=61036M", "--gpus=2", "--time=08:00:00",
        "--partition=fast", "--account=lab", "--constraint=a100", "--no-requeue",
    }  # fmt: skip
    assert lines[-4:-1] == [
        "module load cuda",
        "export X=1",
        'NAME=gpu-"$SLURM_ARRAY_JOB_ID"_"$SLURM_ARRAY_TASK_ID"',
    ]
    assert lines[-1].startswith(f"exec '/py thon' -m neuroshed worker {tmp_path}/i --name \"$NAME\" --cores 4 ")


def test_what_slurm_refuses_is_told_in_its_words(slurm: Slurm, tmp_path: Path) -> None:
    provider = jobs(tmp_path)
    slurm("sbatch", "echo 'sbatch: error: invalid partition specified: fast' >&2; exit 1")
    with pytest.raises(RunFailedError, match=r"no workers of pool cpu .*invalid partition specified: fast"):
        provider.start("cpu", 1)
    slurm("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(OSError, match="Unable to contact"):
        provider.members()
    with pytest.raises(WorkflowError, match=r"Slurm does not answer .*Unable to contact"):
        jobs(tmp_path)


def test_nodes_that_are_broken_are_excluded(slurm: Slurm, tmp_path: Path) -> None:
    provider = jobs(tmp_path)
    slurm("squeue", 'case "$*" in *--jobs=12_3*) echo node7;; esac')
    provider.stop(["cpu-12_3"], broken=True)
    assert "scancel --quiet 12_3" in (tmp_path / "calls").read_text()
    slurm("squeue", "")
    provider.start("cpu", 1)
    assert "#SBATCH --exclude=node7\n" in (tmp_path / "w" / "cpu.sh").read_text()


def test_jobs_of_an_earlier_coordinator_are_ended_first(slurm: Slurm, tmp_path: Path) -> None:
    line = "12|0|12|neuroshed-1234-cpu|RUNNING|1"
    slurm("squeue", f"test -e {tmp_path}/cancelled || echo '{line}'")
    slurm("scancel", f"touch {tmp_path}/cancelled")
    jobs(tmp_path)
    assert "scancel --quiet 12\n" in (tmp_path / "calls").read_text()


PROGRAM = """
import json, sys
told = json.loads(sys.stdin.readline())
with open(sys.argv[1], "w") as file:
    print(sys.argv[2], told["scheduler"], told["key"], file=file)
sys.stdin.read()
"""


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_held_processes_get_their_invitation_and_end_with_their_input(tmp_path: Path) -> None:
    def place(name: str, scheduler: str | None = None) -> Place:
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / name)]
        return Place("cpu", name, lambda worker: [*program, worker], scheduler=scheduler)

    provider = HeldProcesses([place("a"), place("b", "tls://other:1")], INVITATION, tmp_path / "logs")
    provider.start("gpu", 1)
    assert not provider.members()
    provider.start("cpu", 5)
    assert [member.name for member in provider.members()] == ["cpu-a-1", "cpu-b-2"]
    until(lambda: (tmp_path / "b").exists() and (tmp_path / "b").read_text())
    until(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text())
    assert (tmp_path / "a").read_text() == "cpu-a-1 tls://10.0.0.1:8786 a-secret-key\n"
    assert (tmp_path / "b").read_text() == "cpu-b-2 tls://other:1 a-secret-key\n"
    provider.stop(["cpu-a-1"])
    until(lambda: len(provider.members()) == 1)
    # Its place is free again, under another name.
    provider.start("cpu", 1)
    assert [member.name for member in provider.members()] == ["cpu-b-2", "cpu-a-3"]
    provider.close()
    assert not provider.members()


def test_a_place_that_is_broken_is_not_used_again(tmp_path: Path) -> None:
    def place(name: str) -> Place:
        return Place("cpu", name, lambda worker: [sys.executable, "-c", PROGRAM, str(tmp_path / name), worker])

    provider = HeldProcesses([place("a"), place("b")], INVITATION, tmp_path / "logs")
    provider.start("cpu", 2)
    provider.stop(["cpu-a-1"], broken=True)
    until(lambda: len(provider.members()) == 1)
    provider.start("cpu", 2)
    assert [member.name for member in provider.members()] == ["cpu-b-2"]
    provider.close()


def test_places_of_two_pools_may_have_one_name(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    places = [Place(pool, "0", lambda worker: program) for pool in ("gpu", "cpu")]
    provider = HeldProcesses(places, INVITATION, tmp_path)
    provider.start("gpu", 1)
    provider.start("cpu", 1)
    provider.start("cpu", 1)
    assert [member.pool for member in provider.members()] == ["gpu", "cpu"]
    provider.close()


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    provider = HeldProcesses([Place("cpu", "a", lambda name: ["/no/such/ssh"])], INVITATION, tmp_path)
    with pytest.raises(WorkflowError, match="cannot be started with /no/such/ssh"):
        provider.start("cpu", 1)


def test_an_invitation_is_for_its_owner_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / INVITATION_FILE).write_text("of an earlier session")
    with written(INVITATION, tmp_path / "w") as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Invitation.parse(path.read_text(), "x") == INVITATION
    assert not path.exists()
    with pytest.raises(WorkflowError, match="its run is over, or elsewhere"):
        join(str(path), "cpu-1", 1, 1.0, 0)


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"scheduler": "x"}), json.dumps({"other": 1})])
def test_what_is_no_invitation_is_refused(text: str) -> None:
    with pytest.raises(WorkflowError, match="here is no invitation"):
        Invitation.parse(text, "here")


def test_each_gpu_has_a_process_and_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one, two = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}
    assert _layout(5, 2) == [(3, one), (2, two)]
    # Of those that Slurm gives.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert _layout(2, 2) == [(1, {"CUDA_VISIBLE_DEVICES": "4"}), (1, {"CUDA_VISIBLE_DEVICES": "7"})]
    assert _layout(3, 0) == [(1, {})] * 3


def test_the_name_of_a_run_is_its_folder_s() -> None:
    names = {run_name(Location.of(folder)) for folder in ("/a/run1", "/a/run2", "/a/run1")}
    assert len(names) == 2
    assert all(len(name) == len("neuroshed-") + 8 for name in names)
