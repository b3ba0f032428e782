import json
import random
import tracemalloc

import numpy as np
import pytest
import skimage.metrics
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box
from neuroshed.kernels.metrics import RAND_VARIANTS, adapted_rand, contingency, variation_of_information
from neuroshed.stages.evaluate import UNLABELLED, Contingency, evaluate_tables

SHAPE = (12, 20, 24)


def blobs(seed, count=12, shape=SHAPE):
    """Labels that run over many voxels, with some 0."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, shape, (count, 3))
    grid = np.stack(np.indices(shape), -1)
    nearest = np.argmin(((grid[..., None, :] - seeds) ** 2).sum(-1), -1)
    names = rng.integers(1, 2**62, count, dtype=np.uint64)
    names[0] = 0
    return names[nearest]


def store(path, data, chunks=(8, 8, 8)):
    zarr.create_array(LocalStore(path), data=data, chunks=chunks)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    seg, truth = blobs(1, 15), blobs(2)
    return store(folder / "seg.zarr", seg), store(folder / "truth.zarr", truth, (5, 20, 7)), seg, truth


def run_all(stage, seed=0):
    stage.prepare()
    (step,) = stage.steps
    blocks = list(step.grid)
    random.Random(seed).shuffle(blocks)
    return sum(stage.run(step.name, index).voxels for index in blocks)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block_shape=st.tuples(*(st.integers(5, n + 2) for n in SHAPE)), seed=st.integers(0, 99))
def test_any_blocks_in_any_order_score_as_the_whole(pair, tmp_path_factory, block_shape, seed):
    seg_path, truth_path, seg, truth = pair
    stage = Contingency.of(tmp_path_factory.mktemp("run"), seg_path, truth_path, block_shape)
    assert run_all(stage, seed) == seg.size
    scores = evaluate_tables(stage)
    whole = contingency(seg, truth)
    assert (scores.voi_split, scores.voi_merge) == variation_of_information(whole)
    assert scores.adapted_rand == {variant: adapted_rand(whole, variant) for variant in RAND_VARIANTS}
    labelled = truth != 0
    assert scores.voxels == labelled.sum()
    assert scores.segments == np.unique(seg[labelled & (seg != 0)]).size
    assert scores.truth_labels == np.unique(truth[labelled]).size


def test_scores_equal_skimage(tmp_path, pair):
    stage = Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8))
    run_all(stage)
    scores = evaluate_tables(stage)
    seg, truth = (np.unique(labels, return_inverse=True)[1].reshape(SHAPE) for labels in pair[2:])
    expected = skimage.metrics.variation_of_information(truth, seg, ignore_labels=(0,))
    assert (scores.voi_split, scores.voi_merge) == pytest.approx(tuple(expected))
    assert scores.voi == pytest.approx(expected.sum())
    assert scores.adapted_rand["skimage"].error == pytest.approx(skimage.metrics.adapted_rand_error(truth, seg)[0])


def test_scores_are_plain_json(tmp_path, pair):
    stage = Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8))
    run_all(stage)
    numbers = evaluate_tables(stage).as_json()
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["voi"] == numbers["voi_split"] + numbers["voi_merge"]
    assert set(numbers["adapted_rand"]) == set(RAND_VARIANTS)
    assert set(numbers["adapted_rand"]["cremi"]) == {"error", "precision", "recall"}


def test_a_box_scores_only_its_voxels(tmp_path, pair):
    seg_path, truth_path, seg, truth = pair
    box = Box((2, 3, 5), (11, 20, 16))
    stage = Contingency.of(tmp_path, seg_path, truth_path, (4, 8, 8), box)
    assert run_all(stage) == box.size
    scores = evaluate_tables(stage)
    part = contingency(seg[box.slices()], truth[box.slices()])
    assert (scores.voi_split, scores.voi_merge) == variation_of_information(part)
    assert scores.adapted_rand["cremi"] == adapted_rand(part, "cremi")


def test_voxels_that_cremi_leaves_unlabelled_are_left_out(tmp_path, pair):
    seg_path, truth_path, _, truth = pair
    marked = np.where(truth == 0, UNLABELLED, truth)
    assert (marked == UNLABELLED).any()
    results = []
    for name, path in (("zero", truth_path), ("cremi", store(tmp_path / "marked.zarr", marked))):
        stage = Contingency.of(tmp_path / name, seg_path, path, (8, 8, 8))
        run_all(stage)
        results.append(evaluate_tables(stage))
    assert results[0] == results[1]


def test_any_integer_type_will_do(tmp_path):
    seg, truth = (np.unique(blobs(seed), return_inverse=True)[1].reshape(SHAPE) for seed in (1, 2))
    results = []
    for types in (("uint64", "uint64"), ("uint8", "int32"), ("int64", "uint16")):
        paths = [
            store(tmp_path / f"{k}-{t}.zarr", a.astype(t))
            for k, (a, t) in enumerate(zip((seg, truth), types, strict=True))
        ]
        stage = Contingency.of(tmp_path / "-".join(types), *paths, (16, 16, 16))
        run_all(stage)
        results.append(evaluate_tables(stage))
    assert results[0] == results[1] == results[2]


def test_negative_labels_fail_their_block(tmp_path, pair):
    labels = np.ones(SHAPE, np.int32)
    labels[9, 9, 9] = -1
    stage = Contingency.of(tmp_path / "run", store(tmp_path / "a.zarr", labels), pair[1], (8, 32, 32))
    stage.prepare()
    stage.run("", (0, 0, 0))
    with pytest.raises(BlockError, match="has the label -1 in box"):
        stage.run("", (1, 0, 0))


def test_other_shapes_are_refused(tmp_path, pair):
    other = store(tmp_path / "a.zarr", np.ones((12, 20, 25), np.uint8))
    with pytest.raises(InputError, match=r"shape \[12, 20, 24\], truth .* \[12, 20, 25\]"):
        Contingency.of(tmp_path, pair[0], other, (8, 8, 8))


@pytest.mark.parametrize("data", [np.zeros(SHAPE, np.float32), np.zeros((3, *SHAPE), np.uint8)])
def test_what_holds_no_labels_is_refused(tmp_path, pair, data):
    path = store(tmp_path / "a.zarr", data, data.shape)
    with pytest.raises(InputError, match="needed are integer labels without channels"):
        Contingency.of(tmp_path, path, pair[1], (8, 8, 8))


@pytest.mark.parametrize("box", [Box((0, 0, 0), (13, 1, 1)), Box((1, 1, 1), (1, 5, 5)), Box((-1, 0, 0), (4, 4, 4))])
def test_boxes_outside_are_refused(tmp_path, pair, box):
    with pytest.raises(InputError, match="is not inside the volumes"):
        Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8), box)


def test_a_truth_without_labels_is_refused(tmp_path, pair):
    empty = store(tmp_path / "a.zarr", np.zeros(SHAPE, np.uint8))
    stage = Contingency.of(tmp_path / "run", pair[0], empty, (16, 32, 32))
    run_all(stage)
    with pytest.raises(InputError, match="has no label but 0 in box"):
        evaluate_tables(stage)


def test_a_missing_table_is_named(tmp_path, pair):
    stage = Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8))
    run_all(stage)
    stage.node_path("", (1, 0, 2)).delete()
    with pytest.raises(BlockError, match=r"1_0_2\.parquet is missing"):
        evaluate_tables(stage)


def test_a_stage_survives_its_file(tmp_path, pair):
    stage = Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8), Box((0, 0, 0), (8, 20, 24)))
    again = Contingency.model_validate_json(stage.model_dump_json())
    assert again == stage
    assert again.fingerprint == stage.fingerprint
    assert Contingency.of(tmp_path, pair[0], pair[1], (8, 8, 8)).fingerprint != stage.fingerprint


def test_another_truth_is_another_stage(tmp_path, pair):
    truth = tmp_path / "truth.zarr"
    found = []
    for seed in (2, 3):
        if truth.exists():
            zarr.open_array(truth, mode="r+")[...] = blobs(seed)
        else:
            store(truth, blobs(seed))
        found.append(Contingency.of(tmp_path, pair[0], truth, (8, 8, 8)).fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("kind", ["runs", "noise"])
def test_memory_stays_within_the_prediction(tmp_path, kind):
    shape = (32, 128, 256)
    rng = np.random.default_rng(0)
    if kind == "noise":
        # A new label at every voxel, and a table row for every 8.
        seg, truth = (rng.integers(1, 362, shape, dtype=np.uint64) for _ in range(2))
    else:
        seg, truth = (np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) // np.uint64(k) for k in (10, 100))
    paths = [store(tmp_path / f"{k}.zarr", a, (32, 64, 128)) for k, a in enumerate((seg, truth))]
    stage = Contingency.of(tmp_path / "run", *paths, shape)
    stage.prepare()
    del seg, truth
    stage.run("", (0, 0, 0))
    tracemalloc.start()
    try:
        stage.run("", (0, 0, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= stage.memory_bytes("")
