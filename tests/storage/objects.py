"""An object store in memory, as its clients see it: late, forgetful of answers, or showing what was there before."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from neuroshed.storage.locations import Location


class Store:
    """All versions of all objects, each with when and by whom it was put; None is a deletion."""

    def __init__(self) -> None:
        self.versions: dict[str, list[tuple[float, object, bytes | None, str]]] = {}
        self.lock = threading.RLock()

    def client(
        self, lag: float = 0.0, wait: Callable[[str], None] = lambda verb: None, list_lag: float = 0.0
    ) -> InMemory:
        """The store's root for a client that sees what others did `lag` seconds later, and lists it `list_lag` later
        still; its own writes at once.

        `wait` is called before each request and after each change, with its name.
        """
        return InMemory("memory://", _Client(self, lag, list_lag, wait))


class _Client:
    def __init__(self, store: Store, lag: float, list_lag: float, wait: Callable[[str], None]) -> None:
        self.store, self.lag, self.list_lag, self.wait = store, lag, list_lag, wait

    def shown(self, path: str, more: float = 0.0) -> tuple[bytes | None, str]:
        """What reads find: the newest version that is old enough, or this client's own."""
        limit = time.monotonic() - self.lag - more
        for when, author, data, tag in reversed(self.store.versions.get(path, [])):
            if when <= limit or author is self:
                return data, tag
        return None, ""

    def newest(self, path: str) -> tuple[bytes | None, str]:
        """What conditions are judged by."""
        versions = self.store.versions.get(path)
        return versions[-1][2:] if versions else (None, "")

    def add(self, path: str, data: bytes | None) -> None:
        entry = time.monotonic(), self, data, uuid.uuid4().hex
        self.store.versions.setdefault(path, []).append(entry)


class InMemory(Location):
    """A place in a `Store`."""

    def __init__(self, text: str, client: _Client) -> None:
        super().__init__(text)
        object.__setattr__(self, "client", client)

    client: _Client

    def __truediv__(self, name: str) -> InMemory:
        return InMemory(f"{self}/{name}", self.client)

    @property
    def parent(self) -> InMemory:
        return InMemory(str(self).rpartition("/")[0], self.client)

    @property
    def is_local(self) -> bool:
        return False

    @property
    def local(self) -> Path:
        raise AssertionError("an object has no path")

    def exists(self) -> bool:
        self.client.wait("exists")
        with self.client.store.lock:
            return self.client.shown(str(self))[0] is not None or bool(self._names())

    def read_bytes(self) -> bytes:
        self.client.wait("read")
        with self.client.store.lock:
            data, _ = self.client.shown(str(self))
        if data is None:
            raise FileNotFoundError(str(self))
        return data

    def put(self, data: bytes) -> None:
        self._change("put", data, lambda found, tag: True)

    def create(self, data: bytes) -> bool:
        return self._change("create", data, lambda found, tag: found is None)

    def delete(self) -> None:
        self._change("delete", None, lambda found, tag: True)

    def names(self) -> list[str]:
        self.client.wait("names")
        with self.client.store.lock:
            return self._names()

    def make_folder(self) -> None:
        pass

    def _names(self) -> list[str]:
        start = f"{self}/"
        found = {path for path in self.client.store.versions if path.startswith(start)}
        there = [path for path in found if self.client.shown(path, self.client.list_lag)[0] is not None]
        return sorted({path[len(start) :].partition("/")[0] for path in there})

    def _change(self, verb: str, data: bytes | None, allowed: Callable[[bytes | None, str], bool]) -> bool:
        self.client.wait(verb)
        with self.client.store.lock:
            done = allowed(*self.client.newest(str(self)))
            if done:
                self.client.add(str(self), data)
        self.client.wait(f"after {verb}")
        return done


# What a journal never uses is left out.
InMemory.__abstractmethods__ = frozenset()
