"""How a run is asked to stop: by a signal, or from another terminal by a file in the run folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from multiprocessing import resource_tracker
from types import FrameType


class Wish(IntEnum):
    """What is wanted of a coordinator; never taken back."""

    RUN = 0
    DRAIN = 1
    """Begin nothing new, finish what workers are at."""
    STOP = 2
    """Leave everything, at once."""


class Control:
    """The wish as it stands; any thread and any signal handler may raise it."""

    def __init__(self) -> None:
        self.wish = Wish.RUN
        self.reason = ""

    def ask(self, wish: Wish, reason: str) -> None:
        """Ask for `wish`, if more was not asked for already."""
        if wish > self.wish:
            self.reason = reason
            self.wish = wish


@contextmanager
def on_signals(control: Control) -> Iterator[None]:
    """The first SIGINT (Ctrl-C) drains, the second stops; SIGTERM stops. Only in the main thread, where Python takes
    signals; elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        control.ask(Wish.DRAIN if control.wish == Wish.RUN else Wish.STOP, "Ctrl-C")

    def terminate(number: int, frame: FrameType | None) -> None:
        control.ask(Wish.STOP, "SIGTERM")

    before = signal.signal(signal.SIGINT, interrupt), signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Threads and processes that are started inside never get SIGINT, nor do those that they start later."""
    # Started by the first process that multiprocessing starts, it would end the deafness of the thread that does so.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
