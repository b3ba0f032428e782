"""Tables: one Parquet file a block or tree node, whole at its final place or not there at all.

A table is a dictionary of columns of equal length. Users can open the files with pandas, polars or DuckDB.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from neuroshed.errors import BlockError
from neuroshed.storage.files import make_folder, replace_file

Columns = dict[str, npt.NDArray[Any]]


def write_table(path: str | os.PathLike[str], columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write 1-D `columns` of equal length (bool, integers, floats; possibly empty) as a zstd Parquet file at `path`.

    The file is written under another name in the same folder (made if missing), synced and renamed, and the folder is
    synced: when this returns the table outlives a crash of the machine, and nobody ever sees a part of it. Each page
    carries a checksum. Equal columns give equal bytes under one version of pyarrow.

    Raises ValueError for columns that are no table, OSError as the file system does (a full disk included).
    """
    path = Path(path)
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    if not shapes or len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"a table needs 1-D columns of equal length; got {shapes}")
    buffer = pa.BufferOutputStream()
    pq.write_table(
        pa.table({name: pa.array(array) for name, array in arrays.items()}),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    make_folder(path.parent)
    replace_file(path, buffer.getvalue())


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Columns:
    """The columns of the table at `path` (or only those named, in that order), with the dtypes they were written with.

    The arrays may be read-only. Raises `BlockError` if the file is missing, damaged or lacks a column.
    """
    path = Path(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names if columns is None else list(columns)
            missing = sorted(set(names) - set(file.schema_arrow.names))
            if missing:
                raise BlockError(f"table {path} has no column {', '.join(missing)}; it has {file.schema_arrow.names}")
            table = file.read(names, use_threads=False)
    except FileNotFoundError:
        raise BlockError(f"table {path} is missing; run the block that writes it again") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BlockError(f"table {path} is damaged ({reason}); remove it and run its block again") from error
    return {name: _to_numpy(table.column(name)) for name in names}


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    """A column as one numpy array, without a copy where Arrow's layout allows (booleans are bits there)."""
    if column.num_chunks == 1:
        array: npt.NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=False)
    else:
        array = column.to_numpy()
    # An Arrow column of no chunks or null type has no numpy type of its own.
    return array.astype(column.type.to_pandas_dtype(), copy=False)
