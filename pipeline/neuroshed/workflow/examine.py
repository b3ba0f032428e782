"""What a machine is asked by `neuroshed doctor`: runs inside a worker, and in the coordinator for comparison."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

from neuroshed.engine.versions import versions
from neuroshed.storage.locations import Location

ASKED = "asked"
"""The file that the coordinator writes."""


@dataclass(frozen=True)
class Findings:
    """What a process has and can do."""

    host: str
    versions: dict[str, str]
    """Of Python, neuroshed and the packages that decide results or connections."""
    memory_bytes: int
    """That this process may use, by the machine and its control group."""
    scratch: str
    scratch_bytes: int
    """Free in the folder of temporary files."""
    open_files: int
    """That this process may have."""
    time: float
    """Seconds since the epoch, by its clock."""
    gpus: list[str] = field(default_factory=list)
    """Names of the GPUs that torch can use."""
    gpu_bytes: int = 0
    """Free memory of the first."""
    read: str = ""
    """What came of reading what the coordinator wrote; empty if it was right."""
    wrote: str = ""
    """What came of writing what the coordinator is to read; empty if it went well."""


def examine(folder: str = "", word: str = "", name: str = "") -> Findings:
    """Look around. With a `folder`, read the file `ASKED` there, which holds `word`, and write it to a file `name`."""
    from distributed.system import MEMORY_LIMIT

    scratch = tempfile.gettempdir()
    gpus, gpu_bytes = _gpus()
    return Findings(
        host=socket.gethostname(),
        versions=versions(),
        memory_bytes=int(MEMORY_LIMIT),
        scratch=scratch,
        scratch_bytes=shutil.disk_usage(scratch).free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        time=time.time(),
        gpus=gpus,
        gpu_bytes=gpu_bytes,
        read=_tried(lambda: _read(folder, word)) if folder else "",
        wrote=_tried(lambda: (Location.of(folder) / name).put(word.encode())) if folder else "",
    )


def _gpus() -> tuple[list[str], int]:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return [], 0
    import torch

    if not torch.cuda.is_available():
        return [], 0
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return names, int(torch.cuda.mem_get_info(0)[0])


def _read(folder: str, word: str) -> None:
    found = (Location.of(folder) / ASKED).read_bytes().decode()
    if found != word:
        raise OSError(f"it holds {found!r}, written was {word!r}")


def _tried(action: Any) -> str:
    try:
        action()
    except Exception as error:
        # Whatever a store raises.
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
