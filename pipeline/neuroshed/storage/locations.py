"""Places of runs, volumes and tables: folders and files, here of this machine.

Those in buckets are in `bucket_locations.py`, those on web servers (to read) in `web.py`.

On disk, what is written stands whole and synced with its folder; in a bucket, an object is there whole or not at all.
Hidden names (`.name...`) are drafts and locks, and are not listed, nor are drafts of Zarr arrays.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from zarr.abc.store import Store
from zarr.storage import LocalStore

from neuroshed.errors import WorkflowError
from neuroshed.storage import files as disk

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.*", re.DOTALL)


@functools.total_ordering
class Location(ABC):
    """A file or folder, there or not: an immutable value that is equal to others of the same text, and sorted by it.

    `str` is the absolute path or URL. Pydantic fields take it, a path or text, and store the text.

    >>> Location.of("s3://bucket/runs/one/") / "plan.json"
    Location('s3://bucket/runs/one/plan.json')
    """

    __slots__ = ("_text",)
    _text: str
    is_local: ClassVar[bool]
    """Whether this is a path of this machine."""
    can_list: ClassVar[bool] = True
    """Whether what lies in a folder can be learnt."""

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_text", text)

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Location) -> Location:
        """The location of a path (`~` is the home folder, links are followed) or URL.

        Raises `WorkflowError` for URLs of stores that are not supported, or without a bucket.
        """
        if isinstance(place, Location):
            return place
        text = os.fspath(place)
        found = _SCHEME.fullmatch(text)
        if found is None:
            return _OnDisk(str(Path(text).expanduser().resolve()))
        if found[1].lower() in ("http", "https"):
            from neuroshed.storage.web import OnWeb

            return OnWeb.parse(text)
        from neuroshed.storage.bucket_locations import in_bucket

        return in_bucket(text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Location({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self._text == other._text

    def __lt__(self, other: Location) -> bool:
        return self._text < other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a location cannot be changed, {name} neither")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._text,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        made = core_schema.no_info_plain_validator_function(_validated)
        return core_schema.json_or_python_schema(
            json_schema=core_schema.chain_schema([core_schema.str_schema(), made]),
            python_schema=made,
            serialization=core_schema.to_string_ser_schema(),
        )

    def __truediv__(self, name: str) -> Location:
        """What lies at `name` (which may have several parts) below this."""
        return type(self)(f"{self._text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that this lies in."""
        return type(self)(self._text.rpartition("/")[0] or "/")

    def is_relative_to(self, other: Location) -> bool:
        """Whether this is `other`, or lies below it."""
        return self == other or self._text.startswith(other._text.rstrip("/") + "/")

    @property
    def local(self) -> Path:
        """The path. Raises `WorkflowError` if it is none of this machine."""
        raise WorkflowError(f"{self} is in an object store, where this is not supported yet; use a folder")

    def check(self) -> None:  # noqa: B027  a disk needs none
        """Raise `WorkflowError` if the store cannot be used: no such bucket, no credentials, no answer. Disks can."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a file, or a folder with something in it."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes of a file; None if it is not there."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """All of a file; raises FileNotFoundError."""

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`, or its end; raises FileNotFoundError."""
        with self.open_read() as file:
            file.seek(start)
            return file.read(stop - start)

    @abstractmethod
    def put(self, data: bytes) -> None:
        """Put a file here, in place of another if there is one, whole or not at all; its folder must exist."""

    @abstractmethod
    def create(self, data: bytes) -> bool:
        """Put a file here if nothing is here; whether it did.

        In a bucket, an answer that was lost may make it deny what it did: compare what is there.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """Sorted names of what lies directly in this folder; none if it is not there."""

    @abstractmethod
    def files(self) -> Iterator[tuple[Location, int]]:
        """All files below, with their sizes in bytes."""

    @abstractmethod
    def delete(self) -> None:
        """Remove a file; nothing happens if it is gone."""

    @abstractmethod
    def delete_tree(self) -> None:
        """Remove a folder with all that lies below it, hidden names included."""

    def make_folder(self) -> None:  # noqa: B027  buckets have none
        """Make a folder and those above it, synced to disk; nothing to do in a bucket."""

    @abstractmethod
    def open_read(self) -> BinaryIO:
        """A file to read from anywhere; raises FileNotFoundError."""

    @abstractmethod
    def replacing(self) -> AbstractContextManager[BinaryIO]:
        """A file to write to, which takes its place when all went well, as with `put`."""

    @abstractmethod
    def zarr_store(self, read_only: bool) -> Store:
        """The Zarr store of the folder. What it raises is not what these methods raise, but under `telling`."""

    def telling(self) -> AbstractContextManager[None]:
        """While this lasts, errors of the folder's Zarr store are raised as those of these methods."""
        return nullcontext()


def _validated(value: Any) -> Location:
    if not isinstance(value, str | os.PathLike | Location):
        raise ValueError("needed is a path, or an s3://, gs:// or az:// URL")
    return Location.of(value)


class _OnDisk(Location):
    __slots__ = ()
    is_local = True

    @property
    def local(self) -> Path:
        return Path(self._text)

    def exists(self) -> bool:
        try:
            with os.scandir(self._text) as entries:
                return any(True for _ in entries)
        except NotADirectoryError:
            return self.size() is not None
        except FileNotFoundError:
            return False

    def size(self) -> int | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = self.local.stat()
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        return None

    def read_bytes(self) -> bytes:
        return self.local.read_bytes()

    def put(self, data: bytes) -> None:
        disk.replace_file(self.local, data)

    def create(self, data: bytes) -> bool:
        return disk.create_file(self.local, data)

    def names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self.local.iterdir() if not path.name.startswith("."))
        return []

    def files(self) -> Iterator[tuple[Location, int]]:
        for folder, folders, names in os.walk(self._text):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = _OnDisk(f"{folder}/{name}")
                if not name.startswith(".") and not disk.is_draft(name) and (size := file.size()) is not None:
                    yield file, size

    def delete(self) -> None:
        with suppress(FileNotFoundError):
            self.local.unlink()
            disk.sync_path(self.local.parent)

    def delete_tree(self) -> None:
        with suppress(FileNotFoundError):
            disk.remove_tree(self.local)
            disk.sync_path(self.local.parent)

    def make_folder(self) -> None:
        disk.make_folder(self.local)

    def open_read(self) -> BinaryIO:
        return self.local.open("rb")

    def replacing(self) -> AbstractContextManager[BinaryIO]:
        return disk.replacing(self.local)

    def zarr_store(self, read_only: bool) -> Store:
        return LocalStore(self.local, read_only=read_only)
