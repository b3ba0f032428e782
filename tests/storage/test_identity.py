import json
import os
import shutil

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.storage.identity import sample_boxes, volume_identity
from neuroshed.storage.volumes import create_volume, open_volume

SHAPE = (64, 96, 128)
SHARD = (64, 32, 128)


def written(path, data, shard=SHARD, **options):
    volume = create_volume(
        path, shape=data.shape, dtype=data.dtype, shard_shape=shard, voxel_size=(40.0, 4.0, 4.0), **options
    )
    for start in range(0, data.shape[1], shard[1]):
        box = Box((0, start, 0), (data.shape[0], start + shard[1], data.shape[2]))
        volume.write(box, data[box.slices()])
    return path


def data():
    return np.random.default_rng(1).integers(1, 255, SHAPE).astype(np.uint8)


def test_the_identity_is_plain_json_and_tells_what_the_array_is(tmp_path):
    identity = volume_identity(open_volume(written(tmp_path / "a.zarr", data())))
    assert json.loads(json.dumps(identity)) == identity
    assert identity["path"] == str(tmp_path / "a.zarr")
    assert (identity["shape"], identity["dtype"], identity["voxel_size"]) == (list(SHAPE), "uint8", [40.0, 4.0, 4.0])


def test_times_of_files_do_not_matter(tmp_path):
    path = written(tmp_path / "a.zarr", data())
    before = volume_identity(open_volume(path))
    for file in path.rglob("*"):
        os.utime(file, (1, 1))
    shutil.copytree(path, tmp_path / "copy")
    shutil.rmtree(path)
    (tmp_path / "copy").rename(path)
    assert volume_identity(open_volume(path)) == before


def test_the_sample_does_not_depend_on_chunks(tmp_path):
    one = volume_identity(open_volume(written(tmp_path / "one.zarr", data())))
    two = volume_identity(open_volume(written(tmp_path / "two.zarr", data(), shard=(64, 96, 64))))
    assert one["sample_sha256"] == two["sample_sha256"]
    assert one["metadata_sha256"] != two["metadata_sha256"]


@pytest.mark.parametrize("octant", range(8))
def test_other_voxels_in_any_octant_are_seen(tmp_path, octant):
    changed = data()
    box = list(sample_boxes(SHAPE))[octant]
    changed[box.slices()] ^= 1
    before = volume_identity(open_volume(written(tmp_path / "a.zarr", data())))
    shutil.rmtree(tmp_path / "a.zarr")
    after = volume_identity(open_volume(written(tmp_path / "a.zarr", changed)))
    assert before["sample_sha256"] != after["sample_sha256"]
    assert before["metadata_sha256"] == after["metadata_sha256"]


def test_byte_order_and_zarr_version_do_not_change_the_sample(tmp_path):
    values = np.random.default_rng(2).integers(0, 2**60, (10, 10, 10))
    samples = set()
    for name, dtype, zarr_format in (("a", "<u8", 2), ("b", ">u8", 2), ("c", "<u8", 3)):
        store = LocalStore(tmp_path / name)
        zarr.create_array(store, data=values.astype(dtype), chunks=(4, 4, 4), zarr_format=zarr_format)
        identity = volume_identity(open_volume(tmp_path / name))
        samples.add(identity["sample_sha256"])
        assert identity["dtype"] == "uint64"
    assert len(samples) == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 200, 33), (64, 64, 64), (1000, 32, 31)])
def test_samples_lie_inside_and_apart(shape):
    boxes = list(sample_boxes(shape))
    assert len(boxes) == 8
    for box in boxes:
        assert Box.of_shape(shape).contains(box)
        assert box.shape == tuple(min(32, n) for n in shape)
    if min(shape) >= 64:
        assert all(a.intersect(b).empty for a in boxes for b in boxes if a != b)


def test_a_damaged_sample_is_an_input_error(tmp_path):
    path = written(tmp_path / "a.zarr", data())
    for shard in (path / "0" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"box \[.*\] of .* cannot be read") as caught:
        volume_identity(open_volume(path))
    assert "\n" not in str(caught.value)


def test_missing_metadata_is_an_input_error(tmp_path):
    path = written(tmp_path / "a.zarr", data())
    volume = open_volume(path)
    (path / "0" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"zarr\.json cannot be read"):
        volume_identity(volume)
