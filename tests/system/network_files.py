"""A file system over a folder that caches as clients of NFS and Lustre do. Each mount is a client of its own.

    python network_files.py FOLDER MOUNTPOINT SECONDS [LOST]

What a client has looked up (attributes, names that are not there, listings) it takes to be so for SECONDS, unless it
changes that folder itself; opening a file asks the server (close-to-open). Every LOST-th link, rename or removal is
done, but its answer is lost and asked for again, which fails: it was done already. (RFC 1813, 4.8 and 4.10; nfs(5),
"Data and metadata coherence".)
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
import threading
import time
from pathlib import PurePosixPath
from typing import Any

import mfusepy as fuse

Entry = tuple[str, dict[str, int], int]
UTIME_NOW = (1 << 30) - 1
STAT = ("st_atime_ns", "st_ctime_ns", "st_gid", "st_ino", "st_mode", "st_mtime_ns", "st_nlink", "st_size", "st_uid")


class Client(fuse.Operations):  # type: ignore[misc]
    """One machine's view of the folder."""

    use_ns = True

    def __init__(self, folder: str, seconds: float, lost: int) -> None:
        self._folder, self._seconds, self._lost = folder, seconds, lost
        self._lock = threading.Lock()
        self._attributes: dict[str, tuple[float, dict[str, int] | None]] = {}
        self._listings: dict[str, tuple[float, list[Entry]]] = {}
        self._count = itertools.count(1)

    def _real(self, path: str) -> str:
        return self._folder + path

    def _changed(self, *paths: str) -> None:
        """This client changed entries: it knows their folders anew."""
        with self._lock:
            for path in paths:
                parent = str(PurePosixPath(path).parent)
                self._listings.pop(parent, None)
                for known in [known for known in self._attributes if str(PurePosixPath(known).parent) == parent]:
                    del self._attributes[known]
                self._attributes.pop(parent, None)

    def _answer_is_lost(self) -> bool:
        return bool(self._lost) and next(self._count) % self._lost == 0

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if fh is not None:
            return _told(os.fstat(fh))
        now = time.monotonic()
        with self._lock:
            until, known = self._attributes.get(path, (0.0, None))
        if now >= until:
            try:
                known = _told(os.lstat(self._real(path)))
            except FileNotFoundError:
                known = None
            with self._lock:
                self._attributes[path] = now + self._seconds, known
        if known is None:
            raise fuse.FuseOSError(errno.ENOENT)
        return known

    def readdir(self, path: str, fh: int) -> list[Entry]:
        now = time.monotonic()
        with self._lock:
            until, known = self._listings.get(path, (0.0, []))
        if now >= until:
            with os.scandir(self._real(path)) as entries:
                known = [(entry.name, {"st_ino": entry.inode()}, 0) for entry in entries]
            with self._lock:
                self._listings[path] = now + self._seconds, known
        return known

    def _opened(self, path: str, handle: int) -> int:
        with self._lock:
            self._attributes[path] = time.monotonic() + self._seconds, _told(os.fstat(handle))
        return handle

    def open(self, path: str, flags: int) -> int:
        return self._opened(path, os.open(self._real(path), flags & ~os.O_NOFOLLOW))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        handle = os.open(self._real(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._changed(path)
        return self._opened(path, handle)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        written = os.pwrite(fh, data, offset)
        self._opened(path, fh)
        return written

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._real(path), length)
        self._changed(path)
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def link(self, target: str, source: str) -> int:
        os.link(self._real(source), self._real(target))
        self._changed(target, source)
        if self._answer_is_lost():
            raise fuse.FuseOSError(errno.EEXIST)
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._real(old), self._real(new))
        self._changed(old, new)
        if self._answer_is_lost():
            raise fuse.FuseOSError(errno.ENOENT)
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._real(path))
        self._changed(path)
        if self._answer_is_lost():
            raise fuse.FuseOSError(errno.ENOENT)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._real(path), mode)
        self._changed(path)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._real(path))
        self._changed(path)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._real(path), mode)
        self._changed(path)
        return 0

    def utimens(self, path: str, times: Any = None) -> int:
        os.utime(self._real(path), ns=None if times is None or UTIME_NOW in times else times)
        self._changed(path)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._folder)
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}


def _told(found: os.stat_result) -> dict[str, int]:
    return {name.removesuffix("_ns"): getattr(found, name) for name in STAT}


if __name__ == "__main__":
    source, mountpoint, kept, *rest = sys.argv[1:]
    client = Client(source, float(kept), int(rest[0]) if rest else 0)
    # What the kernel would keep is kept here, by the rules above.
    fuse.FUSE(
        client, mountpoint, foreground=True, nothreads=False, allow_other=True, default_permissions=True,
        attr_timeout=0, entry_timeout=0, negative_timeout=0, use_ino=True,
    )  # fmt: skip
