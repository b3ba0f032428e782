from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from neuroshed.geometry import Vec
from neuroshed.kernels import child
from neuroshed.kernels.mutex import NEAREST, TIE, mutex_watershed
from neuroshed.kernels.order import hash64

library = pytest.importorskip("mwatershed")

FAR: tuple[Vec, ...] = (*NEAREST, (-2, 0, 0), (0, -2, -1), (0, 0, -4))


@pytest.fixture(autouse=True, scope="module")
def no_process_stays() -> Iterator[None]:
    yield
    if hasattr(child._threads, "child"):
        child._threads.child.stop()


def plain(affinities: np.ndarray, offsets: Sequence[Vec], biases: Sequence[float], low: float) -> np.ndarray:
    """The rule word by word: voxels as sets, edges from the strongest to the weakest."""
    edges = []
    for index, (c, *p) in enumerate(np.ndindex(affinities.shape)):
        q = tuple(a + b for a, b in zip(p, offsets[c], strict=True))
        if all(0 <= a < n for a, n in zip(q, affinities.shape[1:], strict=True)):
            strength = affinities[(c, *p)] / 255 - biases[c]
            tie = float(hash64(np.uint64(index))) * TIE / 2.0**64
            edges.append((abs(strength) + tie, strength > 0, c, tuple(p), q))
    lit = {v for _, _, c, p, q in edges for v in (p, q) if c < 3 and affinities[(c, *p)] / 255 >= low}
    parts = {v: {v} for v in np.ndindex(affinities.shape[1:])}
    excluded: set[frozenset] = set()
    attracted = set()
    for _, attracts, _, p, q in sorted(edges, reverse=True):
        if not {p, q} <= lit:
            continue
        if attracts:
            attracted |= {p, q}
        if parts[p] is parts[q]:
            continue
        barred = any(frozenset([a, b]) in excluded for a in parts[p] for b in parts[q])
        if not attracts:
            excluded.add(frozenset([p, q]))
        elif not barred:
            parts[p] |= parts[q]
            for v in parts[p]:
                parts[v] = parts[p]
    names: dict[int, int] = {}
    out = np.zeros(affinities.shape[1:], np.uint64)
    for v in np.ndindex(out.shape):
        if v in attracted:
            out[v] = names.setdefault(id(parts[v]), len(names) + 1)
    return out


@st.composite
def volumes(draw: st.DrawFn) -> np.ndarray:
    """Six channels of few levels, so that most edges tie."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([[0, 255], [51, 102, 153, 204], list(range(256))]))
    return rng.choice(np.array(levels, np.uint8), (len(FAR), *shape))


@given(
    volumes(),
    st.sampled_from([[0.5] * 6, [0.0] * 3 + [1.0] * 3, [0.4, 0.4, 0.2, 0.7, 0.8, 0.6]]),
    st.sampled_from([0.0, 0.6]),
)
def test_equals_the_plain_rule(affinities: np.ndarray, biases: list[float], low: float) -> None:
    found = mutex_watershed(affinities, FAR, biases, low)
    assert found.dtype == np.uint64
    assert_array_equal(found, plain(affinities, FAR, biases, low))


@given(st.integers(0, 2**32))
def test_equals_mwatershed_where_nothing_ties(seed: int) -> None:
    offsets = (*NEAREST, (0, -2, -2))
    # Each strength once: near edges attract by it, far ones repel.
    strengths = 1 + np.random.default_rng(seed).permutation(4 * 60).astype(np.uint8).reshape(4, 3, 4, 5)
    affinities = np.concatenate([strengths[:3], 255 - strengths[3:]])
    weights = affinities / 255 - np.array([0, 0, 0, 1])[:, None, None, None]
    expected = library.agglom(weights, [list(offset) for offset in offsets])
    found = mutex_watershed(affinities, offsets, (0, 0, 0, 1))
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(found)) == len(np.unique(expected))


def line(*affinities: int) -> np.ndarray:
    volume = np.zeros((3, 1, 1, len(affinities) + 1), np.uint8)
    volume[2, 0, 0, 1:] = affinities
    return volume


def test_the_segment_of_the_first_voxel_is_no_background() -> None:
    # mwatershed may call it 0.
    assert mutex_watershed(line(255, 0, 0, 255), NEAREST, 0.5).tolist() == [[[1, 1, 0, 2, 2]]]
    assert mutex_watershed(np.full((3, 4, 4, 4), 200, np.uint8), NEAREST, 0.5).tolist() == np.ones((4, 4, 4)).tolist()


def test_a_far_edge_splits_what_near_edges_would_join() -> None:
    near = line(200, 150, 200)
    far = np.full((1, 1, 1, 4), 128, np.uint8)
    far[0, 0, 0, 3] = 10
    offsets = (*NEAREST, (0, 0, -3))
    assert mutex_watershed(near, NEAREST, 0.5).tolist() == [[[1, 1, 1, 1]]]
    assert mutex_watershed(np.concatenate([near, far]), offsets, 0.5).tolist() == [[[1, 1, 2, 2]]]


def test_background_takes_no_part() -> None:
    affinities = line(200, 100, 100, 200)
    # The middle voxel could be bridged to by a far edge, and both sides joined through it.
    far = np.zeros((1, 1, 1, 5), np.uint8)
    far[..., [2, 4]] = 255
    whole, offsets = np.concatenate([affinities, far]), (*NEAREST, (0, 0, -2))
    assert mutex_watershed(whole, offsets, 0.3, 0.5).tolist() == [[[1, 1, 0, 2, 2]]]
    assert len(np.unique(mutex_watershed(whole, offsets, 0.3, 0.1))) < 3
    # Of exactly `low` is enough; of exactly the bias does not attract.
    assert mutex_watershed(line(51), NEAREST, 0.1, 0.2).tolist() == [[[1, 1]]]
    assert mutex_watershed(line(51), NEAREST, 0.2).tolist() == [[[0, 0]]]


def test_offsets_longer_than_the_array_have_no_edges() -> None:
    affinities = np.concatenate([line(255, 0, 255), np.zeros((1, 1, 1, 4), np.uint8)])
    assert mutex_watershed(affinities, (*NEAREST, (-9, 0, -9)), 0.5).tolist() == [[[1, 1, 2, 2]]]
    assert mutex_watershed(np.full((3, 1, 1, 1), 255, np.uint8), NEAREST, 0.5).tolist() == [[[0]]]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    mutex_watershed(line(255, 0, 255), NEAREST, 0.5)
    assert capfd.readouterr() == ("", "")


def test_what_does_not_fit_is_refused() -> None:
    affinities = line(255, 0)
    for bad in (affinities[0], affinities.astype(np.float32), affinities[..., :0]):
        with pytest.raises(ValueError, match=r"they must be uint8 \(channels, z, y, x\)"):
            mutex_watershed(bad, NEAREST, 0.5)
    with pytest.raises(ValueError, match="3 channels have 6 offsets and 6 biases"):
        mutex_watershed(affinities, FAR, 0.5)
    with pytest.raises(ValueError, match="3 channels have 3 offsets and 2 biases"):
        mutex_watershed(affinities, NEAREST, [0.5, 0.5])
    with pytest.raises(ValueError, match="must start with"):
        mutex_watershed(affinities, NEAREST[::-1], 0.5)
    with pytest.raises(ValueError, match="none may be zero"):
        mutex_watershed(np.concatenate([affinities, affinities[:1]]), (*NEAREST, (0, 0, 0)), 0.5)
    for bias, low in ((1.5, 0.0), (0.5, -1.0)):
        with pytest.raises(ValueError, match=r"must be in 0..1"):
            mutex_watershed(affinities, NEAREST, bias, low)
