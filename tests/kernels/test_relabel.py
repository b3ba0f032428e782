from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.kernels.relabel import look_up, paint

lookups = st.dictionaries(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), min_size=1, max_size=20)


def columns(table: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    keys = sorted(table)
    return np.array(keys, np.uint64), np.array([table[key] for key in keys], np.uint64)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.data())
def test_painting_equals_indexing(values: list[int], data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=30))
    found = paint(np.array(labels, np.uint32).reshape(1, 1, -1), np.array(values, np.uint64))
    assert found.ravel().tolist() == [values[label] for label in labels]


def test_a_label_without_an_entry_is_never_guessed() -> None:
    with pytest.raises(KeyError, match="label 2 has no entry among 2"):
        paint(np.array([[[0, 1, 2]]], np.uint32), np.array([0, 5], np.uint64))


@given(lookups, st.lists(st.integers(1, 2**64 - 1), max_size=20))
def test_look_up_leaves_what_it_does_not_know(table: dict[int, int], ids: list[int]) -> None:
    values, found = look_up(np.array(ids, np.uint64), *columns(table))
    assert values.tolist() == [table.get(i, i) for i in ids]
    assert found.tolist() == [i in table for i in ids]
