"""N5 and Neuroglancer precomputed arrays through tensorstore: where they are, and how much of the machine they take.

Processes that use it start others by `spawn`: its threads do not survive a fork.
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.storage.object_stores import KINDS

CACHE_BYTES = 64 << 20
"""Of decoded chunks and of indices of shards, which would else be read again for each chunk."""
_CONTEXT: dict[str, Any] = {
    "cache_pool": {"total_bytes_limit": CACHE_BYTES},
    "data_copy_concurrency": {"limit": 2},
    "file_io_concurrency": {"limit": 4},
    "http_request_concurrency": {"limit": 8},
    "s3_request_concurrency": {"limit": 8},
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
    """What tensorstore calls the place of a folder; credentials are those of the environment."""
    if folder.is_local:
        return {"driver": "file", "path": f"{folder}/"}
    parts = urlsplit(str(folder))
    if parts.scheme in ("http", "https"):
        return {"driver": "http", "base_url": f"{parts.scheme}://{parts.netloc}", "path": f"{parts.path}/"}
    if parts.scheme != "s3":
        raise WorkflowError(f"{folder}: N5 and precomputed are read from disk, s3:// and https://; copy it there first")
    store: dict[str, Any] = {"driver": "s3", "bucket": parts.netloc, "path": f"{parts.path.strip('/')}/".lstrip("/")}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        store["aws_region"] = region
    if variable := KINDS["s3"].endpoint():
        store |= {"endpoint": os.environ[variable], "aws_region": region or "us-east-1"}
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1"):
        store["aws_credentials"] = {"type": "anonymous"}
    return store


def is_damage(error: Exception) -> bool:
    """Whether an error is about data that are there, and not about who would not hand them out."""
    return str(error).startswith(("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE"))


def reason_of(error: Exception) -> str:
    """The first line of an error, without what was asked for."""
    text = str(error).partition(" [tensorstore_spec")[0].partition(" [source locations")[0].strip()
    return text.splitlines()[0] if text else type(error).__name__
