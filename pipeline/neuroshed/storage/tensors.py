"""N5 and Neuroglancer precomputed arrays through tensorstore: where they are, and how much of the machine they take.

Those in buckets are decoded and encoded in memory: `fetched.py`, `precomputed.py`.

Processes that use it start others by `spawn`: its threads do not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.locations import Location

CACHE_BYTES = 64 << 20
"""Of decoded chunks and of indices of shards, which would else be read again for each chunk."""
_CONTEXT: dict[str, Any] = {
    "cache_pool": {"total_bytes_limit": CACHE_BYTES},
    "data_copy_concurrency": {"limit": 2},
    "file_io_concurrency": {"limit": 4},
    "http_request_concurrency": {"limit": 8},
}

# The process that used tensorstore first.
_started: list[int] = []


def open_tensor(driver: str, folder: Location, **options: Any) -> Any:
    """Open an array that is there for reading, with a cache of its own. Raises `InputError` for what cannot be read."""
    check_process(folder)
    import tensorstore

    spec = {"driver": driver, "kvstore": key_value_store(folder), "recheck_cached_data": False, **options}
    try:
        return tensorstore.open(spec, read=True, open=True, context=tensorstore.Context(_CONTEXT)).result()
    except Exception as error:
        raise InputError(f"{folder} cannot be opened ({reason_of(error)})") from error


def open_in_memory(driver: str, files: Mapping[str, bytes], place: object, **options: Any) -> Any:
    """Open an array of these files, by name, for reading and writing; its `kvstore` has what was written. `place` is
    what they are of. Raises `InputError` for what cannot be opened.
    """
    check_process(place)
    import tensorstore

    # Nothing is cached: it is in memory.
    context = tensorstore.Context({"data_copy_concurrency": _CONTEXT["data_copy_concurrency"]})
    store = tensorstore.KvStore.open("memory://", context=context).result()
    for name, data in files.items():
        store[name] = data
    spec = {"driver": driver, "kvstore": "memory://", **options}
    try:
        return tensorstore.open(spec, read=True, write=True, open=True, context=context).result()
    except Exception as error:
        raise InputError(f"{place} cannot be opened ({reason_of(error)})") from error


def check_process(place: object) -> None:
    """Raise `WorkflowError` in a process that was forked from one which has used tensorstore: it would wait."""
    if was_forked():
        raise WorkflowError(
            f"{place} cannot be read in a process forked from one that has read such arrays already; start processes "
            "by `spawn` or `forkserver`"
        )


def was_forked() -> bool:
    """Whether this process was forked from one that has used tensorstore, as it may from now on."""
    if not _started:
        _started.append(os.getpid())
    return _started[0] != os.getpid()


def key_value_store(folder: Location) -> dict[str, Any]:
    """What tensorstore calls the place of a folder of this machine or a web server."""
    if folder.is_local:
        return {"driver": "file", "path": f"{folder}/"}
    parts = urlsplit(str(folder))
    return {"driver": "http", "base_url": f"{parts.scheme}://{parts.netloc}", "path": f"{parts.path}/"}


def is_damage(error: Exception) -> bool:
    """Whether an error is about data that are there, and not about who would not hand them out."""
    return str(error).startswith(("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE"))


def reason_of(error: Exception) -> str:
    """The first line of an error, without what was asked for."""
    text = str(error).partition(" [tensorstore_spec")[0].partition(" [source locations")[0].strip()
    return text.splitlines()[0] if text else type(error).__name__
