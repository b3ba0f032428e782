"""N5, Zarr and precomputed volumes that other libraries wrote: the same voxels, sizes and places, and what is wrong."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import tensorstore
import zarr
from numpy.testing import assert_array_equal
from werkzeug.http import http_date
from werkzeug.wrappers import Request, Response

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.storage import buckets, chunked
from neuroshed.storage.locations import Location
from neuroshed.storage.object_stores import Bucket
from neuroshed.storage.parts import Part
from neuroshed.storage.sources import Source, open_source
from neuroshed.storage.volumes import open_volume
from tests.conftest import new_bucket
from tests.servers import Faults, Served

from .test_bad_stores import QUICK

SHAPE = (20, 34, 45)
BOXES = [Box.of_shape(SHAPE), Box((3, 17, 5), (9, 34, 44)), Box((19, 33, 44), SHAPE)]
SHARDING = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "minishard_bits": 2,
    "shard_bits": 1,
    "hash": "murmurhash3_x86_128",
    "minishard_index_encoding": "gzip",
    "data_encoding": "gzip",
}


def voxels(dtype: str = "uint8", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Smooth enough for lossy encodings, z y x."""
    return np.add.outer(np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1])), np.arange(shape[2])).astype(dtype)


def n5(path: Path, data: np.ndarray, attributes: dict[str, Any] | None = None, **metadata: Any) -> Path:
    """A dataset, stored x y z."""
    spec = {"dataType": str(data.dtype), "dimensions": data.T.shape, "blockSize": [16] * data.ndim}
    spec["compression"] = {"type": "gzip"}
    kvstore = {"driver": "file", "path": f"{path}/"}
    array = tensorstore.open({"driver": "n5", "kvstore": kvstore, "metadata": spec | metadata}, create=True).result()
    array.write(data.T).result()
    told = path / "attributes.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | (attributes or {})))
    return path


def precomputed(path: Path, data: np.ndarray, channels: int = 1, **scale: Any) -> Path:
    """A scale of a volume, stored x y z channel."""
    kind = "segmentation" if data.dtype.itemsize > 2 else "image"
    options = {"size": data.T.shape, "resolution": [4, 8, 40], "chunk_size": [16, 16, 8], "encoding": "raw"} | scale
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "multiscale_metadata": {"data_type": str(data.dtype), "num_channels": channels, "type": kind},
        "scale_metadata": options,
    }
    array = tensorstore.open(spec, create=True, open=True).result()
    array.write(np.stack([data.T] * channels, 3)).result()
    return path


def ome(path: Path, levels: list[np.ndarray], zarr_format: Any, unit: str = "micrometer") -> Path:
    """An image of levels of half the resolution each; a time axis of length 1 before z y x."""
    axes = [{"name": "t", "type": "time"}, *({"name": axis, "type": "space", "unit": unit} for axis in "zyx")]
    datasets = []
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for number, data in enumerate(levels):
        array = group.create_array(f"s/{number}", shape=(1, *data.shape), dtype=data.dtype, chunks=(1, 8, 16, 16))
        array[0] = data
        scale, shift = 2.0**number, (2.0**number - 1) / 2
        transforms = [
            {"type": "scale", "scale": [1.0, 0.04 * scale, 0.008 * scale, 0.004 * scale]},
            {"type": "translation", "translation": [0.0, 1 + 0.04 * shift, 2 + 0.008 * shift, 0.004 * shift]},
        ]
        datasets.append({"path": f"s/{number}", "coordinateTransformations": transforms})
    image = {"axes": axes, "datasets": datasets, "version": "0.4"}
    group.attrs.update(
        {"multiscales": [image]} if zarr_format == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    return path


def plain_zarr(path: Path, data: np.ndarray, **options: Any) -> Path:
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, **{"chunks": (8, 16, 16)} | options)
    array[...] = data
    array.attrs["resolution"] = [40.0, 8.0, 4.0]
    return path


def same(source: Source, data: np.ndarray) -> None:
    assert (source.shape, source.stored_dtype) == (data.shape, data.dtype)
    for box in BOXES:
        found = source.read(box)
        assert_array_equal(found, data[box.slices()])
        assert found.flags.c_contiguous
        assert found.dtype.isnative


WRITERS: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "n5-gzip": (n5, {}),
    "n5-raw": (n5, {"compression": {"type": "raw"}}),
    "n5-bzip2": (n5, {"compression": {"type": "bzip2"}}),
    "n5-xz": (n5, {"compression": {"type": "xz"}}),
    "n5-blosc": (n5, {"compression": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}}),
    "precomputed": (precomputed, {}),
    "precomputed-sharded": (precomputed, {"sharding": SHARDING}),
    "zarr2": (plain_zarr, {"zarr_format": 2}),
    "zarr2-fortran": (plain_zarr, {"zarr_format": 2, "order": "F"}),
    "zarr3": (plain_zarr, {}),
    "zarr3-sharded": (plain_zarr, {"shards": (16, 32, 32)}),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
@pytest.mark.parametrize("name", WRITERS)
def test_the_voxels_of_others(tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several pieces to a box.
    monkeypatch.setattr(chunked, "PIECE_BYTES", 8 << 10)
    writer, options = WRITERS[name]
    data = voxels(dtype)
    same(open_source(writer(tmp_path / "volume", data, **options)), data)


@pytest.mark.parametrize("dtype", [">u2", ">u8"])
def test_other_byte_orders(tmp_path: Path, dtype: str) -> None:
    data = voxels(dtype)
    source = open_source(plain_zarr(tmp_path / "a", data, zarr_format=2))
    same(source, data.astype(data.dtype.newbyteorder("=")))


def test_labels_and_lossy_images_of_precomputed(tmp_path: Path) -> None:
    blocks = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    for dtype, more in (("uint64", {}), ("uint32", {"sharding": SHARDING})):
        data = voxels(dtype) // 9
        same(open_source(precomputed(tmp_path / dtype, data, **blocks, **more)), data)
    same(open_source(precomputed(tmp_path / "png", voxels(), encoding="png")), voxels())
    path = precomputed(tmp_path / "jpeg", voxels(), encoding="jpeg", jpeg_quality=95)
    found = open_source(path).read(BOXES[0])
    kvstore = {"driver": "file", "path": f"{path}/"}
    plain = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": kvstore}).result()
    assert_array_equal(found, plain[..., 0].read().result().T)
    assert np.abs(found.astype(int) - voxels()).max() < 9


def test_sizes_and_places_of_precomputed(tmp_path: Path) -> None:
    fine, coarse = voxels(), voxels("uint8", (20, 17, 23))
    path = precomputed(tmp_path / "a", fine, key="fine", voxel_offset=[100, 0, 7])
    precomputed(path, coarse, key="coarse", resolution=[8, 16, 40], voxel_offset=[50, 0, 7])
    whole = open_source(path)
    same(whole, fine)
    assert (whole.voxel_size, whole.offset) == ((40.0, 8.0, 4.0), (280.0, 0.0, 400.0))
    assert "precomputed scale fine (raw), 20 x 34 x 45 uint8" in whole.description
    half = open_source(path, "coarse")
    assert_array_equal(half.read(Box.of_shape(half.shape)), coarse)
    # Where the same import with --downsample 1 2 2 would be.
    assert (half.voxel_size, half.offset) == ((40.0, 16.0, 8.0), (280.0, 4.0, 402.0))
    with pytest.raises(InputError, match=r"no scale 'x'; there are: fine \[45, 34, 20\], coarse \[23, 17, 20\]"):
        open_source(path, "x")


def by_hand(folder: Path, data: np.ndarray, sides: Vec, file: Callable[[Box, Vec], str], head: Any) -> None:
    """Blocks as the specifications have them: x runs fastest, those at the end are cut."""
    grid = Grid(Box.of_shape(data.shape), sides)
    for index in grid:
        box = grid.block_box(index)
        place = folder / file(box, index)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(head(box, data[box.slices()].tobytes()))


def test_files_by_the_letter_of_the_specifications(tmp_path: Path) -> None:
    """Of https://github.com/saalfeldlab/n5 and Neuroglancer's precomputed/volume.md, written without a library."""
    data = np.random.default_rng(2).integers(0, 1 << 16, SHAPE).astype(np.uint16)
    attributes = {"dimensions": SHAPE[::-1], "blockSize": [16, 8, 10], "dataType": "uint16"}
    (tmp_path / "a.n5").mkdir()
    (tmp_path / "a.n5/attributes.json").write_text(json.dumps(attributes | {"compression": {"type": "gzip"}}))
    by_hand(
        tmp_path / "a.n5",
        data.astype(">u2"),
        (10, 8, 16),
        lambda box, index: "/".join(map(str, index[::-1])),
        lambda box, block: struct.pack(">HHIII", 0, 3, *box.shape[::-1]) + gzip.compress(block),
    )
    same(open_source(tmp_path / "a.n5"), data)
    scale = {"key": "k", "size": SHAPE[::-1], "resolution": [4, 8, 40], "chunk_sizes": [[16, 8, 10]], "encoding": "raw"}
    start = (2, 100, 30)
    info = {
        "data_type": "uint16",
        "num_channels": 1,
        "type": "image",
        "scales": [scale | {"voxel_offset": start[::-1]}],
    }
    by_hand(
        tmp_path / "b" / "k",
        data,
        (10, 8, 16),
        lambda box, index: "_".join(
            f"{a + s}-{b + s}" for a, b, s in zip(box.start[::-1], box.stop[::-1], start[::-1], strict=True)
        ),
        lambda box, block: block,
    )
    (tmp_path / "b" / "info").write_text(json.dumps(info))
    same(open_source(tmp_path / "b"), data)
    assert open_source(tmp_path / "b").offset == (80.0, 800.0, 120.0)


def test_sources_that_say_what_their_voxels_are(tmp_path: Path) -> None:
    small = voxels("uint16")
    segmentation = precomputed(tmp_path / "segmentation", small, encoding="raw")
    info = json.loads((segmentation / "info").read_text())
    (segmentation / "info").write_text(json.dumps(info | {"type": "segmentation"}))
    grown = ome(tmp_path / "labels", [small], 3)
    group = zarr.open_group(grown, mode="r+")
    group.attrs["ome"] = group.attrs["ome"] | {"image-label": {}}
    for path, labels in (
        (segmentation, True),
        (grown, True),
        (ome(tmp_path / "image", [voxels("uint32")], 2), None),
        (precomputed(tmp_path / "image32", voxels("uint16")), False),
    ):
        source = open_source(path)
        assert source.reader.labels is labels
        assert Part.of(source, None, None, None).labels is (labels is not False)
        assert Part.of(source, None, None, False).labels is False


def test_datasets_of_n5(tmp_path: Path) -> None:
    told = {"pixelResolution": {"unit": "um", "dimensions": [0.004, 0.008, 0.04]}}
    path, fine, coarse = tmp_path / "a.n5", voxels("uint16"), voxels("uint16", (20, 17, 22))
    n5(path / "em/s0", fine, told)
    n5(path / "em/s1", coarse, told | {"downsamplingFactors": [2, 2, 1]})
    same(open_source(path), fine)
    half = open_source(path, "em/s1")
    assert_array_equal(half.read(Box.of_shape(half.shape)), coarse)
    assert (half.voxel_size, half.offset) == ((40.0, 16.0, 8.0), (0.0, 4.0, 2.0))
    assert open_source(path / "em" / "s1").voxel_size == half.voxel_size
    same(open_source(path / "em"), fine)
    n5(path / "labels", fine)
    assert open_source(path, "labels").voxel_size is None
    there = r"em/s0 \[45, 34, 20\], em/s1 \[22, 17, 20\], labels \[45, 34, 20\]"
    with pytest.raises(InputError, match=f"2 datasets; choose with `--dataset` .there are: {there}"):
        open_source(path)
    with pytest.raises(InputError, match=f"no dataset 'em'; there are: {there}"):
        open_source(path, "em")
    n5(path / "video", voxels()[None])
    with pytest.raises(InputError, match=r"dataset 'video' is \[45, 34, 20, 1\] .*needed is a 3-D one"):
        open_source(path, "video")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_levels_of_ome_zarr(tmp_path: Path, zarr_format: int) -> None:
    fine, coarse = voxels("uint16"), voxels("uint16", (10, 17, 23))
    path = ome(tmp_path / "image", [fine, coarse], zarr_format)
    source = open_source(path)
    same(source, fine)
    assert source.voxel_size == pytest.approx((40, 8, 4))
    assert source.offset == pytest.approx((1000, 2000, 0))
    for place, level in ((path, "s/1"), (tmp_path, "image/s/1")):
        half = open_source(place, level)
        assert_array_equal(half.read(Box.of_shape(half.shape)), coarse)
        assert half.voxel_size == pytest.approx((80, 16, 8))
        assert half.offset == pytest.approx((1020, 2004, 2))
    with pytest.raises(InputError, match=r"no dataset 's/2'; there are: s/0 \[1, 20, 34, 45\], s/1 \[1, 10, 17, 23\]"):
        open_source(path, "s/2")
    assert open_source(plain_zarr(tmp_path / "plain", fine)).voxel_size == (40.0, 8.0, 4.0)
    zarr.create_array(tmp_path / "rgb", shape=(3, 4, 4, 4), dtype="u1")
    with pytest.raises(InputError, match="has 3 channels"):
        open_source(tmp_path / "rgb")


@pytest.mark.parametrize("name", ["n5-raw", "n5-gzip", "precomputed", "precomputed-sharded", "zarr2", "zarr3"])
def test_a_chunk_that_is_gone_is_zeros_and_one_that_is_broken_is_an_error(tmp_path: Path, name: str) -> None:
    writer, options = WRITERS[name]
    path = writer(tmp_path / "volume", voxels() + np.uint8(1), **options)
    before = open_source(path).read(BOXES[0])
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.endswith((".json", "info")))
    files = [file for file in files if not file.name.startswith(".z")]
    whole = files[-1].read_bytes()
    files[-1].unlink()
    found = open_source(path).read(BOXES[0])
    assert ((found == before) | (found == 0)).all()
    assert (found == 0).any()
    files[-1].write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BlockError, match=r"volume.* (cannot be decoded|is damaged) in") as caught:
        open_source(path).read(BOXES[0])
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 channels; export the one"):
        open_source(precomputed(tmp_path / "two", voxels(), channels=2))
    with pytest.raises(InputError, match="float32 voxels; say which intensities"):
        open_source(n5(tmp_path / "float.n5", voxels("float32")))
    bad = n5(tmp_path / "bad.n5", voxels(), {"compression": {"type": "lz4"}})
    with pytest.raises(InputError, match=r'bad\.n5 cannot be opened .*"lz4" is not registered'):
        open_source(bad)
    n5(tmp_path / "odd.n5", voxels(), {"dataType": "string"})
    with pytest.raises(InputError, match=r"odd.n5 cannot be opened .*dataType"):
        open_source(tmp_path / "odd.n5")
    (tmp_path / "odd.n5" / "attributes.json").write_text("{")
    with pytest.raises(InputError, match=r"attributes.json is damaged: it is no JSON"):
        open_source(tmp_path / "odd.n5")
    packed = precomputed(tmp_path / "packed", voxels(), key="fine")
    for chunk in (packed / "fine").iterdir():
        chunk.with_name(f"{chunk.name}.gz").write_bytes(gzip.compress(chunk.read_bytes()))
        chunk.unlink()
    with pytest.raises(InputError, match=r"\.gz is a compressed chunk, which only CloudVolume reads; unpack them all"):
        open_source(packed)
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    (meshes / "info").write_text('{"scales": [{"key": "a"}], "num_channels": 1}')
    with pytest.raises(InputError, match=r"info does not describe a volume .KeyError: 'resolution'"):
        open_source(meshes)


def test_metadata_stand_for_all_files(tmp_path: Path) -> None:
    def names(source: Source) -> list[str]:
        return [str(file).removeprefix(f"{tmp_path}/") for file in source.reader.metadata]

    n5(tmp_path / "a.n5/em/s0", voxels())
    assert names(open_source(tmp_path / "a.n5")) == [f"a.n5/{place}attributes.json" for place in ("em/s0/", "em/", "")]
    assert names(open_source(precomputed(tmp_path / "p", voxels()))) == ["p/info"]
    assert names(open_source(ome(tmp_path / "o", [voxels()], 2))) == [
        f"o/{name}" for name in (".zgroup", ".zattrs", "s/0/.zarray", "s/0/.zattrs")
    ]


def read_in_child(path: str, answers: Any) -> None:
    try:
        answers.put(int(open_source(path).read(BOXES[0]).sum()))
    except WorkflowError as error:
        answers.put(str(error))


def test_processes_that_are_spawned_read_and_those_that_are_forked_say_why_not(tmp_path: Path) -> None:
    path = n5(tmp_path / "a.n5", voxels())
    expected = int(open_source(path).read(BOXES[0]).sum())
    for method, answer in (("spawn", expected), ("fork", "forked from one that has read such arrays already")):
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        child = context.Process(target=read_in_child, args=(str(path), answers))
        child.start()
        found = answers.get(timeout=60)
        child.join()
        assert found == answer if method == "spawn" else answer in found


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = precomputed(tmp_path / "a", voxels(), encoding="jpeg")
    open_source(path).read(BOXES[0])
    chunk = next(file for file in path.rglob("*-*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-200])
    with pytest.raises(BlockError):
        open_source(path).read(BOXES[0])
    assert capfd.readouterr() == ("", "")


CHUNKED = ["n5-gzip", "precomputed", "precomputed-sharded", "zarr2"]


def copied(path: Path, target: Location) -> Location:
    for file in path.rglob("*"):
        if file.is_file():
            (target / str(file.relative_to(path))).put(file.read_bytes())
    return target


def imported(source: Location | str, target: Path) -> np.ndarray:
    cluster = ClusterConfig.model_validate("in-process:1")
    return open_volume(neuroshed.import_volume(source, target, (1, 1, 1), cluster=cluster)).read(BOXES[0])


@pytest.mark.parametrize("name", CHUNKED)
def test_on_web_servers(tmp_path: Path, name: str, server: str) -> None:
    writer, options = WRITERS[name]
    writer(tmp_path / "www" / "volume", voxels(), **options)
    same(open_source(f"{server}/volume"), voxels())
    assert_array_equal(imported(f"{server}/volume", tmp_path / "a.zarr"), voxels())
    with pytest.raises(InputError, match="there is no Zarr, N5 or precomputed volume at "):
        open_source(f"{server}/nothing")


@pytest.mark.parametrize("name", CHUNKED)
def test_in_buckets(tmp_path: Path, name: str, any_bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several pieces to a box.
    monkeypatch.setattr(chunked, "PIECE_BYTES", 8 << 10)
    writer, options = WRITERS[name]
    bucket = any_bucket
    place = copied(writer(tmp_path / "volume", voxels(), **options), bucket / "tree/a")
    same(open_source(place), voxels())
    assert_array_equal(imported(place, tmp_path / "a.zarr"), voxels())
    with pytest.raises(InputError, match="there is no Zarr, N5 or precomputed volume at "):
        open_source(bucket / "nothing")
    if name.startswith("n5"):
        same(open_source(bucket / "tree", "a"), voxels())
        with pytest.raises(InputError, match=r"no dataset 'b'; there are: \(the folder itself\) \[45, 34, 20\]"):
            open_source(place, "b")


def test_places_types_and_kinds_of_shards_in_buckets(tmp_path: Path, bucket: Location) -> None:
    blocks = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    raw = {"minishard_index_encoding": "raw", "data_encoding": "raw"}
    cases: dict[str, dict[str, Any]] = {
        "hashed": {"sharding": SHARDING | raw},
        "in order": {"sharding": SHARDING | {"hash": "identity", "minishard_bits": 0}, "voxel_offset": [7, 0, -20]},
        "many": {"sharding": SHARDING | {"preshift_bits": 0, "shard_bits": 5}, "chunk_size": [8, 8, 8], **blocks},
        "no shards": {"voxel_offset": [-3, 100, 7], **blocks},
    }
    data = voxels("uint64") // 9
    for name, case in cases.items():
        path = precomputed(tmp_path / name, data, key="fine", **case)
        precomputed(path, data[:, ::2, ::2], key="coarse", resolution=[8, 16, 40], **case)
        place = copied(path, bucket / name)
        same(open_source(place), data)
        half = open_source(place, "coarse")
        assert_array_equal(half.read(Box.of_shape(half.shape)), data[:, ::2, ::2])
        assert open_source(place).offset == open_source(path).offset


@pytest.mark.parametrize("name", ["n5-raw", "n5-gzip", "precomputed", "precomputed-sharded"])
def test_chunks_that_are_gone_or_broken_in_a_bucket(tmp_path: Path, name: str, bucket: Location) -> None:
    writer, options = WRITERS[name]
    place = copied(writer(tmp_path / "volume", voxels() + np.uint8(1), **options), bucket / "a")
    before = open_source(place).read(BOXES[0])
    *_, last = (file for file, _ in place.files() if file.name not in ("info", "attributes.json"))
    whole = last.read_bytes()
    last.delete()
    found = open_source(place).read(BOXES[0])
    assert ((found == before) | (found == 0)).all()
    assert (found == 0).any()
    # Of a shard, its data and then its index.
    for part in (len(whole) * 2 // 3, 20):
        last.put(whole[:part])
        with pytest.raises(BlockError, match=r"a.* (cannot be decoded in|is damaged)") as caught:
            open_source(place).read(BOXES[0])
        assert "\n" not in str(caught.value)


def test_chunks_that_cloudvolume_packs_in_buckets(tmp_path: Path, bucket: Location) -> None:
    """By gzip, which the object's metadata alone tell."""
    path = precomputed(tmp_path / "a", voxels(), key="fine")
    for file in path.rglob("*"):
        if file.is_file():
            attributes = {"Content-Encoding": "gzip"}
            key = f"a/{file.relative_to(path)}"
            store = buckets.client(Bucket("s3", str(bucket).removeprefix("s3://")))
            obstore.put(store, key, gzip.compress(file.read_bytes()), attributes=attributes)
    same(open_source(bucket / "a"), voxels())
    chunk = next(file for file, _ in (bucket / "a/fine").files())
    obstore.put(store, f"a/fine/{chunk.name}", b"12345", attributes=attributes)
    with pytest.raises(InputError, match=rf"{chunk} is damaged: it is no gzip, as it says .*; copy it again"):
        open_source(bucket / "a").read(BOXES[0])


@pytest.mark.parametrize("more", [{"ETag": '"1"'}, {}])
def test_what_google_unpacks_is_told(
    tmp_path: Path, more: dict[str, str], gs_served: Served, request: pytest.FixtureRequest
) -> None:
    """It sends objects that are packed by gzip unpacked, without their length, which the client needs."""
    bucket = new_bucket("gs", request)
    place = copied(precomputed(tmp_path / "a", voxels(), key="fine"), bucket / "a")

    def unpacked(asked: Request) -> Response | None:
        if asked.method == "GET" and "/fine/" in asked.path:
            return Response((part for part in [b"123", b"45"]), headers={"Last-Modified": http_date(0), **more})
        return None

    gs_served.faults.refuse = unpacked
    try:
        with pytest.raises(
            WorkflowError, match=rf"^{place}/fine/.* packed .Content-Encoding: gzip.; copy it"
        ) as caught:
            open_source(place).read(BOXES[0])
    finally:
        gs_served.faults.refuse = lambda asked: None
    assert "\n" not in str(caught.value)


def test_a_store_that_refuses_chunks_is_told(
    tmp_path: Path, any_bucket: Location, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | QUICK)
    for name in ("n5-raw", "precomputed", "precomputed-sharded"):
        writer, options = WRITERS[name]
        place = copied(writer(tmp_path / name, voxels(), **options), any_bucket / name)
        source = open_source(place)
        for status, code, said in (
            (403, "AccessDenied", "refuses these credentials"),
            (503, "SlowDown", "asks to slow down after"),
        ):
            with (
                faults.refusing(999, status, code, "GET", f"/{name}/"),
                pytest.raises(WorkflowError, match=rf"^{place}/.*{said}.*{code}") as caught,
            ):
                source.read(BOXES[0])
            assert "\n" not in str(caught.value)
        same(source, voxels())
