import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import skimage.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from neuroshed.kernels import metrics
from neuroshed.kernels.metrics import (
    ContingencyTable,
    adapted_rand,
    add_contingency,
    collapse_unlabelled,
    contingency,
    variation_of_information,
)

BIG = np.uint64(2**61)


@st.composite
def label_pairs(draw, labels=4):
    """A segmentation and a truth of one small shape, labels from 0."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    volumes = hnp.arrays(np.uint64, shape, elements=st.integers(0, labels))
    return draw(volumes), draw(volumes)


def plain_contingency(seg, truth):
    return Counter(zip(seg.ravel().tolist(), truth.ravel().tolist(), strict=True))


def as_counter(table):
    pairs = zip(table.seg.tolist(), table.truth.tolist(), strict=True)
    return Counter(dict(zip(pairs, table.counts.tolist(), strict=True)))


def sizes(pairs, side):
    out = Counter()
    for pair, count in pairs.items():
        out[pair[side]] += count
    return out


def plain_voi(pairs):
    """Conditional entropies in bits from probabilities, as they are defined."""
    total = sum(pairs.values())
    seg, truth = sizes(pairs, 0), sizes(pairs, 1)
    split = -sum(c / total * math.log2(c / truth[t]) for (_, t), c in pairs.items())
    merge = -sum(c / total * math.log2(c / seg[s]) for (s, _), c in pairs.items())
    return split, merge


def plain_snemi(pairs):
    """The formula of the published script on exact fractions."""
    n = sum(pairs.values())
    labelled = Counter({pair: count for pair, count in pairs.items() if pair[1] != 0})
    inside = Counter({pair: count for pair, count in labelled.items() if pair[0] != 0})
    relic = Fraction(sum(labelled.values()) - sum(inside.values()), n)
    a = Fraction(sum(c * c for c in sizes(labelled, 1).values()))
    b = sum(c * c for c in sizes(inside, 0).values()) + relic
    ab = sum(c * c for c in inside.values()) + relic
    precision, recall = ab / b, ab / a
    if precision + recall == 0:
        return 1.0, float(precision), float(recall)
    return float(1 - 2 * precision * recall / (precision + recall)), float(precision), float(recall)


@settings(deadline=None)
@given(label_pairs())
def test_contingency_counts_pairs(pair):
    seg, truth = pair
    table = contingency(seg * BIG // np.uint64(2), truth * BIG)
    assert table.seg.dtype == table.truth.dtype == np.uint64
    assert table.counts.dtype == np.int64
    assert as_counter(table) == plain_contingency(seg * BIG // np.uint64(2), truth * BIG)
    assert table.voxels == seg.size
    keys = list(zip(table.seg.tolist(), table.truth.tolist(), strict=True))
    assert keys == sorted(set(keys))


@settings(deadline=None)
@given(label_pairs(), st.integers(1, 40))
def test_slices_do_not_change_the_table(pair, voxels):
    whole = contingency(*pair)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SLICE_VOXELS", voxels)
        sliced = contingency(*pair)
    for a, b in zip(whole, sliced, strict=True):
        assert_array_equal(a, b)


@settings(deadline=None)
@given(st.lists(label_pairs(), max_size=9), st.randoms())
def test_tables_add_up_in_any_order(pairs, random):
    tables = [contingency(seg, truth) for seg, truth in pairs]
    random.shuffle(tables)
    total = add_contingency(iter(tables))
    assert as_counter(total) == sum((plain_contingency(*pair) for pair in pairs), Counter())


@pytest.mark.parametrize("dtypes", [("uint8", "uint64"), ("uint16", "uint32"), ("int64", "uint8")])
def test_contingency_of_other_integer_types(dtypes):
    seg, truth = (np.arange(24).reshape(2, 3, 4) // k for k in (5, 7))
    table = contingency(seg.astype(dtypes[0]), truth.astype(dtypes[1]))
    assert as_counter(table) == plain_contingency(seg, truth)
    assert table.seg.dtype == table.truth.dtype == np.uint64


def test_contingency_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \(1, 3, 2\)"):
        contingency(np.zeros((1, 2, 3), np.uint64), np.zeros((1, 3, 2), np.uint64))


@settings(deadline=None)
@given(label_pairs())
def test_collapsing_the_unlabelled_changes_no_score(pair):
    seg, truth = pair
    assume(truth.any())
    table = contingency(seg, truth)
    small = collapse_unlabelled(table)
    assert small.voxels == table.voxels
    assert (small.truth == 0).sum() <= 1
    assert variation_of_information(small) == variation_of_information(table)
    for variant in metrics.RAND_VARIANTS:
        assert adapted_rand(small, variant) == adapted_rand(table, variant)


@settings(deadline=None)
@given(label_pairs(), st.booleans())
def test_voi_equals_its_definition_and_skimage(pair, ignore):
    seg, truth = pair
    assume(truth.any() or not ignore)
    found = variation_of_information(contingency(seg, truth), ignore_truth_zero=ignore)
    pairs = plain_contingency(seg, truth)
    if ignore:
        pairs = Counter({key: count for key, count in pairs.items() if key[1] != 0})
    assert found == pytest.approx(plain_voi(pairs), abs=1e-12)
    theirs = skimage.metrics.variation_of_information(
        truth.astype(np.int64), seg.astype(np.int64), ignore_labels=(0,) if ignore else ()
    )
    assert found == pytest.approx(tuple(theirs), abs=1e-12)


@settings(deadline=None)
@given(label_pairs(), st.permutations(range(5)))
def test_a_relabelled_truth_scores_perfectly(pair, names):
    truth = pair[1]
    assume(truth.any())
    table = contingency(np.array(names, np.uint64)[truth] + np.uint64(7), truth)
    assert variation_of_information(table) == (0.0, 0.0)
    for variant in metrics.RAND_VARIANTS:
        assert adapted_rand(table, variant) == (0.0, 1.0, 1.0)


@settings(deadline=None)
@given(label_pairs())
def test_rand_equals_skimage(pair):
    seg, truth = pair
    assume(truth.any())
    found = adapted_rand(contingency(seg, truth), "skimage")
    with np.errstate(invalid="ignore", divide="ignore"):
        error, *both = skimage.metrics.adapted_rand_error(truth.astype(np.int64), seg.astype(np.int64))
    # skimage 0.26 returns recall before precision, so they are compared as a pair without order.
    ours = sorted((found.precision, found.recall))
    theirs = sorted(1.0 if math.isnan(value) else float(value) for value in both)
    assert ours == pytest.approx(theirs, abs=1e-12)
    assert found.error == pytest.approx(0.0 if math.isnan(error) else float(error), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(label_pairs())
def test_skimage_variant_counts_pairs_of_voxels(pair):
    seg, truth = (volume.ravel()[:24] for volume in pair)
    assume(truth.any())
    found = adapted_rand(contingency(seg, truth), "skimage")
    voxels = [(s, t) for s, t in zip(seg.tolist(), truth.tolist(), strict=True) if t != 0]
    together = list(itertools.combinations(voxels, 2))
    in_seg = [a[1] == b[1] for a, b in together if a[0] == b[0]]
    in_truth = [a[0] == b[0] for a, b in together if a[1] == b[1]]
    assert found.precision == pytest.approx(np.mean(in_seg) if in_seg else 1.0)
    assert found.recall == pytest.approx(np.mean(in_truth) if in_truth else 1.0)


@settings(deadline=None)
@given(label_pairs(), st.sampled_from(["cremi", "snemi"]))
def test_rand_equals_the_published_formula(pair, variant):
    seg, truth = pair
    assume(truth.any())
    found = adapted_rand(contingency(seg, truth), variant)
    assert found == pytest.approx(plain_snemi(plain_contingency(seg, truth)), abs=1e-12)


def test_variants_differ_in_what_predicted_zero_is():
    truth = np.repeat(np.arange(1, 5, dtype=np.uint64), 25)
    seg = np.where(np.arange(100) % 2 == 0, truth, 0)
    table = contingency(seg, truth)
    assert adapted_rand(table, "cremi").precision > 0.99
    assert adapted_rand(table, "skimage").precision < 0.6


def test_merging_lowers_precision_and_splitting_lowers_recall():
    truth = np.repeat(np.arange(1, 5, dtype=np.uint64), 25)
    merged, split = np.ones_like(truth), np.arange(100, dtype=np.uint64) // np.uint64(5) + np.uint64(1)
    for variant in metrics.RAND_VARIANTS:
        assert adapted_rand(contingency(merged, truth), variant).recall == 1.0
        assert adapted_rand(contingency(merged, truth), variant).precision < 0.3
        assert adapted_rand(contingency(split, truth), variant).precision == 1.0
        assert adapted_rand(contingency(split, truth), variant).recall < 0.3
    assert variation_of_information(contingency(merged, truth)) == pytest.approx((0.0, 2.0))
    assert variation_of_information(contingency(split, truth)).merge == 0.0


def test_sums_beyond_64_bits_stay_exact():
    ids = np.arange(1, 4, dtype=np.uint64)
    petascale = ContingencyTable(ids, ids, np.array([2**50, 2**50 + 1, 3]))
    assert adapted_rand(petascale, "cremi") == (0.0, 1.0, 1.0)
    assert adapted_rand(petascale, "skimage") == (0.0, 1.0, 1.0)
    one_off = ContingencyTable(np.array([1, 2], np.uint64), np.array([1, 1], np.uint64), np.array([2**52, 1]))
    assert adapted_rand(one_off, "cremi").recall == (2**104 + 1) / (2**52 + 1) ** 2


@pytest.mark.parametrize("variant", metrics.RAND_VARIANTS)
def test_nothing_to_score(variant):
    table = contingency(np.ones((1, 1, 2), np.uint64), np.zeros((1, 1, 2), np.uint64))
    with pytest.raises(ValueError, match="no label but 0"):
        adapted_rand(table, variant)
    with pytest.raises(ValueError, match="no label but 0"):
        variation_of_information(table)
