"""The log of a run: what its coordinator did and when, in the run folder."""

from __future__ import annotations

import logging
import logging.handlers
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from neuroshed.engine.capture import IN_RUN_LOG
from neuroshed.storage.locations import Location

LOG_FOLDER = "log"
LOG_FILE = "coordinator.log"
OUTPUT_FILE = "output.log"
"""What a process that was started in the background prints."""
MAX_BYTES = 10_000_000
BACKUPS = 5

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Onward(logging.Handler):
    """Gives records to the root logger's handlers as if the level of ours had never been lowered."""

    def __init__(self, level: int) -> None:
        super().__init__(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Only to handlers that somebody set up: without any, warnings are in the file and need no terminal."""
        root = logging.getLogger()
        if root.handlers:
            setattr(record, IN_RUN_LOG, True)
            root.handle(record)


class _Switch:
    """Logs at level INFO to files while there are any, and puts everything back as it was after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: list[logging.Handler] = []
        self._before: tuple[int, bool] = (logging.NOTSET, True)
        self._onward: logging.Handler | None = None

    def on(self, file: logging.Handler) -> None:
        """Log to a file as well."""
        ours = logging.getLogger("neuroshed")
        with self._lock:
            if not self._files:
                self._before = ours.level, ours.propagate
                if ours.propagate:
                    self._onward = _Onward(ours.getEffectiveLevel())
                    ours.addHandler(self._onward)
                ours.propagate = False
                ours.setLevel(min(ours.getEffectiveLevel(), logging.INFO))
            self._files.append(file)
            ours.addHandler(file)

    def off(self, file: logging.Handler) -> None:
        """End it."""
        ours = logging.getLogger("neuroshed")
        with self._lock:
            self._files.remove(file)
            ours.removeHandler(file)
            if not self._files:
                ours.setLevel(self._before[0])
                ours.propagate = self._before[1]
                if self._onward is not None:
                    ours.removeHandler(self._onward)
                    self._onward = None
        file.close()


_switch = _Switch()


def log_place(run_folder: Location) -> Location:
    """The log of a run; the folder of the sessions' logs where each has its own."""
    folder = run_folder / LOG_FOLDER
    return folder / LOG_FILE if folder.is_local else folder


class RunLog:
    """A context manager: while it is open, what neuroshed logs at level INFO goes to the run's log file.

    On disk that is `log/coordinator.log`, of 10 MB and with five older ones. Object stores cannot append: there it is a
    temporary file of this machine, which `ship` puts into the run folder under the name of the session. It has no name
    of its own, and so is gone when the process is, however that ends.
    """

    def __init__(self, run_folder: Location, session: str) -> None:
        """`session` tells this session's log from others' where each has a file of its own."""
        folder = run_folder / LOG_FOLDER
        self._file: IO[str] | None = None
        self._shipped = -1
        self._handler: logging.Handler
        if folder.is_local:
            folder.make_folder()
            self.place = folder / LOG_FILE
            self._handler = logging.handlers.RotatingFileHandler(
                self.place.local, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8"
            )
        else:
            self.place = folder / f"coordinator-{session}.log"
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed at the exit
            self._handler = logging.StreamHandler(self._file)
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        # A full disk must not fill the terminal with tracebacks of the log itself. Put in place on the object, since it
        # is one of two classes; mypy allows methods to be replaced in classes alone.
        self._handler.handleError = lambda record: None  # type: ignore[method-assign]

    def __enter__(self) -> RunLog:
        _switch.on(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _switch.off(self._handler)
        # The run has ended as it did, whether or not its log could be put away.
        with suppress(Exception):
            self.ship()
        if self._file is not None:
            self._file.close()

    def ship(self) -> None:
        """Put the log of a run in an object store there, if it grew. Raises what the store raises."""
        if self._file is None:
            return
        # The handler flushes each record; its place in the file stays where it is.
        handle = self._file.fileno()
        if (size := os.fstat(handle).st_size) != self._shipped:
            self.place.put(os.pread(handle, size, 0))
            self._shipped = size


def last_lines(file: Path, number: int = 20, most_bytes: int = 20_000) -> list[str]:
    """The end of a text file; nothing if it is not there."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, 2)
            opened.seek(max(opened.tell() - most_bytes, 0))
            return opened.read().decode(errors="replace").splitlines()[-number:]
    except FileNotFoundError:
        return []
