"""One question or order to many files; those in buckets are asked at once, since each answer takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from neuroshed.storage.locations import Location

REQUESTS_AT_ONCE = 16
Item = TypeVar("Item")
Answer = TypeVar("Answer")


def sizes(files: Iterable[Location]) -> list[tuple[Location, int | None]]:
    """Each file with its size, as `Location.size` says it; those in buckets are asked for many at once."""
    return _each(lambda file: (file, file.size()), list(files))


def delete_all(files: Iterable[Location]) -> None:
    """Remove files, as `Location.delete` does; those in buckets many at once."""
    _each(lambda file: file.delete(), list(files))


def _each(function: Callable[[Location], Answer], files: list[Location]) -> list[Answer]:
    return [function(file) for file in files] if files and files[0].is_local else at_once(function, files)


def at_once(function: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """What a function that waits for a store gives for each of some items, asked many at once."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), REQUESTS_AT_ONCE)) as pool:
        return list(pool.map(function, items))


def lacking(files: Iterable[Location]) -> Location | None:
    """The first of some files that is missing or empty."""
    return next((file for file, size in sizes(files) if not size), None)
