from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuroshed.kernels.scores import (
    MAX_COUNT,
    TOP_SCORE,
    Score,
    add_edge,
    add_rule,
    check_stats,
    check_sums,
    combine,
    edge_score,
    integer_scores,
)
from tests.kernels.plain_merging import SCORES, plain_score, statistics

scores = st.sampled_from(SCORES).map(Score.parse)
affinities = st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0, 254, 255])), min_size=1, max_size=20)


def one_score(score: Score, values: list[int]) -> int:
    (found,) = integer_scores(score, np.array([statistics(score.name, values)]))
    return int(found)


@given(scores, affinities)
def test_equals_the_score_of_all_affinities(score: Score, values: list[int]) -> None:
    assert one_score(score, values) == plain_score(score.name, values)


@given(scores, affinities, affinities)
def test_adding_up_equals_having_all_and_is_reducible(score: Score, one: list[int], two: list[int]) -> None:
    rows = np.array([statistics(score.name, one), statistics(score.name, two)])
    both = combine(score, rows, np.array([0]))
    assert both.tolist() == [statistics(score.name, one + two)]
    assert integer_scores(score, both)[0] <= integer_scores(score, rows).max()


@st.composite
def large_rows(draw: st.DrawFn, score: Score) -> list[int]:
    """Statistics as large as they may get."""
    count = draw(st.integers(1, MAX_COUNT // 2))
    if score.name == "mean":
        return [draw(st.integers(0, 255 * count)), count]
    if score.columns == 1:
        return [draw(st.integers(0, 255))]
    row = [0] * 256
    for _ in range(draw(st.integers(1, 4))):
        row[draw(st.integers(0, 255))] += draw(st.integers(1, count)) // 4
    row[draw(st.integers(0, 255))] += 1
    return row


@given(scores, st.data())
def test_the_compiled_score_equals_the_vectorised_one_and_is_reducible(score: Score, data: st.DataObject) -> None:
    rows = np.array([data.draw(large_rows(score)), data.draw(large_rows(score))])
    check_stats(score, rows)
    expected = integer_scores(score, rows).tolist()
    assert [edge_score(rows, i, score.code, score.percent) for i in (0, 1)] == expected
    both = combine(score, rows, np.array([0]))
    add_edge(rows, 0, 1, score.code)
    assert rows[:1].tolist() == both.tolist()
    if score.name != "mean" or both[0, 1] < MAX_COUNT:
        assert edge_score(rows, 0, score.code, score.percent) == integer_scores(score, both)[0] <= max(expected)


@given(st.integers(0, 255), st.integers(1, MAX_COUNT - 1), st.data())
def test_means_of_many_do_not_overflow(low: int, count: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(low * count, 255 * count))
    rows = np.array([[total, count]])
    check_sums(rows)
    assert integer_scores(Score("mean"), rows).tolist() == [(total << 20) // count]
    assert edge_score(rows, 0, 0, 0) == (total << 20) // count


def test_given_scores_stay_as_they_are_and_the_larger_counts() -> None:
    score, rows = Score("given"), np.array([[7], [TOP_SCORE], [0]])
    check_stats(score, rows)
    assert integer_scores(score, rows).tolist() == [7, TOP_SCORE, 0]
    assert [edge_score(rows, i, score.code, score.percent) for i in range(3)] == [7, TOP_SCORE, 0]
    assert combine(score, rows, np.array([0, 2])).tolist() == [[TOP_SCORE], [0]]
    add_edge(rows, 2, 0, score.code)
    assert rows[2].tolist() == [7]


@pytest.mark.parametrize("row", [[0, 0], [0, MAX_COUNT], [-1, 5], [256, 1], [-(2**62), 7]])
def test_sums_that_overflow_are_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match="overflow"):
        check_sums(np.array([[5, 1], row]))


def test_an_edge_that_grows_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="overflow"):
        edge_score(np.array([[5, MAX_COUNT]]), 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mean", [[1, 2, 3]]),
        ("mean", [[300, 1]]),
        ("max", [[256]]),
        ("min", [[-1]]),
        ("min", [1, 2]),
        ("given", [[TOP_SCORE + 1]]),
        ("given", [[-1]]),
        ("quantile_5", [[0] * 256]),
        ("quantile_5", [[2, -1, *[0] * 254]]),
        ("quantile_5", [[MAX_COUNT, *[0] * 255]]),
    ],
)
def test_statistics_that_are_none_are_refused(name: str, rows: list[list[int]]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        check_stats(Score(name), np.array(rows))


@pytest.mark.parametrize("score", [Score(name) for name in SCORES], ids=lambda score: score.name)
def test_no_edges_are_fine(score: Score) -> None:
    none = np.zeros((0, score.columns), np.int64)
    check_stats(score, none)
    assert combine(score, none, np.zeros(0, np.int64)).shape == none.shape
    assert integer_scores(score, none).shape == (0,)
    assert add_rule(score) in (np.add, np.maximum, np.minimum)


@pytest.mark.parametrize(
    "name",
    ["given", "median", "quantile", "quantile_", "quantile_101", "quantile_050", "quantile_-1", "Mean", "mean ", ""],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"known are mean, max, min and quantile_P"):
        Score.parse(name)
