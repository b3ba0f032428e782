"""One question or order to many files; those in buckets are asked at once, since each answer takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from neuroshed.storage.locations import Location

REQUESTS_AT_ONCE = 16
Answer = TypeVar("Answer")


def sizes(files: Iterable[Location]) -> list[tuple[Location, int | None]]:
    """Each file with its size, as `Location.size` says it; those in buckets are asked for many at once."""
    return _each(lambda file: (file, file.size()), list(files))


def delete_all(files: Iterable[Location]) -> None:
    """Remove files, as `Location.delete` does; those in buckets many at once."""
    _each(lambda file: file.delete(), list(files))


def _each(function: Callable[[Location], Answer], files: list[Location]) -> list[Answer]:
    if len(files) < 2 or files[0].is_local:
        return [function(file) for file in files]
    with ThreadPoolExecutor(min(len(files), REQUESTS_AT_ONCE)) as pool:
        return list(pool.map(function, files))


def lacking(files: Iterable[Location]) -> Location | None:
    """The first of some files that is missing or empty."""
    return next((file for file, size in sizes(files) if not size), None)
