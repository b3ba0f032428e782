"""Edges that are too many for memory, in a file without a name that is gone when its process is."""

from __future__ import annotations

import io
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from neuroshed.errors import BlockError
from neuroshed.kernels.merging import Edges

CHUNK = 1 << 20
"""Edges that are written, and read, at once."""
DAMAGED = "a temporary file of edges is damaged; see that the disk of the folder in TMPDIR is sound, and run again"


class EdgeStore:
    """Edges in the order in which they came: up to `room` of them in memory, more in a temporary file.

    Ends are uint32, statistics int64 of that many `columns`. The file lies where `TMPDIR` says, has no name, and goes
    with `close` or the process. Raises OSError as the file system does (a full disk included), and `BlockError` where
    what is read is not what was written.
    """

    def __init__(self, columns: int, room: int) -> None:
        self.columns, self.room = columns, room
        self.count = 0
        self._held: list[Edges] = []
        self._held_count = 0
        self._file: io.FileIO | None = None
        self._close_file: Callable[[], object] = list
        # Edges and CRC-32 of each chunk.
        self._written: list[tuple[int, int]] = []

    def append(
        self, left: npt.NDArray[np.integer[Any]], right: npt.NDArray[np.integer[Any]], stats: npt.NDArray[np.int64]
    ) -> None:
        """Add edges, `(n,)`, `(n,)` and `(n, columns)`; arrays that fit already are kept as they are."""
        if left.size == 0:
            return
        lefts, rights = (ends.astype(np.uint32, copy=False) for ends in (left, right))
        self._held.append(Edges(lefts, rights, stats.astype(np.int64, copy=False)))
        self._held_count += left.size
        self.count += left.size
        if self._held_count > (self.room if self._file is None else CHUNK):
            self._write()

    def __iter__(self) -> Iterator[Edges]:
        """All edges in pieces, the written ones first; nothing may be added meanwhile."""
        at = 0
        for count, checksum in self._written:
            assert self._file is not None
            self._file.seek(at)
            left, right = np.empty((2, count), np.uint32)
            stats = np.empty((count, self.columns), np.int64)
            found = 0
            for array in (left, right, stats):
                at += array.nbytes
                found = _fill(self._file, array, found)
            if found != checksum:
                raise BlockError(DAMAGED)
            yield Edges(left, right, stats)
        yield from self._held

    def taken(self) -> Edges:
        """All edges at once; the store is empty then."""
        nothing = np.zeros(0, np.uint32)
        pieces = [Edges(nothing, nothing, np.zeros((0, self.columns), np.int64)), *self]
        self.close()
        return Edges(*(np.concatenate(columns) for columns in zip(*pieces, strict=True)))

    def close(self) -> None:
        """Forget all edges."""
        self._close_file()
        self._file = None
        self._held, self._written = [], []
        self.count = self._held_count = 0

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by `close`, or with the store
            self._close_file = weakref.finalize(self, self._file.close)
        self._file.seek(0, 2)
        for piece in self._held:
            for start in range(0, piece.left.size, CHUNK):
                part = [column[start : start + CHUNK] for column in piece]
                checksum = 0
                for column in part:
                    checksum = _put(self._file, column, checksum)
                self._written.append((part[0].size, checksum))
        self._held, self._held_count = [], 0


def _put(file: io.FileIO, array: npt.NDArray[Any], checksum: int) -> int:
    """Write an array; returns the CRC-32 of all since `checksum`."""
    data = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    checksum = zlib.crc32(data, checksum)
    # A raw file may take a part only.
    while data:
        data = data[file.write(data) :]
    return checksum


def _fill(file: io.FileIO, array: npt.NDArray[Any], checksum: int) -> int:
    """Read an array; returns the CRC-32 of all since `checksum`."""
    whole = memoryview(array.reshape(-1).view(np.uint8).data)
    data = whole
    while data:
        count = file.readinto(data)
        if not count:
            raise BlockError(DAMAGED)
        data = data[count:]
    return zlib.crc32(whole, checksum)
