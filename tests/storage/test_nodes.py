"""Node files give back what was put in, or say in one line why they cannot."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from neuroshed.errors import BlockError
from neuroshed.storage import nodes
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import Columns, differing_column, read_node, read_nodes, read_pieces, write_node

TYPES = [np.uint8, np.int64, np.uint64, np.float64, np.bool_]


def example(rows: int) -> dict[str, Columns]:
    rng = np.random.default_rng(rows)
    edges = {np.dtype(kind).name: rng.integers(0, 200, rows).astype(kind) for kind in TYPES}
    return {"edges": edges, "answers": {"id": np.array([2**64 - 1], np.uint64), "0.5": np.zeros(1, np.uint64)}}


def assert_equal(found: Columns, expected: Columns) -> None:
    assert list(found) == list(expected)
    for name, column in expected.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_round_trip(rows: int, place: Location) -> None:
    tables = example(rows)
    write_node(place / "a.parquet", tables)
    edges, answers = read_node(place / "a.parquet", "edges", "answers")
    assert_equal(edges, tables["edges"])
    assert_equal(answers, tables["answers"])
    (alone,) = read_node(place / "a.parquet", "answers")
    assert_equal(alone, tables["answers"])
    assert place.names() == ["a.parquet"]


def test_tables_are_read_in_the_order_asked_for(place: Location) -> None:
    write_node(place / "a.parquet", example(3))
    answers, edges = read_node(place / "a.parquet", "answers", "edges")
    assert "id" in answers
    assert "bool" in edges


def test_equal_tables_give_equal_bytes(place: Location) -> None:
    for name in "ab":
        write_node(place / name, example(50))
    assert (place / "a").read_bytes() == (place / "b").read_bytes()


def test_writing_again_replaces(place: Location) -> None:
    for rows in (5, 2):
        write_node(place / "a.parquet", example(rows))
    assert read_node(place / "a.parquet", "edges")[0]["uint8"].size == 2


def test_any_parquet_reader_can_open_it(place: Location) -> None:
    write_node(place / "a.parquet", example(3))
    assert pq.read_table((place / "a.parquet").open_read()).column("edges.int64").to_pylist()[0] == list(
        example(3)["edges"]["int64"]
    )


def test_a_missing_file_or_table_is_named(place: Location) -> None:
    path = place / "a.parquet"
    with pytest.raises(BlockError, match=r"a\.parquet is missing; remove its stage's folder and run again"):
        read_node(path, "edges")
    write_node(path, example(3))
    with pytest.raises(BlockError, match=r"has no table merges"):
        read_node(path, "edges", "merges", "faces")


def refused_or_equal(path: Location, tables: dict[str, Columns]) -> bool:
    """Whether a damaged file is refused; if it is not, what it holds must be what was written."""
    try:
        found = read_node(path, *tables)
    except BlockError as error:
        return "damaged" in str(error) and "\n" not in str(error)
    for columns, expected in zip(found, tables.values(), strict=True):
        assert_equal(columns, expected)
    return False


def test_cut_off_files_are_refused(place: Location) -> None:
    path, tables = place / "a.parquet", example(100)
    write_node(path, tables)
    whole = path.read_bytes()
    for cut in (0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.put(whole[:cut])
        assert refused_or_equal(path, tables)


def test_flipped_bits_never_give_other_values(tmp_path: Path) -> None:
    path, tables = Location.of(tmp_path / "a.parquet"), example(100)
    write_node(path, tables)
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.put(damaged)
        refused += refused_or_equal(path, tables)
    assert refused > 100


def piecewise(columns: Columns, size: int) -> Iterator[Columns]:
    rows = len(next(iter(columns.values())))
    for start in range(0, max(rows, 1), size):
        yield {name: values[start : start + size] for name, values in columns.items()}


@pytest.mark.parametrize("size", [3, 10, 100])
@pytest.mark.parametrize("rows", [0, 1, 10, 25])
def test_tables_in_pieces(rows: int, size: int, place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tables = place / "a.parquet", example(rows)
    tables["edges"]["stats"] = np.arange(2 * rows).reshape(rows, 2)
    monkeypatch.setattr(nodes, "PIECE", 4)
    written = write_node(path, {**tables, "edges": piecewise(tables["edges"], size)})
    assert written == {"edges": rows, "answers": 1}
    for columns, found in zip(tables.values(), read_node(path, *tables), strict=True):
        assert_equal(found, columns)
    pieces = list(read_pieces(path, "edges"))
    assert len(pieces) == max(1, -(-rows // size))
    assert_equal({name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}, tables["edges"])
    whole = place / "b.parquet"
    write_node(whole, tables)
    assert pq.ParquetFile(whole.open_read()).num_row_groups == max(1, -(-rows // 4))
    assert differing_column(path, whole) is None


def test_rows_of_several_nodes(place: Location) -> None:
    paths = [place / f"{rows}.parquet" for rows in (3, 0, 8)]
    tables = [example(rows) for rows in (3, 0, 8)]
    for path, table in zip(paths, tables, strict=True):
        write_node(path, table)
    for damaged, path in enumerate(paths):
        whole = path.read_bytes()
        path.put(whole.replace(b"neuroshed.crc32", b"neuroshed.crc33"))
        with pytest.raises(BlockError, match=rf"node .*/{(3, 0, 8)[damaged]}\.parquet is damaged"):
            list(read_nodes(paths, "answers", "edges"))
        path.put(whole)
    answers, edges = read_nodes(paths, "answers", "edges")
    assert answers["id"].size == 3
    assert_equal(edges, {name: np.concatenate([table["edges"][name] for table in tables]) for name in edges})


def test_a_flipped_bit_in_any_piece_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "PIECE", 30)
    path, tables = Location.of(tmp_path / "a.parquet"), example(100)
    write_node(path, tables)
    whole = path.read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.put(damaged)
        refused_or_equal(path, tables)
        try:
            pieces = list(read_pieces(path, "edges"))
        except BlockError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert_equal({name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}, tables["edges"])
