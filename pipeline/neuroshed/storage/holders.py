"""Who holds a run, and whether that process is still there."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Tokens of the leases that this process holds.
held: set[str] = set()


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a run, told apart from all others that ever were."""

    name: str
    host: str
    pid: int
    boot_id: str = ""
    """Changes when the machine starts; empty where it cannot be known."""
    pid_space: str = ""
    """Containers of one machine count their processes apart."""
    started: int = 0
    """Of the process, in clock ticks since the machine started."""
    token: str = ""
    """Of this lease alone."""

    @classmethod
    def here(cls, name: str) -> Holder:
        """The running process, for a new lease."""
        host, boot_id, pid_space = _machine()
        _, started = _state_of(os.getpid()) or (True, 0)
        return cls(name, host, os.getpid(), boot_id, pid_space, started, uuid.uuid4().hex)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Holder:
        """From its fields, as JSON holds them; those of later versions are left out. Raises `TypeError`."""
        found = cls(**{key: values[key] for key in cls.__slots__ if key in values})
        for field in fields(cls):
            if type(value := getattr(found, field.name)).__name__ != field.type:
                raise TypeError(f"{field.name} of a holder is no {field.type}: {value!r}")
        return found

    @property
    def alive(self) -> bool | None:
        """Whether it still holds its lease: None if that cannot be told from this machine."""
        if not self.boot_id or _machine() != (self.host, self.boot_id, self.pid_space):
            return None
        if self.pid == os.getpid():
            return self.token in held
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            # It is there, and another user's.
            pass
        found = _state_of(self.pid)
        if found is None:
            return None
        living, started = found
        return living and started == self.started

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} on {self.host})"


def _machine() -> tuple[str, str, str]:
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        pid_space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot_id = pid_space = ""
    return socket.gethostname(), boot_id, pid_space


def _state_of(pid: int) -> tuple[bool, int] | None:
    """Whether a process runs (else it ended, and nobody asked how) and when it began; None if it cannot be seen."""
    try:
        # The name, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
    except (OSError, IndexError):
        return None
    # A first thread that ended counts as ended only when no other is left.
    return state not in b"ZX" or threads > 1, started
