"""Files that are whole at their final place or not there at all, also after a crash of the machine."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

DRAFT = ".partial"
"""At the end of the name of a file that is being written."""
# Ours and zarr's.
_DRAFT = re.compile(rf"\..+\.[0-9a-f]{{16,32}}({DRAFT})?|.+\.[0-9a-f]{{32}}{DRAFT}")


def is_draft(name: str) -> bool:
    """Whether a file or folder of this name is being written, or was when its writer was killed.

    >>> [is_draft(name) for name in (".plan.json." + 32 * "0" + ".partial", "plan.json")]
    [True, False]
    """
    return _DRAFT.fullmatch(name) is not None


def sync_path(path: Path) -> None:
    """Flush a file or folder to disk, so that it outlives a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that the disk or store, or the user's share of it, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


# What file systems say that have no hard links.
_WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}

# What they say of a folder in which a deleted file is still open.
_STILL_OPEN = {errno.ENOTEMPTY, errno.EBUSY}
CLOSED_SECONDS = 5.0
"""For others to close what is being deleted."""

# Folders whose entry in the folder above is on disk, as far as this process has seen to it.
_durable: set[Path] = set()


def sync_entry(path: Path, root: Path) -> None:
    """Flush a new file (or folder) and the entries of the folders between it and `root`, which is on disk already.

    Folders that another process made a moment ago are seen to as well; each only once by this process.
    """
    sync_path(path)
    sync_path(path.parent)
    for folder in path.parents:
        if folder == root or folder in _durable:
            break
        sync_path(folder.parent)
        _durable.add(folder)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, synced to disk."""
    fresh = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in fresh:
        sync_path(folder.parent)
        _durable.add(folder)


def replace_file(path: Path, data: bytes | memoryview[int] | Any) -> Path:
    """Put a file with `data` at `path` in one step, synced with its folder, which must be on disk already.

    Nobody ever sees a part of it. Raises OSError as the file system does (a full disk included).
    """
    with replacing(path) as file:
        file.write(data)
    return path


def create_file(path: Path, data: bytes) -> bool:
    """Put a file with `data` at `path`, as `replace_file` does, but only if nothing is there; whether it did."""
    draft = _draft(path)
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        if not _linked(draft):
            return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        return _create_in_place(path, data)
    finally:
        draft.unlink(missing_ok=True)
    sync_path(path.parent)
    return True


def _linked(draft: Path) -> bool:
    """Whether a draft has two names: a network file system whose answer was lost is asked again, and denies what it
    did. Opening makes it look anew.
    """
    try:
        with draft.open("rb") as file:
            return os.fstat(file.fileno()).st_nlink == 2
    except FileNotFoundError:
        return False


def _is_at(path: Path, identity: tuple[int, int]) -> bool:
    """Whether the file of this device and number is at a path."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == identity


def _create_in_place(path: Path, data: bytes) -> bool:
    # Whoever looks in this moment may see a part.
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    sync_path(path.parent)
    return True


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{DRAFT}")


def remove_drafts(folder: Path) -> int:
    """Remove what writers who were killed left below a folder, while nobody writes; returns how many things."""
    count = 0
    for parent, folders, names in os.walk(folder):
        for name in filter(is_draft, names):
            Path(parent, name).unlink(missing_ok=True)
            count += 1
        for name in filter(is_draft, folders):
            remove_tree(Path(parent, name))
            count += 1
        folders[:] = [name for name in folders if not is_draft(name)]
    return count


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it. A network file system keeps a file that somebody has open under a hidden
    name (.nfs...) until it is closed, and its folder with it: that is waited for.
    """
    until = time.monotonic() + CLOSED_SECONDS
    while True:
        try:
            return shutil.rmtree(path)
        except OSError as error:
            if error.errno not in _STILL_OPEN or time.monotonic() > until:
                raise
        time.sleep(CLOSED_SECONDS / 50)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place at `path` when all went well, as with `replace_file`."""
    draft = _draft(path)
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_in_place(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def put_in_place(draft: Path, path: Path) -> None:
    """Give a file that is whole and synced its place, of which nobody ever sees a part."""
    written = draft.stat()
    try:
        draft.replace(path)
    except FileNotFoundError:
        # As for links: what was denied may have been done.
        if not _is_at(path, (written.st_dev, written.st_ino)):
            raise
    sync_path(path.parent)


@contextmanager
def draft_folder(beside: Path) -> Iterator[Path]:
    """A folder, hidden beside a file or folder, in which drafts of it are written; it goes at the end."""
    folder = beside.with_name(f".{beside.name}.{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        if folder.exists():
            remove_tree(folder)
