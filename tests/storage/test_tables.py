import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from neuroshed.errors import BlockError
from neuroshed.storage.tables import read_table, write_table

DTYPES = ["uint64", "int64", "uint32", "int32", "uint16", "uint8", "int8", "bool", "float32", "float64"]


@st.composite
def tables(draw):
    length = draw(st.integers(0, 50))
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=5))
    elements = {"allow_nan": False}
    return {
        f"column{i}": draw(hnp.arrays(dtype, length, elements=elements if dtype.startswith("float") else None))
        for i, dtype in enumerate(dtypes)
    }


@settings(max_examples=40, deadline=None)
@given(columns=tables())
def test_reads_back_what_was_written(tmp_path_factory, columns):
    path = tmp_path_factory.mktemp("tables") / "table.parquet"
    write_table(path, columns)
    back = read_table(path)
    assert list(back) == list(columns)
    for name, column in columns.items():
        assert back[name].dtype == column.dtype
        assert_array_equal(back[name], column)


def test_keeps_the_whole_range_of_ids(tmp_path):
    ids = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    write_table(tmp_path / "ids.parquet", {"id": ids, "sum": np.array([-(2**63), 0, 1, 2**63 - 1])})
    back = read_table(tmp_path / "ids.parquet")
    assert_array_equal(back["id"], ids)
    assert back["sum"].tolist() == [-(2**63), 0, 1, 2**63 - 1]


def test_reads_only_the_named_columns_in_their_order(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, {"a": np.arange(3), "b": np.arange(3) > 0, "c": np.arange(3, dtype=np.uint8)})
    assert list(read_table(path, ["c", "a"])) == ["c", "a"]
    with pytest.raises(BlockError, match=r"no column d; it has \['a', 'b', 'c'\]"):
        read_table(path, ["a", "d"])


def test_reads_many_row_groups(tmp_path):
    path = tmp_path / "long.parquet"
    column = np.arange(3_000_000, dtype=np.uint64)
    flags = column % 3 == 0
    write_table(path, {"a": column, "flag": flags})
    back = read_table(path)
    assert_array_equal(back["a"], column)
    assert_array_equal(back["flag"], flags)


def test_strided_columns_are_written(tmp_path):
    pairs = np.arange(10, dtype=np.uint64).reshape(5, 2)
    write_table(tmp_path / "pairs.parquet", {"low": pairs[:, 0], "high": pairs[:, 1]})
    assert read_table(tmp_path / "pairs.parquet")["high"].tolist() == [1, 3, 5, 7, 9]


def test_makes_its_folder_and_leaves_nothing_else_there(tmp_path):
    path = tmp_path / "step" / "0" / "table.parquet"
    for _ in range(2):
        write_table(path, {"a": np.arange(3)})
    assert [entry.name for entry in path.parent.iterdir()] == ["table.parquet"]


def test_equal_tables_have_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_table(tmp_path / name, {"a": np.arange(1000, dtype=np.uint64), "b": np.arange(1000) % 2 == 0})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    write_table(path, {"a": np.arange(3)})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(path, {"a": np.arange(4)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.parquet"]
    assert read_table(path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "columns",
    [{}, {"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros((2, 2))}, {"a": np.uint64(3)}],
    ids=["none", "lengths", "2-D", "scalar"],
)
def test_refuses_what_is_no_table(tmp_path, columns):
    with pytest.raises(ValueError, match="1-D columns of equal length"):
        write_table(tmp_path / "table.parquet", columns)
    assert not list(tmp_path.iterdir())


def test_missing_table(tmp_path):
    with pytest.raises(BlockError, match="is missing; run the block"):
        read_table(tmp_path / "table.parquet")


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_damaged_table(tmp_path, damage):
    path = tmp_path / "table.parquet"
    write_table(path, {"a": np.random.default_rng(0).integers(0, 2**60, 10_000)})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "flipped": data}[damage])
    with pytest.raises(BlockError, match="is damaged") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
