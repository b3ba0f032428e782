"""Places of runs, volumes and tables, by the same verbs whatever they lie on.

What is written stands whole and synced with its folder. Hidden names (`.name...`) are drafts and locks, and are not
listed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from neuroshed.storage import files as disk


@functools.total_ordering
class Location(ABC):
    """A file or folder, there or not: an immutable value that is equal to others of the same text, and sorted by it."""

    __slots__ = ("_text",)
    _text: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_text", text)

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Location) -> Location:
        """The location of a path; `~` is the home folder, links are followed."""
        if isinstance(place, Location):
            return place
        return _OnDisk(str(Path(place).expanduser().resolve()))

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

    def __truediv__(self, name: str) -> Location:
        """What lies at `name` below this."""
        return type(self)(f"{self._text.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that this lies in."""
        return type(self)(self._text.rpartition("/")[0] or "/")

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether this is a path of this machine."""

    @property
    @abstractmethod
    def local(self) -> Path:
        """The path."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a file or folder."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """All of a file; raises FileNotFoundError."""

    @abstractmethod
    def read_tagged(self) -> tuple[bytes, str]:
        """All of a file, and a tag that other contents do not have; raises FileNotFoundError."""

    @abstractmethod
    def put(self, data: bytes) -> None:
        """Put a file here, in place of another if there is one, whole or not at all; its folder must exist."""

    @abstractmethod
    def create(self, data: bytes) -> bool:
        """Put a file here if nothing is here; whether it did."""

    @abstractmethod
    def put_if(self, data: bytes, tag: str) -> bool:
        """Replace the file whose contents have this tag (of `read_tagged`); whether it did."""

    @abstractmethod
    def names(self) -> list[str]:
        """Sorted names of what lies directly in this folder; none if it is not there."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes of a file; None if it is not there."""

    @abstractmethod
    def files(self) -> Iterator[tuple[Location, int]]:
        """All files below, with their sizes in bytes."""

    @abstractmethod
    def delete(self) -> None:
        """Remove a file; nothing happens if it is gone."""

    @abstractmethod
    def delete_tree(self) -> None:
        """Remove a folder with all that lies below it, hidden names included."""

    @abstractmethod
    def make_folder(self) -> None:
        """Make a folder and those above it."""


class _OnDisk(Location):
    __slots__ = ()

    @property
    def is_local(self) -> bool:
        return True

    @property
    def local(self) -> Path:
        return Path(self._text)

    def exists(self) -> bool:
        return self.local.exists()

    def read_bytes(self) -> bytes:
        return self.local.read_bytes()

    def read_tagged(self) -> tuple[bytes, str]:
        data = self.read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def put(self, data: bytes) -> None:
        disk.replace_file(self.local, data)

    def create(self, data: bytes) -> bool:
        path = self.local
        draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}.partial")
        try:
            disk.replace_file(draft, data)
            path.hardlink_to(draft)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        disk.sync_path(path.parent)
        return True

    def put_if(self, data: bytes, tag: str) -> bool:
        path = self.local
        with path.with_name(f".{path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                found = self.read_tagged()[1]
            except FileNotFoundError:
                return False
            if found != tag:
                return False
            self.put(data)
        return True

    def names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.local.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def size(self) -> int | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.local.stat().st_size
        return None

    def files(self) -> Iterator[tuple[Location, int]]:
        for folder, folders, names in os.walk(self._text):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = _OnDisk(f"{folder}/{name}")
                if not name.startswith(".") and (size := file.size()) is not None:
                    yield file, size

    def delete_tree(self) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._text)
            disk.sync_path(self.local.parent)

    def delete(self) -> None:
        with suppress(FileNotFoundError):
            self.local.unlink()
            disk.sync_path(self.local.parent)

    def make_folder(self) -> None:
        disk.make_folder(self.local)
