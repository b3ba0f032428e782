import itertools
import math
import tracemalloc

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from pydantic import ValidationError
from zarr.storage import LocalStore

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Grid
from neuroshed.stages.affinities import NEAREST, Affinities, AffinityConvention
from neuroshed.stages.registry import load_stage, save_stage
from neuroshed.storage.reading import THREAD_BYTES
from neuroshed.storage.volumes import create_volume

SHAPE = (5, 6, 7)
LONG = ((0, 0, -3), (0, -2, 1))


def edges(offsets, shape=SHAPE, seed=0):
    """Random strengths (0..255) by edge, an edge being the set of its two voxels."""
    rng = np.random.default_rng(seed)
    inside = Box.of_shape(shape)
    return {
        frozenset([p, q]): int(rng.integers(0, 256))
        for offset in offsets
        for p in np.ndindex(shape)
        for q in [tuple(a + b for a, b in zip(p, offset, strict=True))]
        if inside.contains(Box(q, tuple(v + 1 for v in q)))
    }


def canonical(strengths, offsets, shape=SHAPE):
    """What `read` must give: channel c at p is the edge between p and p + offset."""
    out = np.zeros((len(offsets), *shape), np.uint8)
    for c, offset in enumerate(offsets):
        for p in np.ndindex(shape):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            out[(c, *p)] = strengths.get(frozenset([p, q]), 0)
    return out


def stored_values(strengths, offsets, stored_at, shape=SHAPE):
    """The same edges in a declared convention (c, z, y, x), -1 where there is none."""
    out = np.full((len(offsets), *shape), -1)
    for c, offset in enumerate(offsets):
        for p in np.ndindex(shape):
            sign = 1 if stored_at == "source" else -1
            q = tuple(a + sign * b for a, b in zip(p, offset, strict=True))
            out[(c, *p)] = strengths.get(frozenset([p, q]), -1)
    return out


def save(path, data, chunks=None, names=None):
    chunks = chunks or tuple(min(n, 4) for n in data.shape)
    zarr.create_array(LocalStore(path), data=data, chunks=chunks, dimension_names=names)
    return path


def encode(values, dtype, inverted):
    """Bytes as stored values; what is no edge becomes something that must not be read."""
    there = values >= 0
    values = 255 - values if inverted else values
    if dtype == "uint8":
        return np.where(there, values, 77).astype(np.uint8)
    return np.where(there, values / 255, math.nan).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("stored_at", ["source", "destination"])
@pytest.mark.parametrize("sign", ["negative", "positive"])
@pytest.mark.parametrize("channels", ["zyx", "xyz"])
def test_every_convention_reads_as_ours(tmp_path, dtype, inverted, stored_at, sign, channels):
    strengths = edges(NEAREST)
    step = -1 if sign == "negative" else 1
    offsets = [tuple(step * (axis == name) for axis in "zyx") for name in channels]
    values = encode(stored_values(strengths, offsets, stored_at), dtype, inverted)
    expected = canonical(strengths, NEAREST)
    for array_axes, channel_axis in itertools.product(("zyx", "xyz"), ("first", "last")):
        turned = values if array_axes == "zyx" else values.transpose(0, 3, 2, 1)
        turned = turned if channel_axis == "first" else np.moveaxis(turned, 0, -1)
        convention = AffinityConvention(
            channels=channels,
            sign=sign,
            stored_at=stored_at,
            inverted=inverted,
            array_axes=array_axes,
            channel_axis=channel_axis,
        )
        source = Affinities.of(tmp_path, save(tmp_path / f"{array_axes}{channel_axis}", turned), convention)
        assert source.volume_shape == SHAPE
        assert source.affinities.shape == SHAPE
        assert_array_equal(source.read(Box.of_shape(SHAPE)), expected)


@pytest.mark.parametrize("stored_at", ["source", "destination"])
@pytest.mark.parametrize("chunk_channels", [1, 2, 5])
def test_offsets_in_any_order_serve_the_nearest_and_the_long_range(tmp_path, stored_at, chunk_channels):
    strengths = edges((*NEAREST, *LONG))
    offsets = ((0, 0, 3), (0, 1, 0), (0, -2, 1), (0, 0, -1), (1, 0, 0))
    values = encode(stored_values(strengths, offsets, stored_at), "float32", inverted=False)
    path = save(tmp_path / "a.zarr", values, (chunk_channels, 2, 3, 4))
    convention = AffinityConvention(offsets=offsets, stored_at=stored_at)
    source = Affinities.of(tmp_path, path, convention, LONG)
    assert source.offsets == (*NEAREST, *LONG)
    expected = canonical(strengths, source.offsets)
    whole = Box.of_shape(SHAPE)
    assert_array_equal(source.read(whole), expected)
    for block_shape in ((1, 2, 3), (2, 3, 1), (5, 1, 4)):
        grid = Grid(whole, block_shape)
        for index in grid:
            box = grid.block_box(index)
            assert_array_equal(source.read(box), expected[(..., *box.slices())])


@given(st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_is_that_of_the_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    offsets = data.draw(st.permutations([(1, 0, 0), (0, -1, 0), (0, 0, 1), (0, 2, -3)]))
    stored_at = data.draw(st.sampled_from(["source", "destination"]))
    strengths = edges((*NEAREST, (0, 2, -3)), shape)
    values = encode(stored_values(strengths, offsets, stored_at, shape), "float32", inverted=False)
    convention = AffinityConvention(offsets=offsets, stored_at=stored_at)
    source = Affinities.of(folder, save(folder / "a.zarr", values), convention, ((0, 2, -3),))
    start = data.draw(st.tuples(*[st.integers(0, n - 1) for n in shape]))
    stop = data.draw(st.tuples(*[st.integers(a + 1, n) for a, n in zip(start, shape, strict=True)]))
    box = Box(start, stop)
    assert_array_equal(source.read(box), canonical(strengths, source.offsets, shape)[(..., *box.slices())])


def own_volume(path, data, offsets=NEAREST):
    volume = create_volume(
        path, shape=SHAPE, dtype=data.dtype, shard_shape=SHAPE, voxel_size=(40, 4, 4), voxel_offsets=offsets
    )
    volume.write(volume.box, data)
    return path


def test_our_own_volumes_need_no_declaration(tmp_path):
    strengths = edges((*NEAREST, *LONG))
    expected = canonical(strengths, (*NEAREST, *LONG))
    path = own_volume(tmp_path / "a.zarr", expected, (*NEAREST, *LONG))
    source = Affinities.of(tmp_path, path, long_range=LONG[1:])
    assert source.convention.offsets == (*NEAREST, *LONG)
    assert source.voxel_size == (40, 4, 4)
    assert_array_equal(source.read(Box.of_shape(SHAPE)), expected[[0, 1, 2, 4]])
    assert Affinities.of(tmp_path, path, AffinityConvention(channels="zyx"), LONG).offsets == (*NEAREST, *LONG)


def test_offsets_in_the_metadata_are_used(tmp_path):
    strengths = edges(NEAREST)
    offsets = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    path = own_volume(tmp_path / "a.zarr", encode(stored_values(strengths, offsets, "source"), "uint8", False), offsets)
    assert_array_equal(Affinities.of(tmp_path, path).read(Box.of_shape(SHAPE)), canonical(strengths, NEAREST))
    with pytest.raises(InputError, match="in their metadata, declared are"):
        Affinities.of(tmp_path, path, AffinityConvention(channels="zyx"))


def test_an_ome_zarr_volume_is_stored_as_it_says(tmp_path):
    path = own_volume(tmp_path / "a.zarr", np.zeros((3, *SHAPE), np.uint8))
    for convention in (AffinityConvention(array_axes="xyz"), AffinityConvention(channel_axis="last")):
        with pytest.raises(InputError, match="says that its axes are c, z, y, x, declared are"):
            Affinities.of(tmp_path, path, convention)


def test_names_of_a_plain_arrays_axes_must_agree(tmp_path):
    path = save(tmp_path / "a.zarr", np.zeros((3, *SHAPE), np.uint8), names=("c", "x", "y", "z"))
    with pytest.raises(InputError, match="says that its axes are c, x, y, z, declared are c, z, y, x"):
        Affinities.of(tmp_path, path)
    assert Affinities.of(tmp_path, path, AffinityConvention(array_axes="xyz")).volume_shape == SHAPE[::-1]


def test_values_of_a_declared_range(tmp_path):
    data = np.random.default_rng(0).integers(0, 65536, (3, *SHAPE)).astype(np.uint16)
    path = save(tmp_path / "a.zarr", data)
    with pytest.raises(InputError, match="uint16 affinities have no usual range; declare value_range"):
        Affinities.of(tmp_path, path)
    source = Affinities.of(tmp_path, path, AffinityConvention(value_range=(0, 65535)))
    got = source.read(Box.of_shape(SHAPE))
    assert_array_equal(got[0, 1:], np.floor(data[0, 1:] / 257 + 0.5))


@pytest.mark.parametrize("wrong", [math.nan, 1.5, -math.inf])
def test_what_is_no_affinity_stops_the_block_with_channel_and_voxel(tmp_path, wrong):
    data = np.full((3, *SHAPE), 0.5, np.float32)
    data[1, 2, 3, 4] = wrong
    path = save(tmp_path / "a.zarr", data)
    source = Affinities.of(tmp_path, path)
    with pytest.raises(BlockError, match=rf"{path}, channel 1 \(offset \[0, -1, 0\]\): voxel \[2, 3, 4\] .* holds"):
        source.read(Box((1, 1, 1), (5, 6, 7)))
    assert (source.read(Box((3, 1, 1), (5, 6, 7))) == 128).all()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((2, *SHAPE), np.uint8), {}, "have 2 channels for 3 offsets"),
        (np.zeros((1, *SHAPE), np.uint8), {}, "have 1 channels for 3 offsets"),
        (np.zeros(SHAPE, np.uint8), {}, "has 3 axes; needed are 4: c, z, y, x"),
        (np.zeros((3, *SHAPE), np.int64), {}, "are int64; needed are integers of 8 to 32 bits or floats"),
        (np.zeros((3, *SHAPE), bool), {}, "are bool; needed are"),
        (np.zeros((3, *SHAPE), np.complex64), {}, "are complex64; needed are"),
        (np.zeros((3, *SHAPE), np.uint8), {"long_range": LONG}, r"no channel holds the edges of offset \[0, 0, -3\]"),
        (np.zeros((3, *SHAPE), np.uint8), {"long_range": ((0, 0, 1),)}, "must differ from 0, from each other"),
        (np.zeros((3, *SHAPE), np.uint8), {"long_range": ((0, 0, 0),)}, "must differ from 0, from each other"),
        (
            np.zeros((3, *SHAPE), np.uint8),
            {"convention": AffinityConvention(offsets=((0, 0, -1), (0, -1, 0), (0, 0, -9)))},
            r"no channel holds the edges of offset \[-1, 0, 0\]",
        ),
        (
            np.zeros((*SHAPE, 3), np.uint8),
            {"convention": AffinityConvention(offsets=((0, 0, -1), *LONG, (9, 9, 9)), channel_axis="last")},
            "have 3 channels for 4 offsets",
        ),
    ],
)
def test_volumes_that_cannot_be_affinities_are_refused(tmp_path, data, options, message):
    with pytest.raises(InputError, match=message):
        Affinities.of(tmp_path, save(tmp_path / "a.zarr", data), **options)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"offsets": [[0, 0, -1]], "sign": "positive"}, "leave those out"),
        ({"offsets": [[0, 0, -1]], "channels": "xyz"}, "leave those out"),
        ({"offsets": [[0, 0, -1], [0, 0, -1]]}, "none twice and none 0"),
        ({"offsets": [[0, 0, 0]]}, "none twice and none 0"),
        ({"offsets": []}, "none twice and none 0"),
        ({"value_range": [1, 0]}, "low < high"),
        ({"value_range": [0, math.inf]}, "finite"),
        ({"axes": "xyz"}, "Extra inputs"),
        ({"stored_at": "middle"}, "'source' or 'destination'"),
    ],
)
def test_conventions_that_say_nothing_clear_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        AffinityConvention.model_validate(keys)


def test_the_fingerprint_is_that_of_what_is_meant(tmp_path):
    path = save(tmp_path / "a.zarr", np.zeros((4, *SHAPE), np.uint8))

    def fingerprint(long_range=(), **keys):
        return Affinities.of(tmp_path, path, AffinityConvention.model_validate(keys), long_range).fingerprint

    plain = fingerprint()
    same = [{"channels": "zyx"}, {"sign": "negative"}, {"offsets": NEAREST}, {"value_range": [0, 255]}]
    other = [
        {"channels": "xyz"},
        {"sign": "positive"},
        {"stored_at": "destination"},
        {"inverted": True},
        {"value_range": [0, 254]},
        {"offsets": [*NEAREST, LONG[0]]},
        {"offsets": [*NEAREST, LONG[0]], "long_range": LONG[:1]},
    ]
    assert {fingerprint(**keys) for keys in same} == {plain}
    assert len({plain, *(fingerprint(**keys) for keys in other)}) == len(other) + 1


def test_a_worker_reads_the_stage_as_it_was_planned(tmp_path):
    strengths = edges((*NEAREST, LONG[0]))
    offsets = ((0, 0, 3), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    values = np.moveaxis(encode(stored_values(strengths, offsets, "source"), "float32", True), 0, -1)
    convention = AffinityConvention(offsets=offsets, inverted=True, channel_axis="last")
    source = Affinities.of(tmp_path, save(tmp_path / "a.zarr", values), convention, LONG[:1])
    loaded = load_stage(save_stage(source))
    assert isinstance(loaded, Affinities)
    assert loaded == source
    assert loaded.fingerprint == source.fingerprint
    assert_array_equal(loaded.read(Box.of_shape(SHAPE)), canonical(strengths, source.offsets))
    assert loaded.steps == ()


def test_reading_outside_is_refused(tmp_path):
    source = Affinities.of(tmp_path, save(tmp_path / "a.zarr", np.zeros((3, *SHAPE), np.uint8)))
    with pytest.raises(ValueError, match="is not inside"):
        source.read(Box.of_shape(SHAPE).grow(0, 1))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_reading_stays_within_its_predicted_memory(tmp_path, dtype):
    data = np.zeros((9, 96, 96, 96), dtype)
    path = save(tmp_path / "a.zarr", data, (1, 24, 24, 24))
    offsets = [(0, 0, 1), (0, 1, 0), (1, 0, 0), *((0, 0, 2 + n) for n in range(6))]
    source = Affinities.of(tmp_path, path, AffinityConvention(offsets=offsets), ((0, 0, -7),))
    box = Box((8, 8, 8), (96, 96, 96))
    source.read(box)
    assert peak_bytes(source, box) <= source.read_bytes(box.shape) < data.nbytes + THREAD_BYTES


def peak_bytes(source, box):
    """What a read allocates at once. Once in a while the interpreter's own tables grow at that time."""
    peaks = []
    for _ in range(3):
        tracemalloc.start()
        source.read(box)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(peaks)


def long_range_volume(path, strengths, offsets, shards=None):
    """Affinities in our own convention; where an edge leaves the volume something is stored that must not be read."""
    values = encode(stored_values(strengths, offsets, "source"), "uint8", inverted=False)
    assert (values == 77).any()
    zarr.create_array(LocalStore(path), data=values, chunks=(1, 2, 3, 2), shards=shards)
    return path


@pytest.mark.parametrize("shards", [None, (5, 4, 6, 8)])
@pytest.mark.parametrize("block_shape", [(5, 6, 7), (2, 3, 2), (1, 1, 4)])
def test_our_own_convention_is_read_as_it_is_stored(tmp_path, shards, block_shape):
    offsets = ((0, 0, -3), *NEAREST, (0, -2, 1))
    strengths = edges(offsets)
    source = Affinities.of(
        tmp_path,
        long_range_volume(tmp_path / "a.zarr", strengths, offsets, shards),
        AffinityConvention(offsets=offsets),
        ((0, -2, 1),),
    )
    expected = canonical(strengths, source.offsets)
    grid = Grid(Box.of_shape(SHAPE), block_shape)
    for index in grid:
        box = grid.block_box(index)
        assert_array_equal(source.read(box), expected[(..., *box.slices())])


def test_our_own_convention_is_handed_out_as_it_is_stored(tmp_path):
    volume = create_volume(
        tmp_path / "a.zarr", shape=(64,) * 3, dtype="uint8", shard_shape=(32,) * 3, voxel_size=(1, 1, 1),
        voxel_offsets=NEAREST,
    )  # fmt: skip
    data = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 64), np.uint8)
    for index in Grid(volume.box, (32,) * 3):
        box = Grid(volume.box, (32,) * 3).block_box(index)
        volume.write(box, data[(..., *box.slices())])
    box = Box((0, 0, 0), (60, 60, 60))
    ours, inverted = (
        Affinities.of(tmp_path, volume.path, AffinityConvention(inverted=inverted)) for inverted in (False, True)
    )
    assert_array_equal(ours.read(box)[0, 1:], 255 - inverted.read(box)[0, 1:])
    for stage in (ours, inverted):
        assert peak_bytes(stage, box) <= stage.read_bytes(box.shape)
