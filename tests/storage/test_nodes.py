"""Node files give back what was put in, or say in one line why they cannot."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from neuroshed.errors import BlockError
from neuroshed.storage.nodes import Columns, read_node, write_node

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
def test_round_trip(rows: int, tmp_path: Path) -> None:
    tables = example(rows)
    write_node(tmp_path / "a.parquet", tables)
    edges, answers = read_node(tmp_path / "a.parquet", "edges", "answers")
    assert_equal(edges, tables["edges"])
    assert_equal(answers, tables["answers"])
    (alone,) = read_node(tmp_path / "a.parquet", "answers")
    assert_equal(alone, tables["answers"])
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


def test_tables_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    write_node(tmp_path / "a.parquet", example(3))
    answers, edges = read_node(tmp_path / "a.parquet", "answers", "edges")
    assert "id" in answers
    assert "bool" in edges


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_node(tmp_path / name, example(50))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_writing_again_replaces(tmp_path: Path) -> None:
    for rows in (5, 2):
        write_node(tmp_path / "a.parquet", example(rows))
    assert read_node(tmp_path / "a.parquet", "edges")[0]["uint8"].size == 2


def test_any_parquet_reader_can_open_it(tmp_path: Path) -> None:
    write_node(tmp_path / "a.parquet", example(3))
    assert pq.read_table(tmp_path / "a.parquet").column("edges.int64").to_pylist()[0] == list(
        example(3)["edges"]["int64"]
    )


def test_a_missing_file_or_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(BlockError, match=r"a\.parquet is missing; remove its stage's folder and run again"):
        read_node(path, "edges")
    write_node(path, example(3))
    with pytest.raises(BlockError, match=r"has no table merges, faces"):
        read_node(path, "edges", "merges", "faces")


def refused_or_equal(path: Path, tables: dict[str, Columns]) -> bool:
    """Whether a damaged file is refused; if it is not, what it holds must be what was written."""
    try:
        found = read_node(path, *tables)
    except BlockError as error:
        return "damaged" in str(error) and "\n" not in str(error)
    for columns, expected in zip(found, tables.values(), strict=True):
        assert_equal(columns, expected)
    return False


def test_cut_off_files_are_refused(tmp_path: Path) -> None:
    path, tables = tmp_path / "a.parquet", example(100)
    write_node(path, tables)
    whole = path.read_bytes()
    for cut in (0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert refused_or_equal(path, tables)


def test_flipped_bits_never_give_other_values(tmp_path: Path) -> None:
    path, tables = tmp_path / "a.parquet", example(100)
    write_node(path, tables)
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        refused += refused_or_equal(path, tables)
    assert refused > 100
