"""Calls that run in a process of their own: for libraries that hold the GIL, print from C, or crash.

Each calling thread has one such process, started by its first call and kept for the next. The two talk over an
anonymous socket pair: a line of JSON, then the bytes of the arrays (4 GB/s, measured), so there is no file or shared
memory to leave behind. The process ends with its thread: its socket closes, and on Linux the kernel kills it even in
the middle of a call. What it prints goes to /dev/null. If it dies, the call raises and the next one starts another.

Only functions listed in `FUNCTIONS` can be called.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError, InputError

Array = npt.NDArray[Any]


class Function(NamedTuple):
    """What a process of its own can be asked for: `name` in `module` takes arrays and settings, returns arrays."""

    module: str
    name: str
    package: str
    extra: str


FUNCTIONS = {
    "waterz.watershed": Function("neuroshed.kernels.waterz", "_watershed", "waterz", "waterz"),
    "waterz.agglomerate": Function("neuroshed.kernels.waterz", "_agglomerate", "waterz", "waterz"),
    "waterz.history": Function("neuroshed.kernels.waterz", "_history", "waterz", "waterz"),
    "mwatershed.agglom": Function("neuroshed.kernels.mutex", "_agglom", "mwatershed", "mutex"),
}

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_DIE = 5.0
_threads = threading.local()


def require(function: str) -> None:
    """Raise `InputError` if the package that `function` needs is not installed."""
    _, _, package, extra = FUNCTIONS[function]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"the package {package} is not installed; run: pip install 'neuroshed[{extra}]'")


def call(function: str, arrays: Sequence[Array], **settings: Any) -> list[Array]:
    """Run one of `FUNCTIONS` on `arrays` (C order is made) and JSON `settings` in this thread's other process.

    Other threads run on meanwhile, in parallel with their own calls. Raises `InputError` if its package is missing,
    `BlockError` if it fails or its process dies, which the next call survives.
    """
    require(function)
    child = _current()
    answered = False
    try:
        _send(child.channel, {"function": function, "settings": settings}, arrays)
        header, results = _receive(child.channel)
        answered = True
    except (EOFError, OSError) as error:
        raise BlockError(f"the process that ran {function} died: {child.cause()}") from error
    finally:
        # Interrupted half-way, the two would disagree about what comes next.
        if not answered:
            child.stop()
    if "error" in header:
        raise BlockError(f"{function} failed: {header['error']}")
    return results


class _Child:
    """A process that serves calls, and our end of the line to it."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            serve_call = f"from neuroshed.kernels.child import serve; serve({theirs.fileno()}, {os.getpid()})"
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", serve_call],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ
                | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            )
        self.owner = os.getpid()
        # Runs when the thread ends, and at exit.
        self.stop = weakref.finalize(self, _stop, self.process, self.channel, self.owner)

    def usable(self) -> bool:
        """Whether it can be asked: it lives, was not stopped, and is not the child of a process we forked from."""
        return self.stop.alive and self.owner == os.getpid() and self.process.poll() is None

    def cause(self) -> str:
        """Why it died, in words."""
        try:
            code = self.process.wait(_SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            return "it closed its line"
        if code == -signal.SIGKILL:
            return "killed (SIGKILL), mostly for want of memory; give workers more, or take smaller blocks"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}; see the worker's log"


def _stop(process: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    if os.getpid() == owner:
        # It holds nothing that could be lost.
        process.kill()
        process.wait()
    channel.close()


def _current() -> _Child:
    """The calling thread's process, started if there is none to use."""
    child: _Child | None = getattr(_threads, "child", None)
    if child is None or not child.usable():
        child = _threads.child = _Child()
    return child


def serve(descriptor: int, parent: int) -> None:
    """The life of the other process: answer calls on the socket `descriptor` until process `parent` closes it."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    # Ctrl-C is the parent's to handle, and a crash shall leave no core file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with socket.socket(fileno=descriptor) as channel:
        while True:
            try:
                header, arrays = _receive(channel)
                _send(channel, *_answer(header, arrays))
                del arrays
                # glibc keeps what many small allocations leave: hundreds of MB, measured.
                if hasattr(libc, "malloc_trim"):
                    libc.malloc_trim(0)
            except (EOFError, OSError):
                return


def _answer(header: dict[str, Any], arrays: list[Array]) -> tuple[dict[str, Any], Sequence[Array]]:
    try:
        module, name, _, _ = FUNCTIONS[header["function"]]
        return {}, getattr(importlib.import_module(module), name)(*arrays, **header["settings"])
    except BaseException as error:  # a panic of Rust is no Exception
        return {"error": f"{type(error).__name__}: {error}"}, ()


def _send(channel: socket.socket, header: dict[str, Any], arrays: Sequence[Array]) -> None:
    whole = [np.ascontiguousarray(array) for array in arrays]
    text = json.dumps({**header, "arrays": [[array.dtype.str, array.shape] for array in whole]}).encode()
    channel.sendall(len(text).to_bytes(8, "little") + text)
    for array in whole:
        channel.sendall(array.reshape(-1).view(np.uint8).data)


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[Array]]:
    """One message. Raises EOFError if the line was closed."""
    size = bytearray(8)
    _fill(channel, size)
    text = bytearray(int.from_bytes(size, "little"))
    _fill(channel, text)
    header = json.loads(text)
    arrays = [np.empty(shape, dtype) for dtype, shape in header.pop("arrays")]
    for array in arrays:
        _fill(channel, array.reshape(-1).view(np.uint8).data)
    return header, arrays


def _fill(channel: socket.socket, buffer: bytearray | memoryview) -> None:
    view = memoryview(buffer)
    while len(view):
        count = channel.recv_into(view)
        if count == 0:
            raise EOFError("the other process closed the line")
        view = view[count:]
