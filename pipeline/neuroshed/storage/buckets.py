"""Buckets of object stores: one client a bucket and process, files to read and write, and what goes wrong in one line.

Endpoint, region and credentials come from the environment (see `object_stores.py`, and the documentation of obstore)
and stand in no file that is written.
"""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, PreconditionError

from neuroshed.errors import WorkflowError
from neuroshed.storage.object_stores import Bucket, Client, advice, is_full, is_missing

REQUEST_SECONDS = 120
"""For one request, its data included: obstore's own 30 s are little for a large shard on a slow line."""
# These are obstore's defaults, on which the time that an outage may take depends: about a minute.
RETRIES: dict[str, Any] = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
}
CHECK_RETRIES = 3
"""While a person waits for the answer."""
PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4
"""Of an upload in parts: S3 and Google take 10,000, so a file may have 160 GB; so many are in memory at once."""
READ_AHEAD_BYTES = 1 << 20

# The process that used a client first.
_started: list[int] = []


def client(bucket: Bucket, prefix: str = "", max_retries: int | None = None) -> Client:
    """The client of a bucket, or of what lies in it under a prefix; made once a process.

    Raises what obstore does if settings are wrong, and `WorkflowError` in a process that was forked from one which has
    used a client: it would wait for ever for threads that only its parent has.
    """
    if not _started:
        _started.append(os.getpid())
    if _started[0] != os.getpid():
        raise WorkflowError(
            f"{bucket} cannot be used in a process forked from one that uses object stores already; start processes by "
            "`spawn` or `forkserver`"
        )
    variable = bucket.kind.endpoint()
    server = os.environ[variable] if variable else None
    return _client(bucket, prefix, variable, server, RETRIES["max_retries"] if max_retries is None else max_retries)


@functools.lru_cache(maxsize=256)
def _client(bucket: Bucket, prefix: str, variable: str | None, server: str | None, max_retries: int) -> Client:
    options: Any = {"timeout": timedelta(seconds=REQUEST_SECONDS)}
    config: Any = {}
    if variable and server:
        url = server if "://" in server else f"http://{server}"
        config = bucket.kind.settings(variable, url)
        options["allow_http"] = url.startswith("http://")
    retries: Any = RETRIES | {"max_retries": max_retries}
    made: Client = bucket.kind.client(
        bucket.name, prefix=prefix or None, config=config, client_options=options, retry_config=retries
    )
    return made


@contextmanager
def told(bucket: Bucket, place: str) -> Iterator[None]:
    """What a store would not do, as `WorkflowError` in one line; a missing object as FileNotFoundError."""
    try:
        yield
    except FileNotFoundError as error:
        if is_missing(bucket, error):
            raise WorkflowError(advice(bucket, place, error)) from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
    except (BaseError, OSError) as error:
        # Uploads in parts raise OSError for all that the store says, but without a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Its own text may hold URLs with signatures, which must not come into logs. A full store is like a full disk.
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place) if is_full(error) else None
        raise WorkflowError(advice(bucket, place, error)) from full


class ObjectReader(io.RawIOBase):
    """An object to read from any place in it; fails if it is replaced meanwhile.

    Raises FileNotFoundError if it is not there.
    """

    def __init__(self, bucket: Bucket, key: str, place: str) -> None:
        self._bucket, self._key, self._place = bucket, key, place
        self._at = 0
        with told(bucket, place):
            meta = obstore.head(client(bucket), key)
        self._size, self._tag = meta["size"], meta["e_tag"]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, counted as files do."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer by one request for that range; returns the number of bytes read, 0 at the end."""
        target = memoryview(buffer).cast("B")
        stop = min(self._at + len(target), self._size)
        count = stop - self._at
        if count <= 0:
            return 0
        options: Any = {"range": (self._at, stop), "if_match": self._tag}
        with told(self._bucket, self._place):
            try:
                target[:count] = memoryview(obstore.get(client(self._bucket), self._key, options=options).bytes())
            except PreconditionError:
                raise OSError(errno.ESTALE, "it was replaced while it was read", self._place) from None
        self._at = stop
        return count


class ObjectWriter(io.RawIOBase):
    """An object that is uploaded while it is written, in parts of `PART_BYTES`; nobody sees it before `finish`."""

    def __init__(self, bucket: Bucket, key: str, place: str) -> None:
        self._bucket, self._place = bucket, place
        # Leaving it by an error gives the upload up.
        with told(bucket, place):
            self._upload = obstore.open_writer(
                client(bucket), key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            ).__enter__()

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any) -> int:
        """Take more bytes, and upload a part when there are enough."""
        view = memoryview(data).cast("B")
        with told(self._bucket, self._place):
            self._upload.write(view)
        return len(view)

    def finish(self) -> None:
        """Put the object in its place."""
        with told(self._bucket, self._place):
            self._upload.__exit__(None, None, None)

    def give_up(self, error: BaseException) -> None:
        """Leave nothing behind."""
        with told(self._bucket, self._place):
            self._upload.__exit__(type(error), error, error.__traceback__)
