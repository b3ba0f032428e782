"""S3 buckets: one client a bucket and process, files to read and write, and what can go wrong in one line.

Endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...,
see the documentation of obstore) and stand in no file that is written.
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
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from neuroshed.errors import WorkflowError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
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
"""Of an upload in parts: S3 takes 10,000, so a file may have 160 GB; so many are in memory at once."""
READ_AHEAD_BYTES = 1 << 20

# The process that used a client first.
_started: list[int] = []


def client(bucket: str, prefix: str = "", max_retries: int | None = None) -> S3Store:
    """The client of a bucket, or of what lies in it under a prefix; made once a process.

    Raises `WorkflowError` in a process that was forked from one which has used a client: it would wait for ever for
    threads that only its parent has.
    """
    if not _started:
        _started.append(os.getpid())
    if _started[0] != os.getpid():
        raise WorkflowError(
            f"s3://{bucket} cannot be used in a process forked from one that uses S3 already; start processes by "
            "`spawn` or `forkserver`"
        )
    endpoint = next((os.environ[name] for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    return _client(bucket, prefix, endpoint, RETRIES["max_retries"] if max_retries is None else max_retries)


@functools.lru_cache(maxsize=256)
def _client(bucket: str, prefix: str, endpoint: str | None, max_retries: int) -> S3Store:
    options: Any = {"timeout": timedelta(seconds=REQUEST_SECONDS)}
    config: Any = {}
    if endpoint:
        # Other stores than Amazon's often know no bucket by its host's name.
        config = {"endpoint": endpoint, "virtual_hosted_style_request": False}
        options["allow_http"] = endpoint.startswith("http://")
    retries: Any = RETRIES | {"max_retries": max_retries}
    return S3Store(bucket, prefix=prefix or None, config=config, client_options=options, retry_config=retries)


@contextmanager
def told(bucket: str, place: str) -> Iterator[None]:
    """What a store would not do, as `WorkflowError` in one line; a missing object as FileNotFoundError, and a condition
    that does not hold as obstore raises it.
    """
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise WorkflowError(_advice(bucket, place, error)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from error
    except BaseError as error:
        raise WorkflowError(_advice(bucket, place, error)) from error


def _advice(bucket: str, place: str, error: Exception) -> str:
    text = str(error)
    if "NoSuchBucket" in text:
        return f"{place}: there is no bucket {bucket}; create it, or check its name and AWS_ENDPOINT_URL"
    # The last resort is to ask the machine of Amazon's that this runs on, which mostly is none.
    if "/latest/api/token" in text or "/latest/meta-data/" in text:
        return (
            f"{place}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    reason = text.splitlines()[0]
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or " 403 " in reason or " 401 " in reason:
        return (
            f"{place}: the store refuses these credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what "
            "they are allowed to do"
        )
    return f"{place}: the store does not do its work ({reason}); check AWS_ENDPOINT_URL, AWS_REGION and the network"


class ObjectReader(io.RawIOBase):
    """An object to read from any place in it; fails if it is replaced meanwhile.

    Raises FileNotFoundError if it is not there.
    """

    def __init__(self, bucket: str, key: str, place: str) -> None:
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
        try:
            with told(self._bucket, self._place):
                target[:count] = memoryview(obstore.get(client(self._bucket), self._key, options=options).bytes())
        except PreconditionError as error:
            raise OSError(errno.ESTALE, "it was replaced while it was read", self._place) from error
        self._at = stop
        return count


class ObjectWriter(io.RawIOBase):
    """An object that is uploaded while it is written, in parts of `PART_BYTES`; nobody sees it before `finish`."""

    def __init__(self, bucket: str, key: str, place: str) -> None:
        self._bucket, self._place = bucket, place
        # Leaving it by an error gives the upload up.
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
