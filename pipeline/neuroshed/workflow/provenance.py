"""Who ran what, where and with which versions: an entry in the run folder for every session of a coordinator."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from neuroshed.storage.locations import Location
from neuroshed.version import __version__, installed

PROVENANCE_FILE = "provenance.json"
ENTRIES_KEPT = 100
PACKAGES = (
    "dask",
    "distributed",
    "mwatershed",
    "numba",
    "numcodecs",
    "numpy",
    "obstore",
    "pyarrow",
    "pydantic",
    "scipy",
    "torch",
    "waterz",
    "zarr",
)

_ALLOWED = re.compile(r"OMP_\w+|CUDA_VISIBLE_DEVICES|SLURM_\w+|DASK_\w+")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|JWT|COOKIE", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = "***"


def user() -> str:
    """The name of the user, or the number where the system knows no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def provenance(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What decides how this process computes, and who started it; nothing that could be a secret."""
    return {
        "time": round(time.time(), 3),
        "neuroshed": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        "command": without_secrets(command),
        "environment": {
            name: without_secrets([value])[0]
            for name, value in sorted(environment.items())
            if _ALLOWED.fullmatch(name) and not _SECRET.search(name)
        },
    }


def without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command, without logins in URLs and without values of names that speak of secrets.

    >>> without_secrets(["run", "--set", "image=s3://me:pw@host/a", "--api-token", "abc", "password=x"])
    ['run', '--set', 'image=s3://***@host/a', '--api-token', '***', 'password=***']
    """
    told: list[str] = []
    hide_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = _SECRET.search(name) is not None
        if hide_next and not word.startswith("-"):
            told.append(HIDDEN)
        elif is_secret and equals:
            told.append(f"{name}={HIDDEN}")
        else:
            told.append(_LOGIN.sub(f"{HIDDEN}@", word))
        hide_next = is_secret and not equals and word.startswith("-")
    return told


def record(run_folder: Location, entry: dict[str, Any]) -> None:
    """Add an entry to the run's list, of which the last hundred are kept. A list that cannot be read is begun anew."""
    file = run_folder / PROVENANCE_FILE
    try:
        entries = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        entries = []
    if not isinstance(entries, list):
        entries = []
    file.put(json.dumps([*entries, entry][-ENTRIES_KEPT:], indent=2).encode())


def _gpus() -> int | None:
    """How many this process sees; None if torch is not loaded. Their names would need a context on each."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.cuda.device_count())
