"""A block that takes too long ends with its process, whatever it holds, and what a process dies of can be read."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from neuroshed.engine import watchdog
from neuroshed.engine.watchdog import Left, at_work, fault_file, limit, read_fault, take_faults
from neuroshed.errors import BlockError

SPAWN = multiprocessing.get_context("spawn")
LONGEST = 60.0

PREAMBLE = """
import ctypes, threading, time
from pathlib import Path
from neuroshed.engine.watchdog import limit

def kernel(seconds):
    # Called through PyDLL, it never lets go of the interpreter.
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where processes that this test starts leave what they die of."""
    monkeypatch.setenv(watchdog.FAULTS, str(tmp_path))
    monkeypatch.delenv(watchdog.WORKER, raising=False)
    return tmp_path


def start(code: str) -> BaseProcess:
    """A child process that runs `code`."""
    process = SPAWN.Process(target=exec, args=(PREAMBLE + code, {}))
    process.start()
    return process


def end_of(code: str) -> BaseProcess:
    """A child process that ran `code`."""
    process = start(code)
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail("the process did not end")
    return process


def fault(folder: Path, process: BaseProcess) -> str:
    text = read_fault(folder, process.pid or 0)
    assert text is not None
    assert not list(folder.glob("fault-*")), "read once, it is gone"
    return text


def test_a_kernel_that_holds_the_interpreter_ends_with_its_process(folder: Path) -> None:
    process = end_of("with limit(0.5, 'fragments [0, 1, 2]'): kernel(1000)")
    assert process.exitcode == 1
    text = fault(folder, process)
    first = text.splitlines()[0]
    assert "ended at the time limit" in first
    assert "(at work: fragments [0, 1, 2], limit 0.5 s)" in first
    assert "in kernel" in text
    assert read_fault(folder, process.pid or 0) is None


def test_a_block_in_time_leaves_no_timer(folder: Path) -> None:
    code = """
for number in range(100):
    with limit(1, f"block {number}"): pass
try:
    with limit(1, "one that fails"): raise KeyError
except KeyError: pass
kernel(2.5)
"""
    process = end_of(code)
    assert process.exitcode == 0
    assert read_fault(folder, process.pid or 0) is None
    assert not list(folder.glob("fault-*"))


LONG_AND_SHORT = """
def long():
    with limit({long}, "the long one"):
        inside.set()
        # The other one begins later and has to end earlier.
        over.wait()
        {rest}
inside, over = threading.Event(), threading.Event()
thread = threading.Thread(target=long)
thread.start()
inside.wait()
with limit({short}, "the short one"): {block}
over.set()
thread.join()
"""


@pytest.mark.parametrize(
    ("settings", "status", "named"),
    [
        (
            {"long": 1000, "rest": "", "short": 0.5, "block": "kernel(1000)"},
            1,
            "the short one, limit 0.5 s; the long one, limit 1000 s",
        ),
        # The short one's limit goes with it, the long one's stays.
        ({"long": 1000, "rest": "time.sleep(1.5)", "short": 1, "block": "pass"}, 0, None),
        ({"long": 2, "rest": "kernel(1000)", "short": 1, "block": "pass"}, 1, "the long one, limit 2 s"),
        (
            {"long": None, "rest": "", "short": 0.5, "block": "kernel(1000)"},
            1,
            "the short one, limit 0.5 s; the long one",
        ),
    ],
)
def test_threads_have_a_limit_each(folder: Path, settings: dict[str, object], status: int, named: str | None) -> None:
    process = end_of(LONG_AND_SHORT.format(**settings))
    assert process.exitcode == status
    if named is None:
        assert read_fault(folder, process.pid or 0) is None
    else:
        text = fault(folder, process)
        assert text.splitlines()[0].endswith(f"(at work: {named})")
        # Tracebacks of both threads.
        assert len(re.findall("^(?:Current thread|Thread) 0x", text, re.MULTILINE)) == 2


@pytest.mark.parametrize("seconds", [None, 100])
def test_a_segmentation_fault_leaves_a_traceback(folder: Path, seconds: float | None) -> None:
    process = end_of(f"with limit({seconds}, 'segment [3, 4, 5]'): ctypes.string_at(0)")
    assert process.exitcode == -signal.SIGSEGV
    text = fault(folder, process)
    first = text.splitlines()[0]
    assert first.startswith("its worker process died: Fatal Python error: Segmentation fault")
    assert "segment [3, 4, 5]" in first
    assert "string_at" in text


def test_a_process_that_is_killed_leaves_nothing(folder: Path) -> None:
    process = end_of("import os\nwith limit(100, 'a block'): os.kill(os.getpid(), 9)")
    assert process.exitcode == -signal.SIGKILL
    assert take_faults(folder) == [Left("a block, limit 100 s", "")]
    assert not list(folder.glob("fault-*"))


def test_faults_of_all_that_died_and_of_none_that_lives(folder: Path) -> None:
    ready = folder / "ready"
    alive = start(f"with limit(1000, 'in time'): Path({str(ready)!r}).touch(); time.sleep(1000)")
    try:
        dead = [end_of(f"with limit(0.2, 'block {number}'): kernel(1000)") for number in range(2)]
        for _ in range(int(LONGEST / 0.01)):
            if ready.exists():
                break
            time.sleep(0.01)
        assert "in time, limit 1000 s" in at_work(folder)
        left = take_faults(folder)
        assert {fault.running for fault in left} == {f"block {number}, limit 0.2 s" for number in range(2)}
        assert all("ended at the time limit" in fault.text.splitlines()[0] for fault in left)
        assert take_faults(folder) == []
        assert at_work(folder) == ["in time, limit 1000 s"]
        assert [read_fault(folder, process.pid or 0) for process in (alive, *dead)] == [None] * 3
        # What the living one may still have to say has its place.
        assert list(folder.glob("fault-*")) == [fault_file(alive.pid or 0)]
    finally:
        alive.kill()
        alive.join()


def test_a_file_of_a_process_of_the_same_number_is_written_over(folder: Path) -> None:
    code = """
import os
from neuroshed.engine.watchdog import fault_file
fault_file(os.getpid()).write_text("old " * 1000)
with limit(0.2, 'new'): kernel(1000)
"""
    assert "old" not in fault(folder, end_of(code))


@pytest.mark.parametrize("missing", [False, True])
def test_without_a_folder_it_goes_to_standard_error(missing: bool, tmp_path: Path) -> None:
    environment = {**os.environ, watchdog.WORKER: "1", watchdog.FAULTS: str(tmp_path / "none") if missing else ""}
    found = subprocess.run(
        [sys.executable, "-c", PREAMBLE + "with limit(0.3, 'a block'): kernel(1000)"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert found.returncode == 1
    assert "in kernel" in found.stderr
    assert ("cannot be written" in found.stderr) == missing


def test_fault_files_differ_by_process_and_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({fault_file(1), fault_file(2), fault_file(1, "elsewhere")}) == 3
    assert {path and path.parent for path in (fault_file(1), fault_file(2))} == {folder}
    monkeypatch.delenv(watchdog.FAULTS)
    assert fault_file(1) is None


def test_in_a_users_own_process_a_late_block_is_told() -> None:
    with pytest.raises(BlockError) as caught, limit(0.01, "fragments [0, 1, 2]"):
        time.sleep(0.05)
    text = str(caught.value)
    assert re.match(r"fragments \[0, 1, 2\] took 0\.0\S* s, longer than the limit of 0.01 s", text)
    assert "use cluster: local" in text
    assert "\n" not in text


@pytest.mark.parametrize("seconds", [None, 100.0])
def test_in_a_users_own_process_nothing_else_happens(seconds: float | None) -> None:
    before = threading.active_count()
    with limit(seconds, "a block"):
        pass
    with pytest.raises(KeyError), limit(1e-9, "one that fails"):
        raise KeyError
    assert threading.active_count() == before
    assert not watchdog._watch._entries


def test_a_child_process_of_a_user_that_must_not_end_does_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(watchdog.WORKER, "0")
    code = """
from neuroshed.errors import BlockError
try:
    with limit(0.1, 'a block'): time.sleep(0.5)
except BlockError: raise SystemExit(7)
"""
    assert end_of(code).exitcode == 7
    assert not list(folder.glob("fault-*"))
