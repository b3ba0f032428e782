"""The last log lines of each block, so that a failure is told with what led to it."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from neuroshed.engine.watchdog import is_worker

LINES = 30
LINE_LENGTH = 400
IN_RUN_LOG = "neuroshed_in_run_log"
"""Attribute of records that are in the log of a run already, and are not told on standard error as well."""

Lines = deque[str]


class _Capture(logging.Handler):
    """Of the root logger, while any thread keeps lines: each record goes to the lines of the thread that logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        self.lines: dict[int, Lines] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; where nobody else listens, it is written to standard error as it would be without this."""
        try:
            least = logging.INFO if record.name.partition(".")[0] == "neuroshed" else logging.WARNING
            lines = self.lines.get(threading.get_ident())
            if lines is not None and record.levelno >= least:
                lines.extend(line[:LINE_LENGTH] for line in self.format(record).splitlines())
        except Exception:
            self.handleError(record)
        last = logging.lastResort
        if getattr(record, IN_RUN_LOG, False):
            return
        if last is not None and record.levelno >= last.level and logging.getLogger().handlers == [self]:
            last.handle(record)


class _Switch:
    """Puts the handler in place for the first thread and takes everything back after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._capture = _Capture()
        self._undo = ExitStack()

    def on(self, thread: int) -> Lines:
        """Begin to keep the lines of a thread."""
        lines: Lines = deque(maxlen=LINES)
        with self._lock:
            if not self._capture.lines:
                self._install()
            self._capture.lines[thread] = lines
        return lines

    def off(self, thread: int) -> None:
        """End it."""
        with self._lock:
            del self._capture.lines[thread]
            if not self._capture.lines:
                self._undo.close()

    def _install(self) -> None:
        root, ours = logging.getLogger(), logging.getLogger("neuroshed")
        root.addHandler(self._capture)
        self._undo.callback(root.removeHandler, self._capture)
        before = warnings.showwarning
        logging.captureWarnings(True)
        # Else the user's program does so itself, and goes on with it.
        if warnings.showwarning is not before:
            self._undo.callback(logging.captureWarnings, False)
        # In a user's own process it would fill the user's log, too.
        if is_worker() and not ours.isEnabledFor(logging.INFO):
            self._undo.callback(ours.setLevel, ours.level)
            ours.setLevel(logging.INFO)


_switch = _Switch()


@contextmanager
def kept_lines() -> Iterator[Lines]:
    """The last lines that this thread logs inside, 30 at most: warnings of Python and of any library, and what
    neuroshed says at level INFO (in a process that is not a worker: if the user's program asks for it).
    """
    thread = threading.get_ident()
    lines = _switch.on(thread)
    try:
        yield lines
    finally:
        _switch.off(thread)
