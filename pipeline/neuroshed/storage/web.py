"""Inputs on web servers: `http://` and `https://`, read-only.

A web server cannot be listed. What is asked for by name is found: Zarr arrays and their chunks.
"""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import Any, BinaryIO, ClassVar, NoReturn, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore
from zarr.abc.store import Store
from zarr.storage import ObjectStore

from neuroshed.errors import WorkflowError
from neuroshed.storage.buckets import CHECK_RETRIES, REQUEST_SECONDS, RETRIES
from neuroshed.storage.locations import Location

METADATA = ("zarr.json", ".zarray", ".zgroup")
"""Files by which a folder of Zarr is known to be there."""


class OnWeb(Location):
    """A file or Zarr folder of a web server."""

    __slots__ = ()
    is_local = False
    can_list: ClassVar[bool] = False

    @classmethod
    def parse(cls, url: str) -> OnWeb:
        """Of a URL; raises `WorkflowError` if it names no host, or holds what is nobody's business."""
        parts = urlsplit(url)
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise WorkflowError(
                f"{parts.scheme}://{parts.hostname}{parts.path} has a user, a query or a fragment, which would stand "
                "in files of the run; serve it without"
            )
        if not parts.hostname or not parts.path.strip("/"):
            raise WorkflowError(f"{url} names nothing on a web server; write {parts.scheme}://HOST/PATH")
        return cls(f"{parts.scheme.lower()}://{parts.netloc}/{parts.path.strip('/')}")

    @property
    def _root(self) -> str:
        parts = urlsplit(self._text)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def _key(self) -> str:
        return urlsplit(self._text).path.strip("/")

    def telling(self) -> AbstractContextManager[None]:
        """While this lasts, errors of the server are raised as those of these methods."""
        return _told(self._text)

    def check(self) -> None:
        """Ask the server once; raises `WorkflowError` if it does not answer."""
        self._is_there(CHECK_RETRIES)

    def exists(self) -> bool:
        """Whether there is a file, or Zarr metadata in a folder."""
        return self._is_there()

    def _is_there(self, max_retries: int | None = None) -> bool:
        store = _store(self._root, max_retries)
        for key in (*(f"{self._key}/{name}" for name in METADATA), self._key):
            with suppress(FileNotFoundError), self.telling():
                obstore.head(store, key)
                return True
        return False

    def size(self) -> int | None:
        """Bytes of a file, as the server says."""
        with suppress(FileNotFoundError), self.telling():
            return int(obstore.head(_store(self._root), self._key)["size"])
        return None

    def read_bytes(self) -> bytes:
        """All of a file; raises FileNotFoundError."""
        with self.telling():
            return bytes(obstore.get(_store(self._root), self._key).bytes())

    def open_read(self) -> BinaryIO:
        """A file in memory; raises FileNotFoundError."""
        return cast("BinaryIO", io.BytesIO(self.read_bytes()))

    def zarr_store(self, read_only: bool) -> Store:
        """The Zarr store of the folder, to read from."""
        if not read_only:
            self._refuse()
        return ObjectStore(_store(self._text), read_only=True)

    def names(self) -> list[str]:
        """Raises `WorkflowError`."""
        raise WorkflowError(f"{self} is on a web server, which cannot be listed; use a folder or bucket for runs")

    def files(self) -> Iterator[tuple[Location, int]]:
        """Raises `WorkflowError`."""
        raise WorkflowError(f"{self} is on a web server, which cannot be listed")

    def put(self, data: bytes) -> None:
        """Raises `WorkflowError`."""
        self._refuse()

    def create(self, data: bytes) -> bool:
        """Raises `WorkflowError`."""
        self._refuse()

    def delete(self) -> None:
        """Raises `WorkflowError`."""
        self._refuse()

    def delete_tree(self) -> None:
        """Raises `WorkflowError`."""
        self._refuse()

    def make_folder(self) -> None:
        """Raises `WorkflowError`."""
        self._refuse()

    def replacing(self) -> AbstractContextManager[BinaryIO]:
        """Raises `WorkflowError`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise WorkflowError(f"{self} is on a web server, which is only read; write to a folder or bucket")


@functools.lru_cache(maxsize=256)
def _store(url: str, max_retries: int | None = None) -> HTTPStore:
    options: Any = {"timeout": timedelta(seconds=REQUEST_SECONDS), "allow_http": url.startswith("http://")}
    retries: Any = RETRIES | ({} if max_retries is None else {"max_retries": max_retries})
    return HTTPStore.from_url(url, client_options=options, retry_config=retries)


@contextmanager
def _told(place: str) -> Iterator[None]:
    """What a server would not do, as `WorkflowError` in one line; what is not there as FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise WorkflowError(
            f"{place}: the server refuses to show it; only what anybody may read can be used"
        ) from error
    except BaseError as error:
        reason = str(error).splitlines()[0]
        raise WorkflowError(
            f"{place}: the server does not do its work ({reason}); check host, port and network"
        ) from error
