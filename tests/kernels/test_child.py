"""The process beside a thread: when it starts, when it ends, and what its death does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroshed.errors import BlockError, InputError
from neuroshed.kernels import child, waterz

pytest.importorskip("waterz")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills it while it is busy")


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    if hasattr(child._threads, "child"):
        child._threads.child.stop()


def work(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A volume whose every voxel is a fragment: waterz takes 0.4 s for side 48, 1.3 s for side 64."""
    shape = (side, side, side)
    affinities = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8)
    return affinities, np.arange(1, side**3 + 1, dtype=np.uint64).reshape(shape)


def own_pid() -> int:
    """The process of this thread, which is started and warm."""
    waterz.agglomerate(*work(4), [0.5])
    return child._threads.child.process.pid


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends in time (one that nobody has reaped has ended)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if sys.platform == "linux" and ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_one_process_serves_many_calls() -> None:
    assert own_pid() == own_pid()


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"waterz is not installed; run: pip install 'neuroshed\[waterz\]'"):
        child.call("waterz.watershed", [])
    with pytest.raises(InputError, match=r"mwatershed is not installed; run: pip install 'neuroshed\[mutex\]'"):
        child.call("mwatershed.agglom", [])


def test_an_error_over_there_is_an_error_here_and_the_process_lives() -> None:
    pid = own_pid()
    with pytest.raises(BlockError, match=r"waterz.watershed failed: TypeError"):
        child.call("waterz.watershed", [np.zeros(3)], unknown=1)
    assert own_pid() == pid


def test_arrays_of_any_shape_travel() -> None:
    ours, theirs = socket.socketpair()
    arrays = [np.arange(6, dtype=np.uint16).reshape(2, 3).T, np.zeros((0, 4)), np.array(7, np.uint64), np.array([True])]
    with ours, theirs:
        child._send(ours, {"a": 1}, arrays)
        header, received = child._receive(theirs)
    assert header == {"a": 1}
    for sent, got in zip(arrays, received, strict=True):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)


def test_killed_while_idle() -> None:
    pid = own_pid()
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert own_pid() != pid


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "SIGKILL.*memory"), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGTERM, "SIGTERM")],
)
def test_killed_while_busy(number: signal.Signals, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pid = own_pid()
    send = child._send
    with monkeypatch.context() as patch:
        patch.setattr(child, "_send", lambda *message: (send(*message), os.kill(pid, number)))
        with pytest.raises(BlockError, match=f"the process that ran waterz.agglomerate died: .*{words}"):
            waterz.agglomerate(*work(48), [0.5])
    assert gone(pid)
    assert own_pid() != pid
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.sys, "executable", "/usr/bin/false")
    with pytest.raises(BlockError, match="died: exit code 1; see the worker's log"):
        own_pid()
    monkeypatch.undo()
    assert own_pid()


def test_other_threads_run_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    own_pid()
    receive = child._receive
    beats, sent = [0], []
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.002):
            beats[0] += 1

    def note_and_receive(channel: socket.socket) -> Any:
        sent.append(beats[0])
        return receive(channel)

    monkeypatch.setattr(child, "_receive", note_and_receive)
    beater = threading.Thread(target=beat)
    beater.start()
    waterz.agglomerate(*work(48), [0.5])
    answered = beats[0]
    done.set()
    beater.join()
    # About 200 where nothing else runs; none if the GIL were held.
    assert answered - sent[0] >= 5


def test_each_thread_has_its_own_until_it_ends() -> None:
    found: list[int] = []
    both = threading.Barrier(2)

    def run() -> None:
        found.append(own_pid())
        both.wait()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({own_pid(), *found}) == 3
    assert all(gone(pid) for pid in found)


SCRIPT = """
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from test_child import child, own_pid, waterz, work
print(own_pid(), flush=True)
{rest}
"""


def start_parent(rest: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has called once and goes on with `rest`, and the pid of its process."""
    script = SCRIPT.format(tests=str(Path(__file__).parent), rest=rest)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_ends_with_its_parent() -> None:
    parent, pid = start_parent("")
    with parent:
        assert parent.wait() == 0
    assert gone(pid)


@pytest.mark.parametrize("busy", [False, pytest.param(True, marks=linux_only)])
def test_ends_when_its_parent_is_killed(busy: bool) -> None:
    parent, pid = start_parent("time.sleep(60)")
    with parent:
        if busy:
            # Stopped, it cannot see its line close, no more than in the middle of a call.
            os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    assert gone(pid)


def test_an_interrupted_call_ends_its_process() -> None:
    rest = """
def interrupt(*_):
    raise KeyboardInterrupt
send = child._send
child._send = lambda *message: (send(*message), signal.setitimer(signal.ITIMER_REAL, 0.05))
signal.signal(signal.SIGALRM, interrupt)
try:
    waterz.agglomerate(*work(64), [0.5])
except KeyboardInterrupt:
    child._send = send
    print(own_pid(), flush=True)
"""
    parent, pid = start_parent(rest)
    with parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) != pid
        assert gone(pid)
        assert parent.wait() == 0


def test_a_fork_starts_its_own_and_leaves_its_parents_alone() -> None:
    rest = """
forked = os.fork()
if forked == 0:
    print(own_pid(), flush=True)
    child._current().stop()
    os._exit(0)
os.waitpid(forked, 0)
print(own_pid(), flush=True)
"""
    parent, pid = start_parent(rest)
    with parent:
        assert parent.stdout is not None
        other = int(parent.stdout.readline())
        assert other != pid
        assert int(parent.stdout.readline()) == pid
        assert parent.wait() == 0
    assert gone(pid)
    assert gone(other)
