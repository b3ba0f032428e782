"""All tables of one block or tree node in one Parquet file: column `edges.left` holds lists of that column's values.

A folder of such files is a table with one row a node; a table of more than `PIECE` rows is cut into several lists, one
a row and row group, so that it can be written and read in pieces. Any list can be read alone, by pandas, polars or
DuckDB too (`SELECT unnest("edges.left") FROM 'up0/*.parquet'`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from neuroshed.errors import BlockError
from neuroshed.storage.locations import Location
from neuroshed.storage.readback import forget_cached, is_reading_back, not_held

CHECKSUMS = "neuroshed.crc32"
"""Key of the file's metadata that holds the CRC-32 of each column's type and values, after a CRC-32 of the list itself:
Parquet's own checksums of pages do not cover what the file says about them.
"""
PIECE = 1 << 22
"""Rows of a table in one list."""
Columns = dict[str, npt.NDArray[Any]]

# Arrow's own pools keep what they have freed: half as much again as a large tree node needs.
pa.set_memory_pool(pa.system_memory_pool())


def write_node(path: Location, tables: Mapping[str, Columns | Iterator[Columns]]) -> dict[str, int]:
    """Write the tables of a node, columns of one or two dimensions; the folder must exist. Whole or not there at all,
    checksummed, synced.

    A table may also come in pieces, at least one, each of which is dropped when it is written. Returns the rows of each
    table. Raises OSError as the file system does (a full disk included), `WorkflowError` as the object store does,
    `BlockError` if it is read back (`reading_back`) as something else.
    """
    checksums: dict[str, int] = {}
    rows = dict.fromkeys(tables, 0)
    pieces = {name: iter(table) if isinstance(table, Iterator) else _cut(table) for name, table in tables.items()}
    first = {name: next(piece) for name, piece in pieces.items()}
    # Copies, for a view would keep all of the first piece.
    nothing = {name: {key: values[:0].copy() for key, values in table.items()} for name, table in first.items()}
    row = _row(first, checksums, rows)
    with (
        path.replacing() as file,
        pq.ParquetWriter(
            file,
            row.schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        writer.write_table(row)
        del first, row
        for found in zip_longest(*pieces.values()):
            tables_of_row = {
                name: nothing[name] if piece is None else piece for name, piece in zip(pieces, found, strict=True)
            }
            writer.write_table(_row(tables_of_row, checksums, rows))
        writer.add_key_value_metadata({CHECKSUMS: _sealed(checksums)})
    if is_reading_back():
        _check_held(path, checksums)
    return rows


def _check_held(path: Location, checksums: dict[str, int]) -> None:
    try:
        forget_cached([path])
        with _opened(path) as file:
            held = _unsealed(file.metadata.metadata[CHECKSUMS.encode()])
            for name in dict.fromkeys(column.partition(".")[0] for column in held):
                for _ in _pieces(path, file, name):
                    pass
    except (BlockError, LookupError, OSError, ValueError) as error:
        raise not_held(path, error) from error
    if held != checksums:
        raise not_held(path, "its checksums are others")


def read_node(path: Location, *names: str) -> tuple[Columns, ...]:
    """The named tables of a node, with the dtypes they were written with.

    Raises `BlockError` if the file is missing, damaged or lacks a table.
    """
    with _opened(path) as file:
        return tuple(_concatenated(list(_pieces(path, file, name))) for name in names)


def read_nodes(paths: Sequence[Location], *names: str) -> Iterator[Columns]:
    """Each named table with the rows of all these nodes, one after the other; a table is read when its turn comes.

    Raises `BlockError` as `read_node` does.
    """
    with ExitStack() as stack:
        files = [(path, stack.enter_context(_opened(path))) for path in paths]
        for name in names:
            yield _concatenated([piece for path, file in files for piece in _pieces(path, file, name)])


def read_pieces(path: Location, name: str) -> Iterator[Columns]:
    """One table of a node in the pieces that it was written in, at least one.

    Raises `BlockError` as `read_node` does; that a value is damaged may show only after the last piece.
    """
    with _opened(path) as file:
        yield from _pieces(path, file, name)


def _pieces(path: Location, file: Any, name: str) -> Iterator[Columns]:
    with _told(path):
        yield from _checked_pieces(path, file, name)


def _checked_pieces(path: Location, file: Any, name: str) -> Iterator[Columns]:
    checksums = _unsealed((file.metadata.metadata or {})[CHECKSUMS.encode()])
    wanted = [column for column in checksums if column.partition(".")[0] == name]
    if not wanted:
        raise BlockError(f"node {path} has no table {name}; it was written by another version")
    running: dict[str, int] = {}
    for group in range(file.num_row_groups):
        row = file.read_row_group(group, wanted, use_threads=False)
        piece = {column.partition(".")[2]: _values(row.column(column)) for column in wanted}
        del row
        for column, values in zip(wanted, piece.values(), strict=True):
            running[column] = _checksum(values, running.get(column))
        yield piece
    for column in wanted:
        if running[column] != checksums[column]:
            raise ValueError(f"column {column} does not fit its checksum")


def _concatenated(pieces: list[Columns]) -> Columns:
    """All rows; the pieces are used up."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in list(pieces[0])}


def _opened(path: Location) -> Any:
    with _told(path):
        # Arrow reads files of this machine faster itself.
        source = str(path) if path.is_local else path.open_read()
        return pq.ParquetFile(source, page_checksum_verification=True)


@contextmanager
def _told(path: Location) -> Iterator[None]:
    """All that can be wrong with a node's file as `BlockError`."""
    try:
        yield
    except FileNotFoundError:
        raise BlockError(f"node {path} is missing; remove its stage's folder and run again") from None
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        # A flipped bit in the file's own description may make anything of it.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BlockError(f"node {path} is damaged ({reason}); remove its stage's folder and run again") from error


def _cut(table: Columns) -> Iterator[Columns]:
    rows = max(len(values) for values in table.values())
    for start in range(0, max(rows, 1), PIECE):
        yield {name: values[start : start + PIECE] for name, values in table.items()}


def _row(tables: Mapping[str, Columns], checksums: dict[str, int], rows: dict[str, int]) -> Any:
    """One row of the file, with its values added to `checksums` and their number to `rows`."""
    lists: dict[str, Any] = {}
    for name, columns in tables.items():
        rows[name] += len(next(iter(columns.values())))
        for column, values in columns.items():
            ends: Any = np.array([0, len(values)], np.int64)
            array: Any = pa.array(values.ravel())
            if values.ndim == 2:
                array = pa.FixedSizeListArray.from_arrays(array, values.shape[1])
            key = f"{name}.{column}"
            lists[key] = pa.LargeListArray.from_arrays(ends, array)
            checksums[key] = _checksum(values, checksums.get(key))
    return pa.table(lists)


def differing_column(one: Location, other: Location) -> str | None:
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


def _all_columns(path: Location) -> Columns:
    with _opened(path) as file:
        ordered = sorted({column.partition(".")[0] for column in file.schema_arrow.names})
    tables = zip(ordered, read_node(path, *ordered), strict=True)
    return {f"{name}.{column}": values for name, table in tables for column, values in table.items()}


def _checksum(values: npt.NDArray[Any], running: int | None = None) -> int:
    """CRC-32 of values, after that of the pieces before them."""
    begun = zlib.crc32(values.dtype.name.encode()) if running is None else running
    return zlib.crc32(np.ascontiguousarray(values).data, begun)


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
