"""Places in buckets of object stores: `s3://`, `gs://` and `az://`, all by one class."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, BinaryIO, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from zarr.abc.store import Store
from zarr.storage import ObjectStore

from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.buckets import CHECK_RETRIES, READ_AHEAD_BYTES, ObjectReader, ObjectWriter, client, told
from neuroshed.storage.locations import Location
from neuroshed.storage.object_stores import KINDS, Bucket, is_beyond_end

DELETES_AT_ONCE = 1000


def in_bucket(url: str) -> Location:
    """What a URL names; raises `WorkflowError` for stores that are not supported, or if it names no bucket."""
    given, _, rest = url.partition("://")
    scheme = given.lower()
    if scheme not in KINDS:
        known = ", ".join(f"{name}://" for name in KINDS)
        raise WorkflowError(f"{url}: {given}:// is unknown; known are folders, {known}, and https:// for inputs")
    parts = [part for part in rest.split("/") if part]
    if not parts or rest.startswith("/") or {".", ".."}.intersection(parts):
        word = KINDS[scheme].bucket
        raise WorkflowError(f"{url} names no place in a {word}; write {scheme}://{word.upper()}/NAME, without . and ..")
    return InBucket(f"{scheme}://{'/'.join(parts)}")


class InBucket(Location):
    """An object or folder of a bucket, made by `in_bucket`."""

    __slots__ = ()
    is_local = False

    @property
    def parent(self) -> Location:
        """The folder that this lies in; of a bucket the bucket."""
        return self if not self._key else super().parent

    @property
    def _bucket(self) -> Bucket:
        scheme, _, name, *_ = self._text.split("/", 3)
        return Bucket(scheme.removesuffix(":"), name)

    @property
    def _key(self) -> str:
        return self._text[len(str(self._bucket)) + 1 :]

    def telling(self) -> AbstractContextManager[None]:
        """While this lasts, errors of the store are raised as those of these methods."""
        return told(self._bucket, self._text)

    def check(self) -> None:
        """Ask the store once; raises `WorkflowError` if it cannot be used."""
        with self.telling():
            obstore.list_with_delimiter(client(self._bucket, max_retries=CHECK_RETRIES), self._key or None)

    def exists(self) -> bool:
        """Whether there is an object, or any below."""
        with self.telling():
            return self.size() is not None or any(self._listed())

    def size(self) -> int | None:
        """Bytes of an object; None if it is not there."""
        if self._key:
            with suppress(FileNotFoundError), self.telling():
                return int(obstore.head(client(self._bucket), self._key)["size"])
        return None

    def read_bytes(self) -> bytes:
        """All of an object, unpacked if it says that it is stored packed by gzip; raises FileNotFoundError."""
        with self.telling():
            found = obstore.get(client(self._bucket), self._key)
            data = bytes(found.bytes())
        if found.attributes.get("Content-Encoding") != "gzip":
            return data
        try:
            return gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self} is damaged: it is no gzip, as it says ({error}); copy it again") from error

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes of an object, as it is stored, from `start` up to `stop`, or its end; raises FileNotFoundError."""
        with self.telling():
            try:
                return bytes(obstore.get_range(client(self._bucket), self._key, start=start, end=stop))
            except BaseError as error:
                if is_beyond_end(error):
                    return b""
                raise

    def put(self, data: bytes) -> None:
        """Put an object here, in place of another if there is one."""
        with self.telling():
            obstore.put(client(self._bucket), self._key, data)

    def create(self, data: bytes) -> bool:
        """Put an object here if there is none; whether it did."""
        with self.telling():
            try:
                obstore.put(client(self._bucket), self._key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def names(self) -> list[str]:
        """Sorted names of what lies directly below."""
        with self.telling():
            found = obstore.list_with_delimiter(client(self._bucket), self._key or None)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(name for path in paths if not (name := path.rpartition("/")[2]).startswith("."))

    def files(self) -> Iterator[tuple[Location, int]]:
        """All objects below, with their sizes in bytes."""
        skipped = len(self._key) + 1 if self._key else 0
        with self.telling():
            for entry in self._listed():
                below = entry["path"][skipped:]
                if not any(part.startswith(".") for part in below.split("/")):
                    yield self / below, entry["size"]

    def _listed(self) -> Iterator[Any]:
        for page in obstore.list(client(self._bucket), self._key or None):
            yield from page

    def delete(self) -> None:
        """Remove an object; nothing happens if it is gone."""
        with self.telling(), suppress(FileNotFoundError):
            obstore.delete(client(self._bucket), self._key)

    def delete_tree(self) -> None:
        """Remove all objects below."""
        gone = False
        while not gone:
            # Google and Azure raise this for what is gone already, as after an answer that was lost.
            with suppress(FileNotFoundError), self.telling():
                for page in obstore.list(client(self._bucket), self._key or None, chunk_size=DELETES_AT_ONCE):
                    obstore.delete(client(self._bucket), [entry["path"] for entry in page])
                gone = True

    def open_read(self) -> BinaryIO:
        """An object to read from anywhere; raises FileNotFoundError."""
        reader = ObjectReader(self._bucket, self._key, self._text)
        return cast("BinaryIO", io.BufferedReader(reader, READ_AHEAD_BYTES))

    @contextmanager
    def replacing(self) -> Iterator[BinaryIO]:
        """An object to write to, which is there when all went well."""
        writer = ObjectWriter(self._bucket, self._key, self._text)
        try:
            yield cast("BinaryIO", writer)
        except BaseException as error:
            writer.give_up(error)
            raise
        writer.finish()

    def zarr_store(self, read_only: bool) -> Store:
        """The Zarr store of the folder."""
        with self.telling():
            return ObjectStore(client(self._bucket, self._key), read_only=read_only)
