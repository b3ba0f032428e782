"""Zarr arrays read from disks of this machine, and encoded for all stores, by tensorstore: several times as fast as
zarr-python (`benchmarks/io.py`). Nothing is cached, since another process may write again what was read.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from neuroshed.storage.tensors import reason_of

DECODERS = 4
"""Threads of a process that decode and encode chunks, at the most."""
_DRIVERS = {2: "zarr", 3: "zarr3"}
# As newer and older versions say it.
_SYSTEM_ERROR = re.compile(r"\[(?:os_error_code='|OS error )(\d+)")
_FILE = re.compile(r'local file "([^"]*)"')
Index = tuple[int | slice, ...]


class DamagedError(Exception):
    """Data that cannot be decoded, or are not there; names the file."""


def told(error: BaseException) -> str:
    """What went wrong with some data, in one line: other errors than ours may be but a word, so they go by their names.

    >>> told(DamagedError("/a/0: Digest mismatch")), told(KeyError("x"))
    ('/a/0: Digest mismatch', "KeyError: 'x'")
    """
    text = str(error) if isinstance(error, DamagedError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


class DiskArray:
    """An array by its own axes. Raises OSError as the file system does, `DamagedError` for what is damaged."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    @classmethod
    def of(cls, array: zarr.Array[Any], folder: Path, strict: bool) -> DiskArray | None:
        """The array in a folder; None if tensorstore does not know its type or one of its codecs. No file is read.

        With `strict`, chunks that are not there are errors when they are read, and no fill values.
        """
        tensor = _open(array, {"driver": "file", "path": f"{folder}/"}, _context(), strict)
        return None if tensor is None else cls(tensor)

    def read(self, index: Index) -> npt.NDArray[Any]:
        """The values at an index, in C order, the caller's to change."""
        try:
            found: npt.NDArray[Any] = self._tensor[index].read().result()
        except ValueError as error:
            raise system_error(error) or DamagedError(damage(error)) from error
        return found


def knows(array: zarr.Array[Any]) -> bool:
    """Whether tensorstore knows the type of an array and all of its codecs."""
    return _open(array, "memory://", _context(), strict=False) is not None


def encode(array: zarr.Array[Any], index: Index, data: npt.NDArray[Any]) -> bytes:
    """The one file of an array that holds what is at an index, with fill values for what else it holds. While it is
    made its bytes are there three times.
    """
    import tensorstore

    # With a memory of its own.
    context = tensorstore.Context({"data_copy_concurrency": _decoders()})
    tensor = _open(array, "memory://", context, strict=False)
    _fill(tensor, index, data)
    (key,) = tensor.kvstore.list().result()
    return bytes(tensor.kvstore[key])


def encode_to(folder: Path, array: zarr.Array[Any], index: Index, data: npt.NDArray[Any]) -> Path:
    """The same as a file in a new folder, not synced; its bytes are in memory once. Raises OSError as the file system
    does.
    """
    store = {"driver": "file", "path": f"{folder}/", "file_io_sync": False}
    tensor = _open(array, store, _context(), strict=False)
    try:
        _fill(tensor, index, data)
    except ValueError as error:
        if found := system_error(error):
            raise found from error
        raise
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def _fill(tensor: Any, index: Index, data: npt.NDArray[Any]) -> None:
    # It is waited for, so that nothing has to be copied before.
    values = np.asarray(data, tensor.dtype.numpy_dtype)
    tensor[index].write(values, can_reference_source_data_indefinitely=True).result()


def _open(array: zarr.Array[Any], store: str | dict[str, Any], context: Any, strict: bool) -> Any:
    import tensorstore

    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    try:
        spec = {
            "driver": _DRIVERS[array.metadata.zarr_format],
            "kvstore": store,
            "metadata": json.loads(json.dumps(metadata)),
            "fill_missing_data_reads": not strict,
            # A block of zeros leaves a file too, so one that is missing later was lost.
            "store_data_equal_to_fill_value": True,
        }
        return tensorstore.open(spec, open=True, assume_metadata=True, context=context).result()
    except (ValueError, TypeError, NotImplementedError):
        # Types and codecs that tensorstore does not have, and (TypeError) metadata that are no JSON. zarr-python takes
        # these arrays; tests/storage/test_disk_arrays.py says which are known.
        return None


def _decoders() -> dict[str, int]:
    return {"limit": min(DECODERS, os.cpu_count() or 1)}


@functools.cache
def _context() -> Any:
    import tensorstore

    return tensorstore.Context(
        {
            "cache_pool": {},
            "data_copy_concurrency": _decoders(),
            # Answers of network file systems take a while.
            "file_io_concurrency": {"limit": 16},
            # A file has one writer.
            "file_io_locking": {"mode": "none"},
        }
    )


def damage(error: Exception) -> str:
    """What is wrong with which file, if an error of tensorstore names one.

    >>> damage(ValueError('DATA_LOSS: Error reading shard index in local file "/a/0": Digest mismatch'))
    '/a/0: Digest mismatch'
    """
    *_, last = _FILE.split(reason_of(error))
    file = _FILE.findall(str(error))
    return f"{file[-1]}: {last[2:]}" if file and last.startswith(": ") else reason_of(error)


def system_error(error: Exception) -> OSError | None:
    r"""What the file system said, if an error of tensorstore is about that; it names the file.

    >>> system_error(ValueError('writing local file "/a/0" [os_error_code=\'28\']'))
    OSError(28, 'No space left on device')
    """
    code = _SYSTEM_ERROR.search(str(error))
    if code is None:
        return None
    file = _FILE.search(str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), file[1] if file else None)
