"""Mutex watershed in blocks: the kernel's own where there is one block, and cut at faces where there are more."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pydantic import ValidationError
from tests.promises.chunks import outputs, random_affinities, run_inline

from neuroshed.geometry import Box, Grid, as_vec
from neuroshed.kernels import child
from neuroshed.kernels.mutex import mutex_watershed
from neuroshed.kernels.parts import parts
from neuroshed.stages.affinities import NEAREST, Affinities
from neuroshed.stages.agglomerate import Agglomerate
from neuroshed.stages.mutex import MutexFragments
from neuroshed.stages.registry import load_stage, save_stage
from neuroshed.stages.segment import Segment
from neuroshed.storage.volumes import create_volume

pytest.importorskip("mwatershed")

SHAPE = (10, 12, 14)
LONG = ((0, 0, -3), (0, -3, 0), (-2, 2, 0))
OFFSETS = (*NEAREST, *LONG)
BIASES = (0.4, 0.4, 0.4, 0.6, 0.6, 0.6)
LOW = 30
RULES = {"low": LOW, "small": 0, "dust": 0}


@pytest.fixture(autouse=True, scope="module")
def no_process_stays():
    yield
    if hasattr(child._threads, "child"):
        child._threads.child.stop()


def long_range(seed, levels, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return np.concatenate([random_affinities(rng, shape, levels) for _ in range(2)])


def save(path, affinities):
    shape = affinities.shape[1:]
    volume = create_volume(
        path, shape=shape, dtype=np.uint8, shard_shape=shape, voxel_size=(10, 10, 10), voxel_offsets=OFFSETS
    )
    volume.write(volume.box, affinities)
    return Affinities.of(path.parent / "run", path, long_range=LONG)


def fragments_of(source, block_shape, context=0, region=None, **rules):
    return MutexFragments(
        run_folder=source.run_folder,
        source=source,
        region=region or Box.of_shape(source.volume_shape),
        block_shape=as_vec(block_shape),
        shard_shape=as_vec(block_shape),
        context=as_vec(context),
        **{"biases": BIASES} | RULES | rules,
    )


def run(folder, affinities, block_shape, context=0, seed=0, region=None, **rules):
    fragments = fragments_of(save(folder / "affinities.zarr", affinities), block_shape, context, region, **rules)
    tree = Agglomerate(run_folder=fragments.run_folder, fragments=fragments, score="mean", lowest=1)
    segments = [Segment(run_folder=tree.run_folder, agglomerate=tree, threshold=t) for t in ("fragments", "0.5")]
    run_inline(segments, random.Random(seed))
    return outputs(segments)


def by_first_voxel(labels):
    ids, first, places = np.unique(labels, return_index=True, return_inverse=True)
    return np.where(ids == 0, 0, first + 1).astype(np.uint64)[places].reshape(labels.shape)


def in_blocks(affinities, block_shape, context, region):
    """Fragments by the kernel on each block, in one volume."""
    out, count = np.zeros(affinities.shape[1:], np.uint64), 0
    grid = Grid(region, as_vec(block_shape))
    for box in map(grid.block_box, grid):
        around = box.grow(context).intersect(region)
        found = mutex_watershed(affinities[(slice(None), *around.slices())], OFFSETS, BIASES, LOW / 255)
        cut = parts(found[box.slices(around.start)]).labels
        out[box.slices()] = np.where(cut > 0, cut + count, 0)
        count += int(cut.max())
    return by_first_voxel(out)


@given(st.integers(0, 2**32), st.sampled_from([3, 256]))
@settings(max_examples=8)
def test_one_block_is_the_kernel(tmp_path_factory, seed, levels):
    affinities = long_range(seed, levels)
    found = run(tmp_path_factory.mktemp("run"), affinities, max(SHAPE))
    expected = parts(mutex_watershed(affinities, OFFSETS, BIASES, LOW / 255)).labels
    assert_array_equal(found["fragments"], by_first_voxel(expected))


@pytest.mark.parametrize("context", [0, 2, 12])
@pytest.mark.parametrize("region", [Box.of_shape(SHAPE), Box((1, 2, 3), (9, 12, 13))])
def test_blocks_are_cut_at_their_faces(tmp_path, context, region):
    affinities = long_range(7, 256)
    found = run(tmp_path, affinities, 7, context, region=region)
    assert_array_equal(found["fragments"], in_blocks(affinities, 7, context, region))
    assert np.unique(found["0.5"]).size < np.unique(found["fragments"]).size


def test_any_order_gives_the_same(tmp_path):
    affinities = long_range(3, 256)
    first, *others = (run(tmp_path / str(seed), affinities, 7, 2, seed, small=20, dust=10) for seed in range(3))
    for found in others:
        for threshold, labels in first.items():
            assert_array_equal(found[threshold], labels)


def two_halves(between):
    """Two halves along x, all attraction inside, `between` across, and repulsion at long range."""
    affinities = np.full((6, 2, 2, 14), 255, np.uint8)
    affinities[2, :, :, 7] = between
    affinities[3, :, :, 7:10] = 0
    return affinities


def test_what_faces_cut_is_joined_by_agglomeration(tmp_path):
    whole = np.full((6, 2, 2, 14), 255, np.uint8)
    found = run(tmp_path / "whole", whole, 7, context=7)
    assert np.unique(found["fragments"]).tolist() == [1, 8]
    assert np.unique(found["0.5"]).tolist() == [1]
    found = run(tmp_path / "halves", two_halves(120), 7, context=7)
    assert np.unique(found["0.5"]).tolist() == [1, 8]


def test_long_range_repulsion_keeps_apart_what_near_edges_join(tmp_path):
    affinities = two_halves(150)
    found = run(tmp_path / "long", affinities, 14)
    assert np.unique(found["fragments"]).tolist() == [1, 8]
    affinities[3:] = 255
    found = run(tmp_path / "near", affinities, 14)
    assert np.unique(found["fragments"]).tolist() == [1]


def test_the_size_rule_is_that_of_fragments(tmp_path):
    affinities = np.zeros((6, 1, 1, 14), np.uint8)
    affinities[3:] = 127
    # Four voxels, two, four across the face between blocks, one that is background, three on their own.
    affinities[2, 0, 0] = [0, 255, 255, 255, 90, 255, 80, 255, 255, 255, 0, 0, 255, 255]
    plain = run(tmp_path / "plain", affinities, 8, biases=(0.5,) * 6)
    assert plain["fragments"].ravel().tolist() == [1, 1, 1, 1, 5, 5, 7, 7, 9, 9, 0, 12, 12, 12]
    small = run(tmp_path / "small", affinities, 8, biases=(0.5,) * 6, small=3, dust=4)
    assert small["fragments"].ravel().tolist() == [1, 1, 1, 1, 1, 1, 7, 7, 7, 7, 0, 0, 0, 0]


def test_each_channel_has_its_bias(tmp_path):
    source = save(tmp_path / "affinities.zarr", long_range(0, 8))
    with pytest.raises(ValidationError, match="5 biases for 6 channels; there must be one each"):
        fragments_of(source, 8, biases=BIASES[1:])


def test_a_worker_reads_the_stage_back(tmp_path):
    fragments = fragments_of(save(tmp_path / "affinities.zarr", long_range(0, 8)), 8, 2)
    assert load_stage(save_stage(fragments)) == fragments
    assert fragments.memory_bytes("") >= 100 * 6 * 12**3
