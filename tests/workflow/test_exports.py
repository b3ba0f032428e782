"""What other programs read of what we write: cloud-volume, tensorstore, and the OME-Zarr models of two projects."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tensorstore
import tifffile
import yaozarrs
import zarr
from numpy.testing import assert_array_equal
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel

import neuroshed
from neuroshed.engine import attempts
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import BlockError, InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Box, Grid, Vec
from neuroshed.stages import tiff
from neuroshed.stages.precomputed import Precomputed
from neuroshed.storage import precomputed
from neuroshed.storage.levels import open_levels
from neuroshed.storage.locations import Location
from neuroshed.storage.precomputed import Scale
from neuroshed.storage.sources import open_source
from neuroshed.storage.volumes import create_volume, open_volume

from ..promises.chunks import random_affinities, write_affinities

HERE = ClusterConfig.model_validate("in-process:2")
SHAPE, SIZE, OFFSET = (70, 150, 201), (40.0, 8.0, 4.0), (-120.0, 40.0, 400.0)


@pytest.fixture(scope="module")
def cloud_volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """cloud-volume's reader; the locks that it keeps are not left in the home folder."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("CLOUD_FILES_DIR", "CLOUD_VOLUME_DIR"):
            patched.setenv(name, str(tmp_path_factory.mktemp("cloud")))
        from cloudvolume import CloudVolume

        yield lambda path, mip=0: CloudVolume(f"file://{path}", mip=mip, progress=False, fill_missing=False)


def voxels(dtype: str, shape: Vec = SHAPE) -> np.ndarray:
    """Pieces of some voxels, with large numbers where the type has room."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, np.iinfo(dtype).max, [-(-n // 5) for n in shape], dtype, endpoint=True)
    coarse[rng.random(coarse.shape) < 0.3] = 0
    return np.kron(coarse, np.ones((5, 5, 5), dtype))[: shape[0], : shape[1], : shape[2]]


def write(path: Path, data: np.ndarray, offset: tuple[float, float, float] = OFFSET, levels: int = 0) -> Path:
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)] if data.ndim == 4 else None
    volume = create_volume(
        path,
        shape=data.shape[-3:],
        dtype=data.dtype,
        shard_shape=(64, 64, 128),
        voxel_size=SIZE,
        offset=offset,
        voxel_offsets=offsets,
    )
    volume.write(volume.box, data)
    if levels:
        neuroshed.pyramid(path, levels=levels, cluster=HERE)
    return path


@pytest.mark.parametrize("dtype", ["uint64", "uint32", "uint8", "uint16"])
def test_cloud_volume_reads_all_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud_volume: Callable[..., Any], dtype: str
) -> None:
    monkeypatch.setattr(precomputed, "SHARD_BYTES", 2 * 64**3 * np.dtype(dtype).itemsize)
    data = voxels(dtype)
    source = write(tmp_path / "a.zarr", data, levels=2)
    target = neuroshed.export(source, tmp_path / "out", format="precomputed", cluster=HERE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr", "out"]
    levels = list(open_levels(Location.of(source)))
    # Voxels of 40 x 8 x 4 nm: x is halved first, then y and x.
    assert [level.shape for level in levels] == [SHAPE, (70, 150, 101), (70, 75, 51)]
    for number, (level, offset) in enumerate(zip(levels, [(-3, 5, 100), (-3, 5, 50), (-3, 2, 25)], strict=True)):
        read = cloud_volume(target, number)
        assert read.layer_type == ("segmentation" if dtype in ("uint64", "uint32") else "image")
        assert read.resolution.tolist() == list(level.voxel_size[::-1])
        assert read.bounds.minpt.tolist() == list(offset[::-1])
        assert read.dtype == dtype
        assert_array_equal(np.asarray(read[:, :, :])[..., 0].T, level.read(level.box))
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{target}/", "scale_index": number}
        assert_array_equal(tensorstore.open(spec).result().read().result()[..., 0].T, level.read(level.box))
    assert len(list((target / "4_8_40").iterdir())) > 2


def test_channels_and_places(tmp_path: Path, cloud_volume: Callable[..., Any]) -> None:
    data = np.stack([voxels("uint8", (9, 20, 70)) + number for number in range(3)]).astype(np.uint8)
    source = write(tmp_path / "a.zarr", data, offset=(10.0, 0.0, 0.0))
    options = {"format": "precomputed", "cluster": HERE}
    with pytest.raises(WorkflowError, match=r"no whole number of its voxels .* give `--voxel-offset Z Y X`"):
        neuroshed.export(source, tmp_path / "out", **options)
    neuroshed.export(source, tmp_path / "out", **options, voxel_offset=(1, 2, 3))
    read = cloud_volume(tmp_path / "out")
    assert read.bounds.minpt.tolist() == [3, 2, 1]
    assert_array_equal(np.asarray(read[:, :, :]).T, data)
    with pytest.raises(WorkflowError, match="encoding png is none for an image of uint8 with 3 channels"):
        neuroshed.export(source, tmp_path / "png", **options, voxel_offset=(0, 0, 0), encoding="png")
    with pytest.raises(InputError, match="segmentations are unsigned integers of one"):
        neuroshed.export(source, tmp_path / "png", **options, voxel_offset=(0, 0, 0), labels=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr", "out"]


def test_pictures(tmp_path: Path) -> None:
    """png keeps all, jpeg does not."""
    rows = np.linspace(0, 250, 180).astype(np.uint8)
    data = np.broadcast_to(rows, (9, 70, 180)).copy()
    source = write(tmp_path / "a.zarr", data)
    for encoding, most in (("png", 0), ("jpeg", 12)):
        target = neuroshed.export(source, tmp_path / encoding, format="precomputed", encoding=encoding, cluster=HERE)
        assert json.loads((target / "info").read_bytes())["scales"][0]["encoding"] == encoding
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{target}/"}
        found = tensorstore.open(spec).result().read().result()[..., 0].T
        assert np.abs(found.astype(int) - data).max() <= most
    with pytest.raises(WorkflowError, match="segmentations are compressed_segmentation"):
        neuroshed.export(source, tmp_path / "b", format="precomputed", encoding="png", labels=True, cluster=HERE)


@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 300, 1000), (700, 64, 129), (513, 513, 513)])
@pytest.mark.parametrize("voxel_bytes", [1, 8])
def test_one_block_is_one_file(shape: Vec, voxel_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spec's rule, chunk by chunk: interleave the bits that an axis has, drop the lowest, count up the rest."""
    monkeypatch.setattr(precomputed, "SHARD_BYTES", 64**3 * 20)
    scale = Scale(shape=shape, resolution=(1, 1, 1), voxel_offset=(0, 0, 0))
    described = scale.described("raw", voxel_bytes)["sharding"]
    files: dict[str, set[Vec]] = {}
    for chunk in np.ndindex(*scale.counts):
        number, used = 0, 0
        for bit in range(32):
            for axis in (2, 1, 0):
                if 2**bit < scale.counts[axis]:
                    number |= (chunk[axis] >> bit & 1) << used
                    used += 1
        assert used == described["preshift_bits"] + described["minishard_bits"] + described["shard_bits"]
        shard = number >> described["preshift_bits"]
        name = f"{shard:x}".zfill(-(-described["shard_bits"] // 4))
        files.setdefault(f"1_1_1/{name}.shard", set()).add(chunk)
    blocks = Grid(Box.of_shape(shape), scale.shard_shape(voxel_bytes))
    found = {scale.shard_file(index, voxel_bytes): blocks.block_box(index) for index in blocks}
    assert len(found) == len(blocks)
    assert {name: set(Grid(box, (64, 64, 64))) for name, box in found.items()} == files


def test_a_shard_by_hand(tmp_path: Path) -> None:
    """Index, minishard index and chunk, unpacked as the spec says."""
    data = voxels("uint16", (64, 64, 100))
    source = write(tmp_path / "a.zarr", data)
    neuroshed.export(source, tmp_path / "out", format="precomputed", cluster=HERE)
    told = json.loads((tmp_path / "out/info").read_bytes())
    (scale,) = told["scales"]
    assert (told["data_type"], told["num_channels"], scale["voxel_offset"]) == ("uint16", 1, [100, 5, -3])
    (shard,) = (tmp_path / "out" / scale["key"]).iterdir()
    content = shard.read_bytes()
    start, stop = struct.unpack("<QQ", content[:16])
    index = np.frombuffer(gzip.decompress(content[16 + start : 16 + stop]), "<u8").reshape(3, -1)
    assert np.cumsum(index[0]).tolist() == [0, 1]
    place = 16
    for number, (gap, size) in enumerate(index[1:].T.tolist()):
        place += gap
        width = (64, 36)[number]
        chunk = np.frombuffer(gzip.decompress(content[place : place + size]), "<u2").reshape(64, 64, width)
        assert_array_equal(chunk, data[:, :, 64 * number : 64 * number + width])
        place += size


@pytest.mark.parametrize("dtype", ["uint8", "uint64"])
def test_blocks_of_zeros_are_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud_volume: Callable[..., Any], dtype: str
) -> None:
    """One that is missing was lost."""
    monkeypatch.setattr(precomputed, "SHARD_BYTES", 2 * 64**3 * np.dtype(dtype).itemsize)
    data = voxels(dtype)
    data[:, :, 100:] = 0
    source = write(tmp_path / "a.zarr", data)
    neuroshed.export(source, tmp_path / "out", format="precomputed", cluster=HERE)
    scale = Scale(shape=SHAPE, resolution=SIZE, voxel_offset=(0, 0, 0))
    blocks = Grid(Box.of_shape(SHAPE), scale.shard_shape(np.dtype(dtype).itemsize))
    assert len(list((tmp_path / "out/4_8_40").iterdir())) == len(blocks)
    read = cloud_volume(tmp_path / "out")
    read.fill_missing = True
    assert_array_equal(np.asarray(read[:, :, :])[..., 0].T, data)
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/out/"}
    assert_array_equal(tensorstore.open(spec).result().read().result()[..., 0].T, data)
    same = open_source(tmp_path / "out")
    assert_array_equal(same.read(Box.of_shape(SHAPE)), data)


def test_a_broken_off_export_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud_volume: Callable[..., Any]
) -> None:
    monkeypatch.setattr(precomputed, "SHARD_BYTES", 2 * 64**3 * 8)
    data = voxels("uint64")
    source = write(tmp_path / "a.zarr", data)
    run = Precomputed.run
    ran: list[Vec] = []

    def broken(self: Precomputed, step: str, index: Vec) -> object:
        ran.append(index)
        if index == (1, 1, 1):
            raise ValueError("broken off")
        return run(self, step, index)

    monkeypatch.setattr(Precomputed, "run", broken)
    options = {"format": "precomputed", "cluster": HERE}
    with pytest.raises(RunFailedError, match="the same export goes on"):
        neuroshed.export(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    ran.clear()
    monkeypatch.setattr(Precomputed, "run", lambda self, *block: ran.append(block[1]) or run(self, *block))
    neuroshed.export(source, tmp_path / "out", **options)
    assert ran == [(1, 1, 1)]
    read = cloud_volume(tmp_path / "out")
    assert_array_equal(np.asarray(read[:, :, :])[..., 0].T, data)
    with pytest.raises(WorkflowError, match="exists already"):
        neuroshed.export(source, tmp_path / "out", **options)


def valid(path: Path) -> None:
    """By the schemas of two projects, one of which looks at the arrays, too."""
    yaozarrs.validate_zarr_store(str(path))


def test_an_image_with_labels(tmp_path: Path) -> None:
    image = write(tmp_path / "a.zarr", voxels("uint8"))
    labels = write(tmp_path / "b.zarr", voxels("uint64"))
    target = neuroshed.export(labels, tmp_path / "both.zarr", image=image, cluster=HERE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr", "b.zarr", "both.zarr"]
    valid(target)
    Image.from_zarr(zarr.open_group(target, mode="r"))
    segmentation = ImageLabel.from_zarr(zarr.open_group(target / "labels/segmentation", mode="r"))
    assert segmentation.attributes.ome.image_label.source.image == "../../"
    for number, (path, source) in enumerate([(target, image), (target / "labels/segmentation", labels)]):
        # In place, they are the same.
        neuroshed.pyramid(source, cluster=HERE)
        found, wanted = (list(open_levels(Location.of(place))) for place in (path, source))
        assert len(found) == len(wanted) == 3
        for level, other in zip(found, wanted, strict=True):
            assert (level.voxel_size, level.offset) == (other.voxel_size, other.offset)
            assert_array_equal(level.read(level.box), other.read(other.box))
        store = {"driver": "zarr3", "kvstore": f"file://{path}/1/"}
        assert_array_equal(tensorstore.open(store).result().read().result(), found[1].read(found[1].box))
        ome = json.loads((path / "zarr.json").read_bytes())["attributes"]["ome"]
        assert ("omero" in ome, "image-label" in ome) == ((True, False), (False, True))[number]
    (channel,) = json.loads((target / "zarr.json").read_bytes())["attributes"]["ome"]["omero"]["channels"]
    window = channel["window"]
    assert 0 == window["min"] < window["start"] < window["end"] <= window["max"] == 255


def test_labels_that_do_not_say_where_they_are(tmp_path: Path) -> None:
    image = write(tmp_path / "a.zarr", voxels("uint8"))
    labels = create_volume(tmp_path / "b.zarr", shape=SHAPE, dtype="uint64", shard_shape=SHAPE, voxel_size=(1, 1, 1))
    labels.write(labels.box, voxels("uint64"))
    target = neuroshed.export(tmp_path / "b.zarr", tmp_path / "both.zarr", image=image, cluster=HERE)
    found = open_volume(target / "labels/segmentation")
    assert (found.voxel_size, found.offset) == (SIZE, OFFSET)


def test_labels_of_other_voxels(tmp_path: Path) -> None:
    image = write(tmp_path / "a.zarr", voxels("uint8"))
    labels = write(tmp_path / "b.zarr", voxels("uint64", (70, 150, 200)))
    with pytest.raises(WorkflowError, match=r"volume shape .* labels have the voxels of their image"):
        neuroshed.export(labels, tmp_path / "both.zarr", image=image, cluster=HERE)
    with pytest.raises(WorkflowError, match="format ome-zarr"):
        neuroshed.export(labels, tmp_path / "both", image=image, format="precomputed", cluster=HERE)


def test_affinities_are_valid_too(tmp_path: Path) -> None:
    data = np.stack([voxels("uint8", (20, 60, 180))] * 3)
    source = write(tmp_path / "a.zarr", data)
    valid(source)
    target = neuroshed.export(source, tmp_path / "b.zarr", cluster=HERE)
    valid(target)
    copied, *more = open_levels(Location.of(target))
    assert copied.voxel_offsets == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    assert [level.shape for level in more] == [(20, 60, 90)]
    assert_array_equal(copied.read(copied.box), data)


def test_the_segmentation_of_a_run(tmp_path: Path, cloud_volume: Callable[..., Any]) -> None:
    path = write_affinities(tmp_path / "affinities.zarr", random_affinities(np.random.default_rng(2), (9, 13, 18), 256))
    settings = [f"affinities={path}", f"output={tmp_path / 'run'}", "block_shape=[4,8,8]", "cluster=in-process:2"]
    summary = neuroshed.run("stitch", [*settings, "pyramid=1"])
    options = {"format": "precomputed", "cluster": HERE}
    with pytest.raises(WorkflowError, match=r"name one of the thresholds of run .*: 0\.3, 0\.5"):
        neuroshed.export(tmp_path / "run", tmp_path / "out", **options)
    neuroshed.export(tmp_path / "run", tmp_path / "out", **options, threshold="0.5")
    for number, level in enumerate(open_levels(Location.of(summary["segmentations"]["0.5"]))):
        read = cloud_volume(tmp_path / "out", number)
        assert_array_equal(np.asarray(read[:, :, :])[..., 0].T, level.read(level.box))
    # What is not whole is not exported as if it were.
    (Path(summary["segmentations"]["0.3"]).parent / "stage.json").unlink()
    with pytest.raises(WorkflowError, match=r"has 0 of \d+ blocks of stage segment 0\.3"):
        neuroshed.export(tmp_path / "run", tmp_path / "out2", **options, threshold="0.3")


@pytest.mark.parametrize(("dtype", "written"), [("uint8", "uint8"), ("uint16", "uint16"), ("uint64", "uint32")])
@pytest.mark.parametrize("limit", [1, 64 * 150 * 128 * 4, 2**30])
def test_tiff_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, written: str, limit: int) -> None:
    monkeypatch.setattr(tiff, "PART_BYTES", limit)
    data = voxels(written).astype(dtype)
    source = write(tmp_path / "a.zarr", data)
    target = neuroshed.export(source, tmp_path / "out", format="tiff", cluster=HERE)
    files = sorted(target.iterdir())
    assert [file.name for file in files[::69]] == ["z00000.tif", "z00069.tif"]
    assert len(files) == len(data)
    assert_array_equal(tifffile.imread(files), data)
    with tifffile.TiffFile(files[3]) as file:
        (page,) = file.pages
        assert (page.dtype, page.compression, page.tags["XResolution"].value) == (written, 1, (250, 1))
        assert file.imagej_metadata["spacing"] == 0.04
    if written != "uint32":
        # An independent reader.
        assert_array_equal(np.asarray(PIL.Image.open(files[69])), data[69])
    # Our own import takes the size of voxels from them.
    opened = open_source(target)
    assert (opened.voxel_size, opened.dtype, opened.shape) == (SIZE, written, SHAPE)
    assert_array_equal(opened.read(Box((60, 3, 5), (66, 140, 190))), data[60:66, 3:140, 5:190])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint64"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_one_tiff(tmp_path: Path, dtype: str, compression: Any) -> None:
    data = voxels(dtype) >> np.uint64(33) if dtype == "uint64" else voxels(dtype)
    source = write(tmp_path / "a.zarr", data)
    target = neuroshed.export(source, tmp_path / "out.tif", format="tiff", compression=compression, cluster=HERE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "out.tif"]
    with tifffile.TiffFile(target) as file:
        assert (file.is_bigtiff, len(file.pages), len(file.series)) == (True, len(data), 1)
        assert_array_equal(file.asarray(), data)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (pixels["SizeZ"], pixels["SizeC"], pixels["SizeT"]) == (len(data), 1, 1)
        # Pixels per centimetre.
        assert file.pages[0].tags["XResolution"].value == (2_500_000, 1)
    if compression:
        assert target.stat().st_size < data.size * min(data.itemsize, 4) // 2
    # Independent of tifffile.
    with PIL.Image.open(target) as image:
        assert image.n_frames == len(data)
        for page in (0, 33, 69):
            image.seek(page)
            assert_array_equal(np.asarray(image), data[page])
    opened = open_source(target)
    assert (opened.voxel_size, opened.shape) == (SIZE, SHAPE)
    assert_array_equal(opened.read(Box((60, 3, 5), (66, 140, 190))), data[60:66, 3:140, 5:190])


def test_one_tiff_that_is_broken_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.zarr", voxels("uint8"))
    monkeypatch.setattr(attempts, "LONGEST_BACKOFF_SECONDS", 0.0)
    run, read = tiff.Tiff.run, tiff.read_section

    def failing(file: Location) -> Any:
        if file.name == "z00050.tif":
            raise BlockError("no more today")
        return read(file)

    def again(*given: Any) -> Any:
        raise AssertionError("sections that are there are written again")

    monkeypatch.setattr(tiff, "read_section", failing)
    with pytest.raises(RunFailedError, match="no more today; mend the cause, then the same export goes on"):
        neuroshed.export(source, tmp_path / "out.tiff", format="tiff", cluster=HERE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.tiff.export", "a.zarr"]
    monkeypatch.setattr(tiff, "read_section", read)
    monkeypatch.setattr(tiff.Tiff, "run", again)
    (section,) = tmp_path.glob(".out.tiff.export/tiff-*/out.tiff/z00003.tif")
    section.rename(tmp_path / "section")
    with pytest.raises(RunFailedError, match=r"z00003\.tif cannot be read \(.*No such file"):
        neuroshed.export(source, tmp_path / "out.tiff", format="tiff", cluster=HERE)
    (tmp_path / "section").rename(section)
    target = neuroshed.export(source, tmp_path / "out.tiff", format="tiff", cluster=HERE)
    assert_array_equal(tifffile.imread(target), voxels("uint8"))
    monkeypatch.setattr(tiff.Tiff, "run", run)
    with pytest.raises(WorkflowError, match=r"compression is that of one TIFF; .* a target that ends in \.tif"):
        neuroshed.export(source, tmp_path / "out", format="tiff", compression="zlib", cluster=HERE)


def test_labels_that_tiffs_cannot_hold(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), np.uint64)
    data[2, 3, 4] = 2**32
    source = write(tmp_path / "a.zarr", data)
    with pytest.raises(RunFailedError, match=r"more than the 32 bits .* first at voxel \[2, 3, 4\]; export it"):
        neuroshed.export(source, tmp_path / "out", format="tiff", cluster=HERE)
    assert not (tmp_path / "out").exists()
    affinities = write(tmp_path / "b.zarr", np.zeros((3, 4, 5, 6), np.uint8))
    with pytest.raises(InputError, match="holds uint8 with 3 channels; TIFF sections hold one of"):
        neuroshed.export(affinities, tmp_path / "out", format="tiff", cluster=HERE)
