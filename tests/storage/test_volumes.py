import json

import numpy as np
import obstore
import pytest
import tensorstore
import zarr
from numpy.testing import assert_array_equal
from obstore.exceptions import GenericError
from ome_zarr_models.v05.image import Image
from zarr.storage import LocalStore

from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Box, Grid
from neuroshed.storage.volumes import check_block_shape, create_volume, open_volume

SHAPE = (20, 24, 30)
SHARD = (8, 16, 16)
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def labels(shape=SHAPE, dtype=np.uint64):
    return np.random.default_rng(5).integers(0, 200, shape).astype(dtype)


def create(path, **changes):
    options = {"shape": SHAPE, "dtype": "uint64", "shard_shape": SHARD, "voxel_size": (40.0, 4.0, 4.0)}
    return create_volume(path, **(options | changes))


def fill(volume, data):
    for index in Grid(volume.box, SHARD):
        box = Grid(volume.box, SHARD).block_box(index)
        volume.write(box, data[(..., *box.slices())])


def old_image(path, data, axes, transforms, image_transforms=None, version="0.4"):
    """An OME-Zarr 0.4 image (Zarr v2) of one level."""
    image = {"version": version, "axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    if image_transforms:
        image["coordinateTransformations"] = image_transforms
    group = zarr.create_group(LocalStore(path), zarr_format=2, attributes={"multiscales": [image]})
    array = group.create_array("s0", shape=data.shape, dtype=data.dtype, chunks=tuple(min(16, n) for n in data.shape))
    array[...] = data
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_blocks_read_back_as_the_whole(place, dtype):
    data = labels(dtype=dtype)
    written = create(place / "a.zarr", dtype=dtype, offset=(400.0, 8.0, 0.0))
    fill(written, data)
    volume = open_volume(place / "a.zarr")
    assert volume.dtype == data.dtype
    assert (volume.shape, volume.channels, volume.shard_shape) == (SHAPE, None, SHARD)
    assert (volume.voxel_size, volume.offset) == ((40.0, 4.0, 4.0), (400.0, 8.0, 0.0))
    for box in (volume.box, Box((3, 4, 5), (19, 24, 17)), Box((0, 0, 0), (1, 1, 1))):
        assert_array_equal(volume.read(box), data[box.slices()])


def test_affinities_keep_their_offsets(place):
    data = labels((3, *SHAPE), np.uint8)
    written = create(place / "a.zarr", dtype="uint8", voxel_offsets=NEAREST)
    fill(written, data)
    volume = open_volume(place / "a.zarr")
    assert (volume.channels, volume.voxel_offsets, volume.shape) == (3, NEAREST, SHAPE)
    assert_array_equal(volume.read(volume.box), data)
    assert_array_equal(volume.read(Box((1, 2, 3), (9, 9, 9)), channels=2), data[:2, 1:9, 2:9, 3:9])


@pytest.mark.parametrize("offsets", [None, NEAREST])
def test_metadata_is_valid_ome_zarr(place, offsets):
    create(place / "a.zarr", voxel_offsets=offsets)
    image = Image.from_zarr(zarr.open_group((place / "a.zarr").zarr_store(read_only=True), mode="r"))
    axes = image.ome_attributes.multiscales[0].axes
    assert [axis.name for axis in axes] == [*(["c"] if offsets else []), "z", "y", "x"]
    assert axes[-1].unit == "nanometer"


def test_a_volume_is_sharded_and_checked(tmp_path):
    volume = create(tmp_path / "a.zarr", shape=(256, 256, 256), shard_shape=(128, 128, 128))
    assert volume.array.shards == (128, 128, 128)
    assert volume.array.chunks == (64, 64, 64)
    metadata = json.loads((tmp_path / "a.zarr" / "0" / "zarr.json").read_text())
    assert '"checksum": true' in json.dumps(metadata)


def test_creating_again_opens_the_same_volume(place):
    data = labels()
    fill(create(place / "a.zarr"), data)
    again = create(place / "a.zarr")
    assert again.sink is not None
    assert_array_equal(again.read(again.box), data)
    assert place.names() == ["a.zarr"]


@pytest.mark.parametrize("change", [{"shape": (20, 24, 31)}, {"dtype": "uint32"}, {"shard_shape": (16, 16, 16)}])
def test_creating_another_volume_there_is_refused(place, change):
    create(place / "a.zarr")
    with pytest.raises(WorkflowError, match="choose another path or remove it"):
        create(place / "a.zarr", **change)


def test_a_volume_made_meanwhile_is_taken(tmp_path, monkeypatch):
    create(tmp_path / "first.zarr")
    path = tmp_path / "a.zarr"
    original = zarr.create_group

    def slow(*args, **options):
        group = original(*args, **options)
        if not path.exists():
            (tmp_path / "first.zarr").rename(path)
        return group

    monkeypatch.setattr(zarr, "create_group", slow)
    assert create(path).shape == SHAPE
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    "box",
    [
        Box((1, 0, 0), (8, 16, 16)),
        Box((0, 0, 0), (8, 16, 15)),
        Box((0, 0, 0), (8, 24, 29)),
        Box((16, 16, 16), (24, 32, 32)),
    ],
)
def test_boxes_that_do_not_own_their_shards_are_refused(tmp_path, box):
    volume = create(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="does not own whole shards"):
        volume.write(box, np.ones(box.shape, np.uint64))


def test_opened_volumes_are_read_only(place):
    create(place / "a.zarr")
    volume = open_volume(place / "a.zarr")
    with pytest.raises(ValueError, match="inputs are never changed"):
        volume.write(volume.box, np.ones(SHAPE, np.uint64))
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1


def test_reading_outside_is_refused(tmp_path):
    volume = create(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="is not inside"):
        volume.read(volume.box.grow(0, 1))


def test_zeros_written_over_a_block_are_read_back(place):
    volume = create(place / "a.zarr")
    fill(volume, labels() + np.uint64(1))
    fill(volume, np.zeros(SHAPE, np.uint64))
    assert not open_volume(place / "a.zarr").read(volume.box).any()


def test_reads_ome_zarr_04_with_time_and_channel(tmp_path):
    data = labels((1, 1, *SHAPE), np.uint16)
    axes = [
        {"name": "t", "type": "time", "unit": "second"},
        {"name": "c", "type": "channel"},
        *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
    ]
    transforms = [
        {"type": "scale", "scale": [1.0, 1.0, 0.04, 0.004, 0.004]},
        {"type": "translation", "translation": [0.0, 0.0, 0.4, 0.0, 1.0]},
    ]
    volume = open_volume(old_image(tmp_path / "a.zarr", data, axes, transforms))
    assert (volume.shape, volume.channels) == (SHAPE, None)
    assert volume.voxel_size == pytest.approx((40.0, 4.0, 4.0))
    assert volume.offset == pytest.approx((400.0, 0.0, 1000.0))
    assert_array_equal(volume.read(volume.box), data[0, 0])


def test_reads_channels_of_a_five_dimensional_image(tmp_path):
    data = labels((1, 3, *SHAPE), np.uint8)
    axes = [{"name": name} for name in "tczyx"]
    volume = open_volume(old_image(tmp_path / "a.zarr", data, axes, [{"type": "scale", "scale": [1, 1, 2, 3, 4]}]))
    assert (volume.channels, volume.voxel_size) == (3, (2.0, 3.0, 4.0))
    assert_array_equal(volume.read(Box((1, 2, 3), (4, 5, 6))), data[0, :, 1:4, 2:5, 3:6])


def test_transforms_of_the_whole_image_come_after_those_of_the_level(tmp_path):
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    level = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [1, 1, 1]}]
    whole = [{"type": "scale", "scale": [10, 1, 1]}]
    volume = open_volume(old_image(tmp_path / "a.zarr", labels(), axes, level, whole))
    assert (volume.voxel_size, volume.offset) == ((20.0, 2.0, 2.0), (10.0, 1.0, 1.0))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_has_voxels_of_one_nanometre(place, zarr_format):
    data = labels()
    zarr.create_array(
        (place / "a.zarr").zarr_store(read_only=False), data=data, zarr_format=zarr_format, chunks=(8, 8, 8)
    )
    volume = open_volume(place / "a.zarr")
    assert (volume.voxel_size, volume.offset) == ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert_array_equal(volume.read(Box((2, 2, 2), (9, 10, 11))), data[2:9, 2:10, 2:11])


def test_what_is_no_volume_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="the path does not exist"):
        open_volume(tmp_path / "missing.zarr")
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(InputError, match="bring other formats in with `neuroshed import`"):
        open_volume(tmp_path / "a.tif")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="the path does not exist or is empty"):
        open_volume(tmp_path / "folder")
    (tmp_path / "folder" / "a.tif").touch()
    with pytest.raises(InputError, match="is not a Zarr array or group"):
        open_volume(tmp_path / "folder")


def test_groups_without_an_image_are_refused(place):
    group = zarr.create_group((place / "a.zarr").zarr_store(read_only=False))
    with pytest.raises(InputError, match=r"without OME-Zarr multiscales$"):
        open_volume(place / "a.zarr")
    group.create_array("raw", shape=SHAPE, dtype="uint8")
    with pytest.raises(InputError, match="without OME-Zarr multiscales; name one of its arrays: raw"):
        open_volume(place / "a.zarr")


def test_an_image_whose_array_is_missing_is_refused(tmp_path):
    axes = [{"name": name} for name in "zyx"]
    path = old_image(tmp_path / "a.zarr", labels(), axes, [{"type": "scale", "scale": [1, 1, 1]}])
    (path / "s0").rename(path / "other")
    with pytest.raises(InputError, match="names the array 's0' in its metadata, but it is missing"):
        open_volume(path)
    zarr.create_group(LocalStore(path), path="s0", zarr_format=2)
    with pytest.raises(InputError, match="is a group where an array was expected"):
        open_volume(path)


@pytest.mark.parametrize("images", [[{}], [{"datasets": []}], [{"datasets": [{}]}], {"a": 1}, 3])
def test_an_image_with_broken_metadata_is_refused(tmp_path, images):
    zarr.create_group(LocalStore(tmp_path / "a.zarr"), attributes={"ome": {"version": "0.5", "multiscales": images}})
    with pytest.raises(InputError, match="broken OME-Zarr metadata"):
        open_volume(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("axes", "shape"), [("xyz", SHAPE), ("yx", (4, 5)), ("tczyx", (2, 3, *SHAPE)), ("tzyx", (2, *SHAPE))]
)
def test_images_that_are_not_3d_are_refused(tmp_path, axes, shape):
    transforms = [{"type": "scale", "scale": [1] * len(axes)}]
    path = old_image(tmp_path / "a.zarr", labels(shape), [{"name": name} for name in axes], transforms)
    with pytest.raises(InputError, match="needed are z, y, x"):
        open_volume(path)


def test_blocks_are_whole_shards():
    check_block_shape((64, 32, 32), (32, 32, 16))
    with pytest.raises(WorkflowError, match=r"nearest that fits: \[64, 32, 16\]"):
        check_block_shape((60, 32, 8), (32, 32, 16))


def test_a_volume_of_a_bucket_is_there_when_its_metadata_is_whole(bucket, monkeypatch):
    made = []
    created = type(bucket).create

    def recorded(location, data):
        made.append((str(location).removeprefix(f"{bucket}/"), (bucket / "a.zarr" / "zarr.json").exists()))
        return created(location, data)

    monkeypatch.setattr(type(bucket), "create", recorded)
    create(bucket / "a.zarr")
    assert made == [("a.zarr/0/zarr.json", False), ("a.zarr/zarr.json", False)]


def test_what_was_broken_off_while_a_volume_was_made_is_gone_on_with(bucket):
    whole = create(bucket / "whole.zarr")
    (bucket / "a.zarr" / "0" / "zarr.json").put((bucket / "whole.zarr" / "0" / "zarr.json").read_bytes())
    data = labels()
    fill(create(bucket / "a.zarr"), data)
    assert_array_equal(open_volume(bucket / "a.zarr").read(whole.box), data)


def test_a_shard_that_is_missing_or_empty_is_named(place):
    volume = create(place / "a.zarr")
    fill(volume, labels())
    box = Box((0, 0, 0), (8, 16, 16))
    (file,) = volume.files(box)
    assert file == place / "a.zarr" / "0" / "c" / "0" / "0" / "0"
    assert [found for found, _ in (place / "a.zarr" / "0" / "c").files()] == sorted(volume.files(volume.box))
    for harm in (lambda: file.put(b""), file.delete):
        harm()
        with pytest.raises(BlockError, match=r"a\.zarr/0/c/0/0/0 is missing or empty; remove its stage's folder"):
            volume.read(volume.box)
        assert volume.read(Box((8, 0, 0), (16, 16, 16))).any()


def test_a_bucket_is_asked_only_for_shards_that_seem_empty(bucket, monkeypatch):
    volume = create(bucket / "a.zarr")
    data = labels() + np.uint64(1)
    data[:8, :16, :16] = 0
    fill(volume, data)
    asked = []
    head = obstore.head
    monkeypatch.setattr(obstore, "head", lambda store, path: asked.append(path) or head(store, path))
    assert_array_equal(volume.read(volume.box), data)
    assert asked == ["a.zarr/0/c/0/0/0"]
    assert not volume.read(Box((2, 0, 0), (3, 9, 1))).any()
    assert len(asked) == 2


def test_a_store_that_fails_is_told_from_a_damaged_volume(bucket, monkeypatch):
    volume = create(bucket / "a.zarr")
    fill(volume, labels())
    (file,) = volume.files(Box((0, 0, 0), (8, 16, 16)))
    file.put(file.read_bytes()[:-7])
    with pytest.raises(BlockError, match=r"a\.zarr is damaged in"):
        volume.read(volume.box)

    async def fails(*args, **options):
        raise GenericError("connection refused\nand more")

    monkeypatch.setattr(obstore, "get_async", fails)
    for use in (lambda: open_volume(bucket / "a.zarr"), lambda: volume.read(Box((8, 0, 0), (16, 16, 16)))):
        with pytest.raises(WorkflowError, match=r"connection refused.*check AWS_ENDPOINT_URL") as caught:
            use()
        assert "\n" not in str(caught.value)

    def refuses(*args, **options):
        raise GenericError("connection refused")

    monkeypatch.setattr(obstore, "put", refuses)
    with pytest.raises(WorkflowError, match="connection refused"):
        volume.write(volume.box, labels())


def test_a_damaged_shard_is_replaced(place):
    volume, data = create(place / "a.zarr"), labels()
    fill(volume, data)
    for file in volume.files(volume.box):
        file.put(b"not a shard")
    fill(volume, data)
    assert_array_equal(open_volume(place / "a.zarr").read(volume.box), data)


def test_nothing_is_read_to_write(bucket, monkeypatch):
    volume, data = create(bucket / "a.zarr"), labels()

    async def read(*args, **options):
        raise AssertionError

    monkeypatch.setattr(obstore, "get_async", read)
    monkeypatch.setattr(obstore, "get_range_async", read)
    for _ in range(2):
        fill(volume, data)
    # As wide as the region, not as the shards.
    volume.write(Box((8, 0, 16), (14, 16, 30)), data[8:14, :16, 16:30], Box((0, 0, 0), (14, 24, 30)))


class Asked:
    """What is asked of a disk by tensorstore, and of a bucket by zarr."""

    def __init__(self, place, monkeypatch):
        self._requests, self._is_local = [], place.is_local
        for name in ("get_async", "get_range_async"):
            monkeypatch.setattr(obstore, name, self._counting(getattr(obstore, name)))

    def _counting(self, function):
        async def counted(store, path, **options):
            self._requests.append(path)
            return await function(store, path, **options)

        return counted

    def count(self):
        if not self._is_local:
            return len(self._requests)
        name = "/tensorstore/kvstore/file/read"
        found = tensorstore.experimental_collect_matching_metrics(name)
        return sum(metric["values"][0]["value"] for metric in found if metric["name"] == name)


def test_a_block_with_its_halo_costs_the_chunks_that_it_touches(place, monkeypatch):
    shape, shard = (128, 128, 256), (128, 128, 128)
    written = create(place / "a.zarr", shape=shape, shard_shape=shard, dtype="uint8", voxel_offsets=NEAREST)
    data = np.random.default_rng(2).integers(0, 256, (3, *shape), np.uint8)
    for index in Grid(written.box, shard):
        box = Grid(written.box, shard).block_box(index)
        written.write(box, data[(..., *box.slices())])
    volume = open_volume(place / "a.zarr")
    assert volume.array.chunks == (1, 64, 64, 64)
    asked = Asked(place, monkeypatch)
    before, box = asked.count(), Box((60, 10, 120), (70, 64, 140))
    assert_array_equal(volume.read(box), data[(..., *box.slices())])
    # The indices of two shards; of three channels, two chunks along z, one along y and two along x.
    assert asked.count() - before == 2 + 12
