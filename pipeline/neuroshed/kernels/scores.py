"""Scores of region graph edges: what an edge carries, how parallel edges add up, and the integer that orders them.

Every score is *reducible* (Bruynooghe 1978): adding up two parallel edges never gives a score above the better of the
two. That is what makes it safe to put a merge off, and so to agglomerate in chunks (Lu, Zlateski and Seung 2021,
arXiv 2106.10795). Scores are integers, so they depend on no order of additions and on no rounding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

SCALE_BITS = 20
TOP_SCORE = 255 << SCALE_BITS
"""The highest score that an edge can have."""

MAX_COUNT = 1 << 43
"""A mean over this many affinities or more would overflow an int64 while it is scored."""

MEAN, MAX, MIN, QUANTILE, GIVEN = range(5)
_NAMES = re.compile(r"(mean|max|min)|quantile_(0|[1-9]\d?|100)|given")

# Without `_nrt=False` numba counts references to arrays at each call, atomically: a third to a half of the time that
# merging takes (numba issue 2345). In return these functions cannot allocate.
compiled = numba.njit(cache=True, nogil=True, _nrt=False)


@dataclass(frozen=True, slots=True)
class Score:
    """How edges are scored; raises ValueError where `name` is none of mean, max, min, quantile_0 .. quantile_100, or
    given: each edge has its score already.

    >>> Score("quantile_75").percent, Score("mean").columns
    (75, 2)
    """

    name: str

    def __post_init__(self) -> None:
        if not _NAMES.fullmatch(self.name):
            raise _unknown(self.name)

    @classmethod
    def parse(cls, text: str) -> Score:
        """The score of affinities of that name; raises ValueError with the known names.

        >>> Score.parse("max")
        Score(name='max')
        """
        if text == "given":
            raise _unknown(text)
        return cls(text)

    @property
    def code(self) -> int:
        """MEAN, MAX, MIN, QUANTILE or GIVEN, for the compiled code."""
        return {"mean": MEAN, "max": MAX, "min": MIN, "given": GIVEN}.get(self.name, QUANTILE)

    @property
    def percent(self) -> int:
        """The P of quantile_P, else 0."""
        return int(self.name.removeprefix("quantile_")) if self.code == QUANTILE else 0

    @property
    def columns(self) -> int:
        """Statistics an edge carries: sum and count of affinities, their maximum, their minimum, how many there are of
        each of the 256 affinities, or the score itself.
        """
        return {MEAN: 2, QUANTILE: 256}.get(self.code, 1)


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"unknown score {name!r}; known are mean, max, min and quantile_P, where P is a whole percent from 0 to 100 "
        "(quantile_50: the median)"
    )


def add_rule(score: Score) -> np.ufunc:
    """How the statistics of parallel edges add up: the maximum or minimum of extremes, the maximum of given scores, the
    sum of all else.

    >>> add_rule(Score("min")).__name__
    'minimum'
    """
    return {MAX: np.maximum, GIVEN: np.maximum, MIN: np.minimum}.get(score.code, np.add)


def combine(score: Score, stats: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Add up the rows of each group: `stats` int64 `(n, k)` in the order of groups, `starts` int64 the first row of
    each; returns int64 `(groups, k)`.

    >>> combine(Score("mean"), np.array([[5, 1], [7, 2], [9, 1]]), np.array([0, 2])).tolist()
    [[12, 3], [9, 1]]
    """
    if starts.size == 0:
        return stats[:0].copy()
    combined: npt.NDArray[np.int64] = add_rule(score).reduceat(stats, starts, axis=0)
    return combined


def integer_scores(score: Score, stats: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Scores, int64 `(n,)`, of edges with statistics int64 `(n, k)` that pass `check_stats`.

    - mean: `floor(mean * 2**20)`. The mean of all lies between the means of two parts, and flooring keeps that order.
    - max, min: the affinity times 2**20. The maximum of all is the larger part's, the minimum at most either part's.
    - quantile_P: of n affinities the one of rank `max(1, ceil(P * n / 100))`, times 2**20. Where the better part's
      value is v, at least `rank_1 + rank_2` of all affinities are at most v, and ranks are subadditive, so the value
      of all is at most v.
    - given: as it is; the maximum of all is the larger part's.

    >>> integer_scores(Score("mean"), np.array([[5, 2]])).tolist() == [5 << 19]
    True
    """
    if score.code == MEAN:
        whole, rest = np.divmod(stats[:, 0], stats[:, 1])
        means: npt.NDArray[np.int64] = (whole << SCALE_BITS) + (rest << SCALE_BITS) // stats[:, 1]
        return means
    if score.code in (MAX, MIN):
        extremes: npt.NDArray[np.int64] = stats[:, 0] << SCALE_BITS
        return extremes
    if score.code == GIVEN:
        return stats[:, 0].copy()
    below = np.cumsum(stats, axis=1)
    ranks = np.maximum(1, (below[:, -1] * score.percent + 99) // 100)
    quantiles: npt.NDArray[np.int64] = np.argmax(below >= ranks[:, None], axis=1) << SCALE_BITS
    return quantiles


def check_sums(stats: npt.NDArray[np.int64]) -> None:
    """Raise ValueError where a sum and a count, int64 `(n, 2)`, cannot be those of affinities, or would overflow."""
    sums, counts = stats[:, 0], stats[:, 1]
    if stats.size == 0:
        return
    if counts.min() < 1 or counts.max() >= MAX_COUNT:
        raise ValueError(
            f"overflow: counts of affinities run from {counts.min()} to {counts.max()}, not in 1 to {MAX_COUNT - 1}"
        )
    if sums.min() < 0 or (sums > 255 * counts).any():
        raise ValueError("overflow: a sum of affinities is negative or above 255 times their count")


def check_stats(score: Score, stats: npt.NDArray[np.int64]) -> None:
    """Raise ValueError where statistics, int64 `(n, k)`, have another shape or values than the score's."""
    if stats.ndim != 2 or stats.shape[1] != score.columns:
        raise ValueError(f"statistics of shape {stats.shape}; {score.name} takes (edges, {score.columns})")
    if score.code == MEAN:
        check_sums(stats)
    elif score.code == QUANTILE:
        totals = stats.sum(axis=1)
        if stats.size and (stats.min() < 0 or totals.min() < 1 or totals.max() >= MAX_COUNT):
            raise ValueError(f"a histogram of affinities is empty, negative, or counts {MAX_COUNT} or more")
    elif score.code == GIVEN:
        if stats.size and (stats.min() < 0 or stats.max() > TOP_SCORE):
            raise ValueError(f"scores run from {stats.min()} to {stats.max()}, not in 0 to {TOP_SCORE}")
    elif stats.size and (stats.min() < 0 or stats.max() > 255):
        raise ValueError(f"affinities run from {stats.min()} to {stats.max()}, not in 0 to 255")


@compiled
def edge_score(stats: Any, edge: Any, code: Any, percent: Any) -> Any:
    """`integer_scores` of one row; raises ValueError where sums have grown so large that it would overflow."""
    if code == MEAN:
        total, count = stats[edge, 0], stats[edge, 1]
        if count >= MAX_COUNT:
            raise ValueError("overflow: an edge has grown to 2**43 affinities or more")
        return ((total // count) << SCALE_BITS) + ((total % count) << SCALE_BITS) // count
    if code == GIVEN:
        return stats[edge, 0]
    if code != QUANTILE:
        return stats[edge, 0] << SCALE_BITS
    total = np.int64(0)
    for value in range(stats.shape[1]):
        total += stats[edge, value]
    rank = max(np.int64(1), (total * percent + 99) // 100)
    value = 0
    below = stats[edge, 0]
    while below < rank:
        value += 1
        below += stats[edge, value]
    return np.int64(value) << SCALE_BITS


@compiled
def add_edge(stats: Any, into: Any, gone: Any, code: Any) -> Any:
    """Add row `gone` to row `into` by the score's `add_rule`."""
    if code in (MAX, GIVEN):
        stats[into, 0] = max(stats[into, 0], stats[gone, 0])
    elif code == MIN:
        stats[into, 0] = min(stats[into, 0], stats[gone, 0])
    else:
        for column in range(stats.shape[1]):
            stats[into, column] += stats[gone, column]
