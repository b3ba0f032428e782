"""Ctrl-C while a command starts, which is when most of what it needs is imported.

At first nothing has begun that would have to be ended in order: the process ends at once, with one line. Later a
command is ended by KeyboardInterrupt, but never inside of an import: compiled libraries abort there, or lose it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_SECONDS = 0.01
"""How soon it is tried again to interrupt what was importing."""


def end_at_once() -> None:
    """Let Ctrl-C end this process with exit code 130 from now on, unless it is not to be heard at all."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def raised() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, unless this process hears it in a way of its own."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _end):
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        # What was printed may still wait to be written, so that it is not to end at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread, which calls this; if it is importing, once that is over."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(AGAIN_SECONDS, _send)
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _send() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    interrupt()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"neuroshed: stopped before it began\n")
    os._exit(130)
