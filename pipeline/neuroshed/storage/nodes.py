"""All tables of one block or tree node in one Parquet file of one row: column `edges.left` holds the list of that
column.

A folder of such files is a table with one row a node. Any list can be read alone, by pandas, polars or DuckDB too
(`SELECT unnest("edges.left") FROM 'up0/*.parquet'`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from neuroshed.errors import BlockError
from neuroshed.storage.files import replace_file

CHECKSUMS = "neuroshed.crc32"
"""Key of the file's metadata that holds the CRC-32 of each column's type and values, after a CRC-32 of the list itself:
Parquet's own checksums of pages do not cover what the file says about them.
"""
Columns = dict[str, npt.NDArray[Any]]

# Arrow's own pools keep what they have freed: half as much again as a large tree node needs.
pa.set_memory_pool(pa.system_memory_pool())


def write_node(path: Path, tables: Mapping[str, Columns]) -> None:
    """Write the tables of a node, columns of one or two dimensions; the folder must exist. Whole or not there at all,
    checksummed, synced.

    Raises OSError as the file system does (a full disk included).
    """
    lists: dict[str, Any] = {}
    checksums = {}
    for name, columns in tables.items():
        for column, values in columns.items():
            ends: Any = np.array([0, len(values)], np.int64)
            array: Any = pa.array(values.ravel())
            if values.ndim == 2:
                array = pa.FixedSizeListArray.from_arrays(array, values.shape[1])
            lists[f"{name}.{column}"] = pa.LargeListArray.from_arrays(ends, array)
            checksums[f"{name}.{column}"] = _checksum(values)
    buffer = pa.BufferOutputStream()
    pq.write_table(
        pa.table(lists).replace_schema_metadata({CHECKSUMS: _sealed(checksums)}),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    replace_file(path, buffer.getvalue())


def read_node(path: Path, *names: str) -> tuple[Columns, ...]:
    """The named tables of a node, with the dtypes they were written with.

    Raises `BlockError` if the file is missing, damaged or lacks a table.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            checksums = _unsealed((file.schema_arrow.metadata or {})[CHECKSUMS.encode()])
            wanted = [column for column in checksums if column.partition(".")[0] in names]
            table = file.read(wanted, use_threads=False)
        found: dict[str, Columns] = {name: {} for name in names}
        for column in wanted:
            name, _, field = column.partition(".")
            values = found[name][field] = _values(table.column(column))
            if _checksum(values) != checksums[column]:
                raise ValueError(f"column {column} does not fit its checksum")
    except FileNotFoundError:
        raise BlockError(f"node {path} is missing; remove its stage's folder and run again") from None
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        # A flipped bit in the file's own description may make anything of it.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BlockError(f"node {path} is damaged ({reason}); remove its stage's folder and run again") from error
    missing = [name for name, columns in found.items() if not columns]
    if missing:
        raise BlockError(f"node {path} has no table {', '.join(missing)}; it was written by another version")
    return tuple(found.values())


def differing_column(one: Path, other: Path) -> str | None:
    """The first column in which two node files differ, in name, type or values; None if they are equal.

    Raises `BlockError` if one is missing or damaged.
    """
    tables = [_all_columns(path) for path in (one, other)]
    for name in sorted({*tables[0], *tables[1]}):
        found = [table.get(name) for table in tables]
        if found[0] is None or found[1] is None or found[0].dtype != found[1].dtype:
            return name
        if not np.array_equal(found[0], found[1]):
            return name
    return None


def _all_columns(path: Path) -> Columns:
    try:
        names = {column.partition(".")[0] for column in pq.read_schema(path).names}
    except FileNotFoundError:
        names = {"any"}
    except (pa.ArrowException, OSError) as error:
        raise BlockError(f"node {path} is damaged ({error})") from error
    ordered = sorted(names)
    tables = zip(ordered, read_node(path, *ordered), strict=True)
    return {f"{name}.{column}": values for name, table in tables for column, values in table.items()}


def _checksum(values: npt.NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(values.dtype.name.encode()))


def _sealed(checksums: dict[str, int]) -> bytes:
    text = json.dumps(checksums).encode()
    return b"%08x %s" % (zlib.crc32(text), text)


def _unsealed(sealed: bytes) -> dict[str, int]:
    if sealed[:9] != b"%08x " % zlib.crc32(sealed[9:]):
        raise ValueError("the list of its columns does not fit its checksum")
    checksums: dict[str, int] = json.loads(sealed[9:])
    return checksums


def _values(column: Any) -> npt.NDArray[Any]:
    values = column.combine_chunks().flatten()
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        rows: npt.NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
        return rows.reshape(-1, width)
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array.astype(values.type.to_pandas_dtype(), copy=False)
