"""Environments of the peers: their pins conflict with ours and with each other's, so each has a folder of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = {
    "waterz": ["waterz==0.10.1"],
    "lsd": ["waterz==0.10.1", "mahotas==1.4.18", "scipy"],
    # The index has two lines of daisy; volara wants the older one, and pip finds that out.
    "volara": ["volara==1.0.5"],
    "monai": ["monai==1.6.1"],
}


class PeerError(Exception):
    """A peer that cannot be had or does not run here; the message says why in one line."""


def default_folder() -> Path:
    """Where environments are kept between benchmarks."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "neuroshed-benchmarks"


def python_of(peer: str, folder: Path) -> Path:
    """The Python of a peer's environment, which is created on the first call.

    Raises `PeerError` if it cannot be.
    """
    requirements = REQUIREMENTS[peer]
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:8]
    environment = folder / f"{peer}-{digest}"
    python = environment / "bin" / "python"
    complete = environment / "complete"
    if not complete.exists():
        print(f"creating the environment of {peer} in {environment}", file=sys.stderr)
        _call(peer, [sys.executable, "-m", "venv", "--clear", str(environment)])
        _call(peer, [str(python), "-m", "pip", "install", "--quiet", *requirements])
        complete.touch()
    return python


def library_of(peer: str, folder: Path) -> Path:
    """Folder with a peer alone, to be put on the path of a Python that has what it needs; made on the first call.

    Raises `PeerError` if it cannot be.
    """
    requirements = REQUIREMENTS[peer]
    library = folder / "-".join([peer, *requirements]).replace("==", "-")
    if not (library / "complete").exists():
        print(f"installing {peer} in {library}", file=sys.stderr)
        target = ["--no-deps", "--upgrade", "--target", str(library)]
        _call(peer, [sys.executable, "-m", "pip", "install", "--quiet", *target, *requirements])
        (library / "complete").touch()
    return library


def _call(peer: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        # pip explains before its last lines, which are advice.
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise PeerError(f"{peer} cannot be installed: {errors[0]}")
