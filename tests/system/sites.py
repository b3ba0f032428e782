"""Places to run on, made for a test and gone after it: a Slurm of one node, and hosts that are reached by SSH."""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ..workflow.commands import free_port

SECONDS = 60.0
SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={daemon}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=10
OverTimeLimit=0
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SSHD = """\
Port 22
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
PasswordAuthentication no
StrictModes no
PermitRootLogin prohibit-password
"""


def need(*programs: str, packages: str) -> None:
    """Fail, not skip, where something is missing: these suites are there to show that it works."""
    missing = [program for program in programs if not _which(program)]
    if missing:
        pytest.fail(f"{', '.join(missing)} missing: apt-get install {packages}")


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm of one node with 8 CPUs, whatever the machine has, for this process and its children."""
    need("munged", "slurmctld", "slurmd", "sbatch", packages="slurm-wlm munge")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key, config = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = {"controller": free_port(), "daemon": free_port()}
    config.write_text(SLURM.format(folder=folder, host=host, user=getpass.getuser(), **ports))
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE.items()]
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("SLURM_CONF", str(config))
        stack.enter_context(daemon(["munged", "--foreground", "--force", *munge], folder / "munge.out"))
        wait_for(lambda: (folder / "munge.socket").exists(), "munged", folder / "munge.out")
        stack.enter_context(daemon(["slurmctld", "-D", "-f", str(config)], folder / "slurmctld.out"))
        stack.enter_context(daemon(["slurmd", "-D", "-f", str(config)], folder / "slurmd.out"))
        wait_for(lambda: "idle" in answer("sinfo", "--noheader", "--format=%T"), "slurmd", folder / "slurmd.out")
        try:
            yield
        finally:
            answer("scancel", "--user", getpass.getuser())
            wait_for(lambda: not queue(), "scancel", folder / "slurmctld.out")


MUNGE = {
    "key-file": "key",
    "socket": "socket",
    "pid-file": "pid",
    "log-file": "log",
    "seed-file": "seed",
}


def queue() -> list[str]:
    """Jobs that wait or run: number, name and state."""
    return answer("squeue", "--noheader", "--format=%i %j %T").splitlines()


def answer(*command: str) -> str:
    """What a command says, whether it succeeds or not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout


def wait_for(condition: Any, what: str, log: Path) -> None:
    """Wait until something holds; fail with a daemon's output if it does not."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} does not come up: {log.read_text()[-2000:] if log.exists() else 'no output'}")
        time.sleep(0.1)


@contextmanager
def daemon(command: Sequence[str], output: Path) -> Iterator[None]:
    """A process in the foreground, and all that it starts, ended at the end."""
    program = _which(command[0])
    assert program
    with output.open("wb") as file:
        process = subprocess.Popen([program, *command[1:]], stdout=file, stderr=file, start_new_session=True)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def ssh_hosts(folder: Path, count: int, before: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Machines with network namespaces of their own: this one's address as they reach it, and how ssh reaches them.

    They also have mounts of their own: `before` is shell that runs on each before it can be reached.
    """
    need("ip", "sshd", "ssh", "ssh-keygen", packages="openssh-server openssh-client iproute2")
    if os.geteuid():
        pytest.fail("network namespaces need root: run these tests as root, as .ci/run does")
    folder.mkdir(parents=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    net = f"10.{64 + os.getpid() % 128}"
    hosts = []
    with ExitStack() as stack:
        for number in range(count):
            address = stack.enter_context(_namespace(f"ns{os.getpid()}x{number}", f"{net}.{number}"))
            config = folder / f"sshd{number}.conf"
            config.write_text(SSHD.format(folder=folder, address=address))
            inside = ["ip", "netns", "exec", f"ns{os.getpid()}x{number}"]
            serve = shlex.join(["exec", str(_which("sshd")), "-D", "-e", "-f", str(config)])
            sshd = [*inside, "sh", "-c", f"{before}\n{serve}"]
            stack.enter_context(daemon(sshd, folder / f"sshd{number}.log"))
            options = {"UserKnownHostsFile": folder / "known", "StrictHostKeyChecking": "accept-new"}
            words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
            hosts.append({"name": address, "options": [*words, "-i", str(folder / "key")]})
            log = folder / f"sshd{number}.log"
            wait_for(lambda log=log: "listening" in log.read_text(), "sshd", log)
        yield f"{net}.0.1", hosts


def mounting(folder: Path, mountpoint: Path, seconds: float = 60.0, lost: int = 0) -> list[str]:
    """The command that is a client of a network file system over a folder (`network_files.py`)."""
    program = str(Path(__file__).with_name("network_files.py"))
    return [sys.executable, program, str(folder), str(mountpoint), str(seconds), str(lost)]


@contextmanager
def mounted(folder: Path, mountpoint: Path, seconds: float = 60.0, lost: int = 0) -> Iterator[Path]:
    """A client of a network file system over a folder, on this machine."""
    need("fusermount3", packages="fuse3")
    folder.mkdir(parents=True, exist_ok=True)
    mountpoint.mkdir(parents=True, exist_ok=True)
    log = mountpoint.with_name(f"{mountpoint.name}.log")
    with daemon(mounting(folder, mountpoint, seconds, lost), log):
        wait_for(mountpoint.is_mount, "the file system", log)
        try:
            yield mountpoint
        finally:
            subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=True)


@contextmanager
def _namespace(name: str, net: str) -> Iterator[str]:
    """A network namespace that reaches this machine at .1 of a net, where it is .2."""
    pair = f"v{name[2:]}a", f"v{name[2:]}b"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", pair[0], "type", "veth", "peer", "name", pair[1])
        ip("link", "set", pair[1], "netns", name)
        ip("addr", "add", f"{net}.1/24", "dev", pair[0])
        ip("link", "set", pair[0], "up")
        for words in (
            ("addr", "add", f"{net}.2/24", "dev", pair[1]),
            ("link", "set", pair[1], "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"{net}.1"),
        ):
            ip("-n", name, *words)
        yield f"{net}.2"
    finally:
        # The pair goes with it.
        ip("netns", "delete", name)
