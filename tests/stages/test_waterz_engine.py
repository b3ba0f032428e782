"""`engine: waterz`: the stages equal the recipe written plainly, and waterz itself where there is one block."""

import random
from fractions import Fraction

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pydantic import ValidationError
from scipy import ndimage
from tests.promises.chunks import outputs, random_affinities, run_inline, write_affinities
from tests.promises.reference import Sets
from zarr.storage import LocalStore

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, as_vec, sub
from neuroshed.kernels import child
from neuroshed.kernels.across import WAYS
from neuroshed.kernels.merging import integer_threshold
from neuroshed.kernels.parts import parts
from neuroshed.kernels.scores import TOP_SCORE, Score
from neuroshed.kernels.waterz import agglomerate, scored_edges, watershed
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.registry import load_stage, save_stage
from neuroshed.stages.segment import Segment
from neuroshed.stages.waterz import WaterzFragments, WaterzScores
from neuroshed.storage.nodes import read_node

pytest.importorskip("waterz")

SHAPE = (12, 14, 16)
LOW, HIGH = 40, 230
LOWEST = "0.2"
THRESHOLDS = ("0.3", "0.5", "0.7")
RULES = {"low": LOW, "high": HIGH, "small": 0, "dust": 0}


@pytest.fixture(autouse=True, scope="module")
def no_process_stays():
    yield
    if hasattr(child._threads, "child"):
        child._threads.child.stop()


def fragments_of(folder, path, block_shape, context=0, region=None, **rules):
    source = Affinities.of(folder, path)
    return WaterzFragments(
        run_folder=folder,
        source=source,
        region=region or Box.of_shape(source.volume_shape),
        block_shape=as_vec(block_shape),
        shard_shape=as_vec(block_shape),
        context=as_vec(context),
        **RULES | rules,
    )


def segments_of(fragments, context=0, score="mean"):
    lowest = integer_threshold(Fraction(LOWEST))
    scores = WaterzScores(
        run_folder=fragments.run_folder, fragments=fragments, context=as_vec(context), score=score, lowest=lowest
    )
    tree = Agglomerate(
        run_folder=fragments.run_folder, fragments=fragments, scores=scores, score="given", lowest=lowest
    )
    return [
        Segment(run_folder=fragments.run_folder, agglomerate=tree, threshold=threshold)
        for threshold in ("fragments", *THRESHOLDS)
    ]


def run(folder, affinities, block_shape, context=0, seed=0, region=None, score="mean", **rules):
    path = write_affinities(folder / "affinities.zarr", affinities)
    fragments = fragments_of(folder / "run", path, block_shape, context, region, **rules)
    segments = segments_of(fragments, context, score)
    run_inline(segments, random.Random(seed))
    return outputs(segments)


def by_first_voxel(labels):
    """Labels named 1 + the global linear index of their first voxel, over the whole volume."""
    ids, first, places = np.unique(labels, return_index=True, return_inverse=True)
    names = np.where(ids == 0, 0, first + 1).astype(np.uint64)
    return names[places].reshape(labels.shape)


def recipe(affinities, block_shape, context, region, score="mean"):
    """Fragments and segments by threshold: the recipe in one piece, with lists, sets and scipy."""
    grid = Grid(region, as_vec(block_shape))
    fragments = np.zeros(affinities.shape[1:], np.uint64)
    around = {i: grid.block_box(i).grow(context).intersect(region) for i in grid}
    here = {i: (slice(None), *around[i].slices()) for i in grid}
    count = 0
    for i in grid:
        cut = watershed(affinities[here[i]], LOW / 255, HIGH / 255)[grid.block_box(i).slices(around[i].start)]
        own = fragments[grid.block_box(i).slices()]
        for label in np.unique(cut[cut > 0]):
            found, number = ndimage.label(cut == label)
            own[found > 0] = count + found[found > 0]
            count += number
    fragments = by_first_voxel(fragments)
    home = {int(f): i for i in grid for f in np.unique(fragments[grid.block_box(i).slices()])}
    edges = {}
    for i in grid:
        found = scored_edges(affinities[here[i]], fragments[around[i].slices()], float(LOWEST), score)
        for left, right, value in zip(*(column.tolist() for column in found), strict=True):
            if i == max(home[left], home[right]):
                assert (left, right) not in edges
                edges[left, right] = value
    out = {"fragments": fragments}
    for threshold in THRESHOLDS:
        sets = Sets(np.unique(fragments).tolist())
        for (left, right), value in edges.items():
            if round(value * TOP_SCORE) >= integer_threshold(Fraction(threshold)):
                sets.join(left, right)
        names = {f: min(sets.members[home]) for f, home in sets.home.items()}
        out[threshold] = np.vectorize(names.get, otypes=[np.uint64])(fragments)
    return out


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, labels in expected.items():
        assert_array_equal(found[name], labels, err_msg=name)


@given(st.integers(0, 2**32), st.sampled_from([3, 8, 256]), st.sampled_from(["mean", "quantile_50", "quantile_25_max"]))
@settings(max_examples=8)
def test_one_block_is_waterz(tmp_path_factory, seed, levels, score):
    affinities = random_affinities(np.random.default_rng(seed), SHAPE, levels)
    found = run(tmp_path_factory.mktemp("run"), affinities, max(SHAPE), score=score)
    fragments = by_first_voxel(parts(watershed(affinities, LOW / 255, HIGH / 255)).labels)
    assert_array_equal(found["fragments"], fragments)
    segments = agglomerate(affinities, fragments, [float(threshold) for threshold in THRESHOLDS], score)
    for threshold, expected in zip(THRESHOLDS, segments, strict=True):
        assert_array_equal(found[threshold], expected, err_msg=threshold)


@pytest.mark.system
@given(
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([3, 8, 256]),
    block_shape=st.sampled_from([6, 7, 8]),
    context=st.sampled_from([0, 1, 3, 9]),
    inside=st.booleans(),
)
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_blocks_are_the_recipe(tmp_path_factory, seed, levels, block_shape, context, inside):
    affinities = random_affinities(np.random.default_rng(seed), SHAPE, levels)
    region = Box((1, 2, 3), (11, 13, 14)) if inside else Box.of_shape(SHAPE)
    found = run(tmp_path_factory.mktemp("run"), affinities, block_shape, context, seed, region)
    assert_same(found, recipe(affinities, block_shape, context, region))


@pytest.mark.parametrize("context", [0, 2])
def test_any_order_gives_the_same(tmp_path, context):
    affinities = random_affinities(np.random.default_rng(4), SHAPE, 256)
    first, *others = (run(tmp_path / str(seed), affinities, 8, context, seed) for seed in range(3))
    for found in others:
        assert_same(found, first)


def test_context_joins_across_faces_and_none_does_not(tmp_path):
    affinities = np.full((3, *SHAPE), 255, np.uint8)
    affinities[2, :, :, 5] = 0
    with_context = run(tmp_path / "1", affinities, 8, context=1)
    assert [np.unique(with_context[t]).tolist() for t in THRESHOLDS] == [[1, 6]] * 3
    without = run(tmp_path / "0", affinities, 8)
    assert_array_equal(without["0.3"], without["fragments"])
    assert np.unique(without["0.3"]).size == 12


def test_parts_of_a_basin_in_a_block_are_fragments_of_their_own(tmp_path):
    # A horseshoe, its bend in the second block, its two ends in the first.
    affinities = np.zeros((3, 1, 3, 16), np.uint8)
    affinities[2, 0, 0, 1:12] = affinities[2, 0, 2, 1:12] = 255
    affinities[1, 0, 1:, 11] = 255
    found = run(tmp_path, affinities, 8, context=8)
    assert np.unique(found["fragments"]).tolist() == [0, 1, 9, 33]
    assert np.unique(found["0.7"]).tolist() == [0, 1]


def test_small_fragments_join_and_dust_goes_before_the_cut(tmp_path):
    affinities = np.zeros((3, 1, 1, 16), np.uint8)
    affinities[2, 0, 0] = [0, 255, 100, 255, 255, 0, 0, 255, 255, 255, 255, 255, 0, 255, 0, 255]
    plain = run(tmp_path / "plain", affinities, 8, context=8)
    assert plain["fragments"].ravel().tolist() == [1, 1, 3, 3, 3, 0, 7, 7, 9, 9, 9, 9, 13, 13, 15, 15]
    ruled = run(tmp_path / "ruled", affinities, 8, context=8, small=3, dust=3)
    assert ruled["fragments"].ravel().tolist() == [1, 1, 1, 1, 1, 0, 7, 7, 9, 9, 9, 9, 0, 0, 0, 0]


def test_each_contact_is_scored_once_by_its_upper_block(tmp_path):
    affinities = random_affinities(np.random.default_rng(6), SHAPE, 256)
    path = write_affinities(tmp_path / "affinities.zarr", affinities)
    segments = segments_of(fragments_of(tmp_path / "run", path, 8, 4), 4)
    run_inline(segments, random.Random(0))
    scores = segments[0].agglomerate.scores
    pairs = []
    for index in scores.grid:
        own = read_node(scores.fragments.node_path("", index), "fragments")[0]["id"]
        edges, cross = read_node(scores.node_path("", index), "edges", "cross")
        assert np.isin([edges["left"], edges["right"]], own).all()
        assert np.isin(cross["upper"], own).all()
        assert not np.isin(cross["lower"], own).any()
        pairs += [frozenset(pair) for pair in zip(edges["left"].tolist(), edges["right"].tolist(), strict=True)]
        pairs += [frozenset(pair) for pair in zip(cross["upper"].tolist(), cross["lower"].tolist(), strict=True)]
        for number in np.unique(cross["way"]).tolist():
            other = scores.fragments.node_path("", sub(index, WAYS[number]))
            below = read_node(other, "fragments")[0]["id"]
            assert np.isin(cross["lower"][cross["way"] == number], below).all()
        scored = np.concatenate([edges["score"], cross["score"]])
        assert scored.size == 0 or (scored.min() >= scores.lowest and scored.max() <= TOP_SCORE)
    assert len(pairs) == len(set(pairs)) > 100


def test_a_value_that_is_not_finite_is_named(tmp_path):
    affinities = np.full((3, *SHAPE), 0.5, np.float32)
    affinities[1, 2, 3, 4] = np.nan
    path = tmp_path / "affinities.zarr"
    zarr.create_array(LocalStore(path), data=affinities, chunks=affinities.shape)
    fragments = fragments_of(tmp_path / "run", path, 8)
    fragments.prepare()
    with pytest.raises(BlockError, match=r"channel 1 .*nan"):
        fragments.run("", (0, 0, 0))


def test_a_score_that_waterz_does_not_have_is_refused(tmp_path):
    affinities = random_affinities(np.random.default_rng(0), SHAPE, 8)
    with pytest.raises(ValueError, match="score 'max' is unknown; take mean"):
        run(tmp_path, affinities, 16, score="max")


def test_given_scores_and_the_word_given_go_together(tmp_path):
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(0), SHAPE, 8))
    fragments = fragments_of(tmp_path, path, 8)
    tree = segments_of(fragments)[0].agglomerate
    with pytest.raises(ValidationError, match="must be 'given' if scores are"):
        Agglomerate(run_folder=tmp_path, fragments=fragments, scores=tree.scores, score="mean", lowest=0)
    with pytest.raises(ValidationError, match="must be 'given' if scores are"):
        Agglomerate(run_folder=tmp_path, fragments=fragments, score="given", lowest=0)
    with pytest.raises(ValidationError, match="of other fragments"):
        Agglomerate(
            run_folder=tmp_path,
            fragments=fragments_of(tmp_path, path, 6),
            scores=tree.scores,
            score="given",
            lowest=0,
        )
    with pytest.raises(ValueError, match="unknown score 'given'"):
        Score.parse("given")


def test_a_worker_reads_the_stages_back(tmp_path):
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(0), SHAPE, 8))
    tree = segments_of(fragments_of(tmp_path, path, 8, 2), 2)[0].agglomerate
    for stage in (tree.fragments, tree.scores, tree):
        assert load_stage(save_stage(stage)) == stage


def test_scores_of_smoothed_affinities_need_what_smoothing_reads(tmp_path):
    affinities = random_affinities(np.random.default_rng(1), SHAPE, 256)
    found = run(tmp_path, affinities, 8, context=2, smooth=0.6, bias=5)
    assert np.unique(found["0.3"]).size < np.unique(found["fragments"]).size
    path = tmp_path / "affinities.zarr"
    scores = segments_of(fragments_of(tmp_path, path, 8, 2, smooth=0.6), 2)[0].agglomerate.scores
    (step,) = scores.steps
    assert [(need.low, need.high) for need in step.needs] == [((2, 2, 2), (2, 2, 2))]
    (step,) = scores.fragments.steps
    assert step.needs == ()


def test_memory_grows_with_the_context(tmp_path):
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(0), SHAPE, 8))
    plain, grown = (fragments_of(tmp_path, path, 128, context).memory_bytes("") for context in (0, 32))
    assert grown - plain >= 50 * (192**3 - 128**3)
    few, many = (
        segments_of(fragments_of(tmp_path, path, 128), 32, score)[0].agglomerate.scores.memory_bytes("")
        for score in ("mean", "quantile_50")
    )
    assert many - few >= 60 * 192**3
    assert few >= plain + 60 * 192**3 - 56 * 128**3


def test_parts_are_the_connected_components_of_equal_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (5, 6, 7)).astype(np.uint64)
    found = parts(labels)
    expected = np.zeros(labels.shape, np.int64)
    for label in (1, 2, 3):
        own, _ = ndimage.label(labels == label)
        expected[own > 0] = own[own > 0] + expected.max()
    assert_array_equal(by_first_voxel(found.labels), by_first_voxel(expected))
    ids, first, counts = np.unique(found.labels, return_index=True, return_counts=True)
    assert ids.tolist() == list(range(found.sizes.size + 1))
    assert_array_equal(found.first, np.sort(first[1:]))
    assert_array_equal(found.first, first[1:])
    assert_array_equal(found.sizes, counts[1:])
    assert [plane.shape for plane, _ in found.picked] == [(6, 7), (5, 7), (5, 6)]
    assert not any(plane.any() for pair in found.picked for plane in pair)
