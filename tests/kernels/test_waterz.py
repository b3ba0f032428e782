from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from neuroshed.kernels import child
from neuroshed.kernels.waterz import SCORES, SLACK, agglomerate, scored_edges, watershed

library = pytest.importorskip("waterz")

Volume = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def no_process_stays() -> Iterator[None]:
    yield
    if hasattr(child._threads, "child"):
        child._threads.child.stop()


@st.composite
def volumes(draw: st.DrawFn, least: int = 2) -> Volume:
    """Random affinities (uint8) and blobs nearest to random points, some of them background."""
    shape = tuple(draw(st.integers(2, 6)) for _ in range(3))
    count = draw(st.integers(least, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)[..., None, :]
    nearest = ((voxels - rng.random((count, 3)) * shape) ** 2).sum(axis=-1).argmin(axis=-1)
    ids = np.sort(rng.choice(2**60, count, replace=False)).astype(np.uint64)
    ids[rng.random(count) < 0.1] = 0
    return rng.integers(0, 256, (3, *shape)).astype(np.uint8), ids[nearest]


def as_float(affinities: np.ndarray) -> np.ndarray:
    return affinities.astype(np.float32) / np.float32(255)


def smallest_ids(fragments: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Segments named by their smallest fragment."""
    out = np.zeros_like(fragments)
    for segment in np.unique(segments[segments > 0]):
        out[segments == segment] = fragments[segments == segment].min()
    return out


def direct(affinities: np.ndarray, fragments: np.ndarray, costs: list[float], score: str) -> list[np.ndarray]:
    """waterz itself, here, in its own terms."""
    ids = np.unique(np.concatenate([[np.uint64(0)], fragments.ravel()]))
    dense = np.searchsorted(ids, fragments).astype(np.uint64)
    found = library.agglomerate(as_float(affinities), costs, fragments=dense, scoring_function=SCORES[score])
    return [smallest_ids(fragments, ids[labels]) for labels in found]


def chain(affinities: list[int], sizes: list[int] | None = None) -> Volume:
    """Fragments 1, 2, .. along x, and the affinities between them."""
    sizes = sizes or [1] * (len(affinities) + 1)
    fragments = np.repeat(np.arange(1, len(sizes) + 1), sizes).astype(np.uint64)[None, None]
    volume = np.full((3, *fragments.shape), 255, np.uint8)
    volume[2, 0, 0, np.cumsum(sizes)[:-1]] = affinities
    return volume, fragments


def test_scores_are_those_that_need_no_compiler() -> None:
    from waterz._codegen import iter_specs

    assert set(SCORES.values()) == {spec.scoring_function for spec in iter_specs() if spec.discretize_queue == 0}
    assert len(SCORES) == 38
    assert {"mean", "quantile_50", "quantile_50_max", "size_similarity"} <= set(SCORES)


@given(volumes(), st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([0.7, 1.0]), st.booleans())
def test_watershed_is_that_of_waterz(volume: Volume, low: float, high: float, floats: bool) -> None:
    affinities = as_float(volume[0])
    below = np.nextafter(np.float32(low), np.float32(-1))
    expected = next(library.agglomerate(affinities, [0], aff_threshold_low=below, aff_threshold_high=high))
    assert_array_equal(watershed(affinities if floats else volume[0], low, high), expected)


def test_watershed_takes_an_edge_of_exactly_low_and_of_exactly_high() -> None:
    affinities, _ = chain([51, 50])
    assert watershed(affinities, 0.2, 0.9).tolist() == [[[1, 1, 0]]]
    affinities, _ = chain([204, 255, 204, 255])
    assert watershed(affinities, 0.1, 1.0).tolist() == [[[1, 1, 1, 2, 2]]]
    assert watershed(affinities, 0.1, 0.8).tolist() == [[[1, 1, 1, 1, 1]]]


@given(volumes(), st.sampled_from(sorted(SCORES)))
def test_segments_are_those_of_waterz(volume: Volume, score: str) -> None:
    affinities, fragments = volume
    before = fragments.copy()
    # 1/997 is no score of so few faces.
    thresholds = [k / 997 for k in (300, 700, 500)]
    expected = direct(affinities, fragments, [1 - t for t in sorted(thresholds, reverse=True)], score)
    found = agglomerate(affinities, fragments, thresholds, score)
    for labels, wanted in zip((found[1], found[2], found[0]), expected, strict=True):
        assert labels.dtype == np.uint64
        assert_array_equal(labels, wanted)
    assert_array_equal(fragments, before)


@given(volumes())
def test_float_and_uint8_affinities_are_one(volume: Volume) -> None:
    affinities, fragments = volume
    extra = np.concatenate([as_float(affinities), np.full_like(as_float(affinities), np.nan)])
    assert_array_equal(agglomerate(extra, fragments, [0.5]), agglomerate(affinities, fragments, [0.5]))


@given(volumes())
def test_a_lower_threshold_merges_more(volume: Volume) -> None:
    high, low = agglomerate(*volume, [0.6, 0.4])
    both = np.unique(np.stack([high.ravel(), low.ravel()]), axis=1)
    assert len(np.unique(both[0])) == both.shape[1], "a segment at the high threshold is part of one at the low"


def test_results_share_nothing() -> None:
    affinities, fragments = chain([200, 100])
    first, second, third = agglomerate(affinities, fragments, [0.5, 0.9, 0.5])
    assert [labels.tolist() for labels in (first, second, third)] == [[[[1, 1, 3]]], [[[1, 2, 3]]], [[[1, 1, 3]]]]
    first[:] = 9
    assert third.tolist() == [[[1, 1, 3]]]
    assert fragments.tolist() == [[[1, 2, 3]]]
    assert agglomerate(affinities, fragments, []) == []


def test_background_never_merges() -> None:
    affinities, fragments = chain([255, 255])
    fragments[0, 0, 1] = 0
    assert agglomerate(affinities, fragments, [0.0])[0].tolist() == [[[1, 0, 3]]]
    assert agglomerate(affinities, np.zeros_like(fragments), [0.0])[0].tolist() == [[[0, 0, 0]]]
    assert [column.size for column in scored_edges(affinities, fragments, 0.0)] == [0, 0, 0]


def test_every_level_reaches_the_threshold_of_its_own_value() -> None:
    # 256 pairs of fragments, background between them.
    fragments = np.zeros((1, 512, 2), np.uint64)
    fragments[0, ::2] = np.arange(1, 513).reshape(256, 2)
    affinities = np.zeros((3, 1, 512, 2), np.uint8)
    affinities[2, 0, ::2, 1] = np.arange(256)
    left, right, scores = scored_edges(affinities, fragments, 0.0)
    assert_array_equal(left, np.arange(1, 513, 2))
    assert_array_equal(right, left + 1)
    levels = np.arange(256) / 255
    assert (scores >= levels).all()
    assert (scores <= levels + 2 * SLACK).all()
    thresholds = [float(level) for level in levels]
    for level, labels in enumerate(agglomerate(affinities, fragments, thresholds)):
        assert (labels[0, ::2, 0] == labels[0, ::2, 1]).sum() == 256 - level


@given(volumes(), st.sampled_from(["mean", "quantile_25", "quantile_75_max", "size_similarity"]))
def test_edges_at_any_threshold_give_the_segments_at_it(volume: Volume, score: str) -> None:
    affinities, fragments = volume
    left, right, scores = scored_edges(affinities, fragments, 0.3, score)
    pairs = list(zip(left.tolist(), right.tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert set(pairs) <= touching(fragments)
    thresholds = [0.3] if score == "size_similarity" else [0.3, 0.5, 1.0, *(float(s) for s in scores[:5])]
    for threshold, expected in zip(thresholds, agglomerate(affinities, fragments, thresholds, score), strict=True):
        parts = {i: {i} for i in np.unique(fragments).tolist()}
        for a, b in (pair for pair, reached in zip(pairs, scores >= threshold, strict=True) if reached):
            whole = parts[a] | parts[b]
            parts |= dict.fromkeys(whole, whole)
        found = np.array([min(parts[i]) for i in fragments.ravel().tolist()], np.uint64)
        assert_array_equal(found.reshape(fragments.shape), expected)


def touching(fragments: np.ndarray) -> set[tuple[int, int]]:
    pairs = set()
    for axis in range(3):
        along = np.moveaxis(fragments, axis, 0)
        pairs |= {
            (min(a, b), max(a, b)) for a, b in zip(along[1:].ravel().tolist(), along[:-1].ravel().tolist(), strict=True)
        }
    return {(a, b) for a, b in pairs if 0 < a < b}


def greedy(affinities: np.ndarray, fragments: np.ndarray) -> tuple[list[tuple[int, int, Fraction]], Fraction]:
    """Mean agglomeration word by word, in fractions: always the best of all edges, parallel ones added up.

    Also the least difference between the scores of two edges at any time.
    """
    edges: dict[tuple[int, int], list[int]] = {}
    for axis, *p in np.ndindex(affinities.shape):
        q = list(p)
        q[axis] -= 1
        a, b = int(fragments[tuple(p)]), int(fragments[tuple(q)])
        if p[axis] and a != b and a and b:
            edge = edges.setdefault((min(a, b), max(a, b)), [0, 0])
            edge[0] += int(affinities[(axis, *p)])
            edge[1] += 1
    history, closest = [], Fraction(1)
    while edges:
        ordered = sorted(((Fraction(total, 255 * count), pair) for pair, (total, count) in edges.items()), reverse=True)
        closest = min([closest, *(x - y for (x, _), (y, _) in pairwise(ordered))])
        score, (a, b) = ordered[0]
        history.append((a, b, score))
        del edges[a, b]
        for pair in [pair for pair in edges if b in pair]:
            total, count = edges.pop(pair)
            other = pair[0] + pair[1] - b
            edge = edges.setdefault((min(a, other), max(a, other)), [0, 0])
            edge[0] += total
            edge[1] += count
    return history, closest


@given(volumes(least=8))
@settings(max_examples=200)
def test_waterz_merges_in_the_exact_greedy_order_where_nothing_ties(volume: Volume) -> None:
    affinities, fragments = volume
    history, closest = greedy(affinities, fragments)
    assume(history and closest > 4 * SLACK)
    parts = {int(i): frozenset([int(i)]) for i in np.unique(fragments)}
    expected = {}
    for a, b, score in history:
        # From the first to the last the scores fall: joined edges lie between their parts.
        expected |= {(min(i, j), max(i, j)): float(score) for i in parts[a] for j in parts[b]}
        whole = parts[a] | parts[b]
        parts |= dict.fromkeys(whole, whole)
    left, right, scores = scored_edges(affinities, fragments, 0.0)
    found: dict[tuple[int, int], Any] = dict(zip(zip(left.tolist(), right.tolist(), strict=True), scores, strict=True))
    assert set(found) == touching(fragments)
    for pair, score in found.items():
        assert score == pytest.approx(expected[pair], abs=2 * SLACK)


def test_by_size_waterz_is_not_greedy() -> None:
    # 4 and 4 join first and make 8, whose likeness to the next 8 rises from 2/3 to 1: the best by far. But waterz still
    # holds 2/3 for that edge, so 8 and 12 (4/5) join, and the first 8 likes the 20 less than 0.6.
    affinities, fragments = chain([128, 128, 128], [4, 4, 8, 12])
    segments = agglomerate(affinities, fragments, [0.6], "size_similarity")[0]
    assert np.unique(segments).tolist() == [1, 3]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    affinities, fragments = chain([200, 100])
    watershed(affinities, 0.1, 0.9)
    agglomerate(affinities, fragments, [0.5])
    scored_edges(affinities, fragments, 0.5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.01, 1.01])
def test_affinities_out_of_range_are_refused(value: float) -> None:
    affinities = np.full((3, 2, 3, 4), 0.5, np.float32)
    affinities[1, 1, 2, 3] = value
    message = rf"affinity {value} of channel 1 at voxel \(1, 2, 3\); all must be in 0..1"
    fragments = np.ones((2, 3, 4), np.uint64)
    with pytest.raises(ValueError, match=message):
        watershed(affinities, 0.1, 0.9)
    with pytest.raises(ValueError, match=message):
        agglomerate(affinities, fragments, [0.5])
    with pytest.raises(ValueError, match=message):
        scored_edges(affinities, fragments, 0.5)


def test_what_does_not_fit_is_refused() -> None:
    affinities, fragments = chain([200, 100])
    for bad in (affinities[:2], affinities[0], affinities[:, :0]):
        with pytest.raises(ValueError, match=r"they must be \(3 or more, z, y, x\)"):
            watershed(bad, 0.1, 0.9)
    with pytest.raises(ValueError, match="affinities are float64"):
        watershed(affinities.astype(float), 0.1, 0.9)
    for low, high in ((0.5, 0.4), (-0.1, 0.4), (0.5, 1.1)):
        with pytest.raises(ValueError, match=r"must be 0 <= low <= high <= 1"):
            watershed(affinities, low, high)
    for labels in (fragments.astype(np.int64), fragments[..., :2]):
        with pytest.raises(ValueError, match=r"they must be uint64 \(1, 1, 3\)"):
            agglomerate(affinities, labels, [0.5])
    with pytest.raises(ValueError, match=r"threshold 1.5 is not in 0..1"):
        agglomerate(affinities, fragments, [0.5, 1.5])
    with pytest.raises(ValueError, match="score 'median' is unknown"):
        scored_edges(affinities, fragments, 0.5, "median")
