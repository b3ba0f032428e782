import json
import random
import shutil
import tracemalloc

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from tests.storage.test_chunked import SHARDING, n5, plain_zarr, precomputed
from tests.storage.test_sources import jpeg_folder

import neuroshed
from neuroshed.cli import main
from neuroshed.engine.config import ClusterConfig
from neuroshed.errors import BlockError, InputError, RunFailedError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.kernels import downsample
from neuroshed.stages.imports import Import, default_block_shape
from neuroshed.storage.parts import Part
from neuroshed.storage.readers import Reader
from neuroshed.storage.sources import open_source
from neuroshed.storage.volumes import open_volume

SHAPE = (11, 70, 90)
SIZE = (40.0, 4.0, 4.0)


def labels(dtype="uint16", shape=SHAPE):
    return np.random.default_rng(4).integers(0, 250, shape).astype(dtype)


def run_all(stage, seed=0):
    stage.prepare()
    (step,) = stage.steps
    blocks = list(step.grid)
    random.Random(seed).shuffle(blocks)
    return sum(stage.run(step.name, index).voxels for index in blocks)


def plan(tmp_path, source, **options):
    return Import.of(tmp_path / "run", source, "a.zarr", SIZE, **options)


def sections(path, data):
    path.mkdir()
    for z, section in enumerate(data):
        (path / f"{z}.png").write_bytes(imagecodecs.png_encode(section))
    return path


def npy(path, data):
    np.save(path, data)
    return path


def tiff(path, data):
    tifffile.imwrite(path, data, compression="deflate", rowsperstrip=16)
    return path


def hdf5(path, data):
    with h5py.File(path, "w") as file:
        file.create_dataset("labels", data=data, chunks=(4, 32, 32), compression="gzip")
    return path


SOURCES = {
    "png": lambda folder, data: sections(folder / "png", data),
    "tiff": lambda folder, data: tiff(folder / "a.tif", data),
    "hdf5": lambda folder, data: hdf5(folder / "a.h5", data),
    "npy": lambda folder, data: npy(folder / "a.npy", data),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("block_shape", [None, (4, 64, 32), (16, 128, 128)])
def test_blocks_in_any_order_give_the_whole_volume(tmp_path, name, block_shape):
    data = labels()
    stage = plan(tmp_path, SOURCES[name](tmp_path, data), block_shape=block_shape, offset=(80.0, 0.0, 4.0))
    assert run_all(stage) == data.size
    volume = open_volume(stage.report()["volume"])
    assert volume.path == stage.target
    assert (volume.voxel_size, volume.offset) == (SIZE, (80.0, 0.0, 4.0))
    assert volume.shard_shape == stage.block_shape
    assert volume.dtype == np.uint16
    assert_array_equal(volume.read(volume.box), data)


def test_intensities_are_rescaled(tmp_path):
    data = np.linspace(-1, 2, 4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    stage = plan(tmp_path, npy(tmp_path / "a.npy", data), intensity=(0.0, 1.0), block_shape=(2, 4, 4))
    run_all(stage)
    volume = open_volume(stage.target)
    assert volume.dtype == np.uint8
    assert_array_equal(volume.read(volume.box), np.rint(np.clip(data.astype(float), 0, 1) * 255))


def test_a_bad_block_fails_alone(tmp_path):
    data = labels("int32")
    data[5, 1, 1] = -1
    stage = plan(tmp_path, npy(tmp_path / "a.npy", data), block_shape=(4, 128, 128))
    stage.prepare()
    for index in ((0, 0, 0), (2, 0, 0)):
        stage.run("", index)
    with pytest.raises(BlockError, match=r"value -1 at voxel \[5, 1, 1\]"):
        stage.run("", (1, 0, 0))
    found = open_volume(stage.target)
    for box in (Box((0, 0, 0), (4, 70, 90)), Box((8, 0, 0), (11, 70, 90))):
        assert_array_equal(found.read(box), data[box.slices()])
    with pytest.raises(BlockError, match="0/c/1/0/0 is missing or empty; bring it back"):
        found.read(found.box)


def test_a_stage_survives_its_file(tmp_path):
    stage = plan(tmp_path, npy(tmp_path / "a.npy", labels()), intensity=(0.0, 99.5))
    again = Import.model_validate(json.loads(stage.model_dump_json()))
    assert again == stage
    assert again.fingerprint == stage.fingerprint
    stage.prepare()
    again.prepare()
    for index in again.steps[0].grid:
        again.run("", index)


def test_the_fingerprint_follows_what_decides_the_bytes(tmp_path):
    source = npy(tmp_path / "a.npy", labels())
    base = plan(tmp_path, source)
    assert plan(tmp_path, source).fingerprint == base.fingerprint
    others = [plan(tmp_path, source, offset=(1.0, 0, 0)), plan(tmp_path, source, intensity=(0.0, 9.0))]
    others.append(plan(tmp_path, source, block_shape=(4, 64, 64)))
    npy(source, labels() + np.uint16(1))
    others.append(plan(tmp_path, source))
    assert len({stage.fingerprint for stage in (base, *others)}) == 5


def test_another_section_is_another_source(tmp_path):
    source = sections(tmp_path / "png", labels("uint8"))
    before = plan(tmp_path, source).fingerprint
    (source / ".hidden").write_text("")
    assert plan(tmp_path, source).fingerprint == before
    (source / "11.png").write_bytes((source / "10.png").read_bytes())
    assert plan(tmp_path, source).fingerprint != before


def test_a_source_that_changed_since_is_refused(tmp_path):
    source = npy(tmp_path / "a.npy", labels())
    stage = plan(tmp_path, source)
    stage.prepare()
    npy(source, labels("uint32"))
    with pytest.raises(BlockError, match="has changed since the import was planned"):
        stage.run("", (0, 0, 0))


def test_another_source_never_meets_the_blocks_of_the_first(tmp_path):
    first = plan(tmp_path, npy(tmp_path / "a.npy", labels()))
    run_all(first)
    second = plan(tmp_path, npy(tmp_path / "b.npy", labels() + np.uint16(3)))
    second.prepare()
    assert second.target != first.target
    volume = open_volume(first.target)
    assert_array_equal(volume.read(volume.box), labels())


CHUNKED = {
    "n5": lambda folder, data: n5(folder / "a.n5", data, {"resolution": [4, 4, 40]}, blockSize=[32, 64, 16]),
    "precomputed": lambda folder, data: precomputed(
        folder / "a", data, resolution=[4, 4, 40], chunk_size=[32, 32, 8], sharding=SHARDING, voxel_offset=[1, 2, 3]
    ),
    "zarr": lambda folder, data: plain_zarr(folder / "a", data, chunks=(4, 64, 32), zarr_format=2),
}


@pytest.mark.parametrize("name", CHUNKED)
@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_chunks_of_others_in_a_box_and_downsampled(tmp_path, name, dtype):
    data = labels(dtype, (20, 130, 150)) // 50
    source = CHUNKED[name](tmp_path, data)
    box, factor = Box((2, 3, 10), (20, 130, 141)), (1, 2, 3)
    cluster = ClusterConfig.model_validate("in-process:2")
    expected = (downsample.mean if dtype == "uint8" else downsample.mode)(data[box.slices()], factor)
    for number, block in enumerate([None, (4, 64, 64), (64, 32, 16)]):
        target = tmp_path / f"{number}.zarr"
        neuroshed.import_volume(
            source,
            target,
            box=box,
            downsample=factor,
            block_shape=block,
            cluster=cluster,
        )
        volume = open_volume(target)
        assert_array_equal(volume.read(volume.box), expected, strict=True)
        size = (40.0, 8.0, 4.0) if name == "zarr" else (40.0, 4.0, 4.0)
        start = (120.0, 8.0, 4.0) if name == "precomputed" else (0.0, 0.0, 0.0)
        assert volume.voxel_size == tuple(side * count for side, count in zip(size, factor, strict=True))
        middle = [first + (count - 1) / 2 for first, count in zip(box.start, factor, strict=True)]
        assert volume.offset == tuple(a + s * m for a, s, m in zip(start, size, middle, strict=True))
    with pytest.raises(WorkflowError, match=r"is in .*, which is never changed"):
        neuroshed.import_volume(source, source / "b.zarr")


def test_the_command(tmp_path):
    data = labels("uint8", (20, 130, 150)) // 50
    source, target = CHUNKED["n5"](tmp_path, data), tmp_path / "b.zarr"
    words = "--box 2 3 10 20 130 141 --downsample 2 2 2 --labels --offset 1 2 3 --block 8 64 64 --cluster in-process:1"
    told = CliRunner().invoke(main, ["import", str(source), str(target), *words.split()])
    assert told.exit_code == 0, told.output
    assert f"voxel size 80 x 8 x 8 nm, by what {source} says\nwrote {target}\n" in told.stdout
    assert "import, most frequent label of 2 x 2 x 2" in " ".join(told.stderr.split())
    volume = open_volume(target)
    assert volume.offset == (1 + 40 * 2.5, 2 + 4 * 3.5, 3 + 4 * 10.5)
    assert_array_equal(volume.read(volume.box), downsample.mode(data[2:20, 3:130, 10:141], (2, 2, 2)), strict=True)


def test_what_is_taken_of_a_source_is_told_from_what_was(tmp_path):
    source = npy(tmp_path / "a.npy", labels())
    options = [{}, {"box": Box((0, 0, 0), (4, 4, 4))}, {"downsample": (1, 2, 2)}]
    options += [{"downsample": (1, 2, 2), "labels": True}, {"box": Box((0, 0, 0), (4, 4, 3))}]
    assert len({plan(tmp_path, source, **more).fingerprint for more in options}) == len(options)


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_whose_metadata_changed_since_are_refused(tmp_path, name):
    data = labels("uint8", (20, 70, 90))
    source = CHUNKED[name](tmp_path, data)
    cluster = ClusterConfig.model_validate("in-process:1")
    stage = Import.of(tmp_path / "run", source, "a.zarr", None, block_shape=(16, 64, 64))
    assert stage.identity["metadata"]
    assert len(json.dumps(stage.identity)) < 2000
    stage.prepare()
    stage.run("", (0, 0, 0))
    again = Import.model_validate_json(stage.model_dump_json())
    again.run("", (1, 0, 0))
    # Written anew, with the same shape: what describes it was written again.
    CHUNKED[name](tmp_path / "new", data + np.uint8(1))
    shutil.rmtree(source)
    (tmp_path / "new" / source.name).rename(source)
    fresh = Import.model_validate_json(stage.model_dump_json())
    with pytest.raises(BlockError, match="has changed since the import was planned"):
        fresh.run("", (0, 1, 0))
    assert Import.of(tmp_path / "run", source, "a.zarr", None, block_shape=(16, 64, 64)).folder != stage.folder
    shutil.rmtree(source)
    with pytest.raises(InputError, match="does not exist"):
        neuroshed.import_volume(source, tmp_path / "b.zarr", cluster=cluster)


def test_an_import_of_chunks_goes_on_where_it_was_broken_off(tmp_path, monkeypatch):
    data = labels("uint8", (20, 130, 150))
    source, target = CHUNKED["n5"](tmp_path, data), tmp_path / "a.zarr"
    options = {"block_shape": (8, 64, 64), "cluster": ClusterConfig.model_validate("in-process:1")}
    whole = source / "1" / "1" / "0"
    content = whole.read_bytes()
    whole.write_bytes(content[:50])
    with pytest.raises(RunFailedError, match="cannot be decoded"):
        neuroshed.import_volume(source, target, **options)
    assert not target.exists()
    whole.write_bytes(content)
    progress = []
    neuroshed.import_volume(source, target, watch=progress.append, **options)
    assert progress[0].restored > 0
    volume = open_volume(target)
    assert_array_equal(volume.read(volume.box), data)


def test_an_import_is_seen_when_it_is_whole(tmp_path, monkeypatch):
    """What was broken off must never be taken for an image with black parts."""
    source, target = npy(tmp_path / "a.npy", labels()), tmp_path / "a.zarr"
    options = {"block_shape": (8, 64, 64), "cluster": ClusterConfig(kind="in-process", workers=1)}
    run = Import.run

    def fail_once(self, step, index):
        if index == (0, 1, 0):
            raise BlockError("no such luck")
        return run(self, step, index)

    with monkeypatch.context() as patch:
        patch.setattr(Import, "run", fail_once)
        with pytest.raises(RunFailedError, match="no such luck"):
            neuroshed.import_volume(source, target, SIZE, **options)
    assert not target.exists()
    progress = []
    neuroshed.import_volume(source, target, SIZE, watch=progress.append, **options)
    assert progress[0].restored > 0
    volume = open_volume(target)
    assert_array_equal(volume.read(volume.box), labels())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.zarr"]
    with pytest.raises(WorkflowError, match=r"a\.zarr exists already; choose another or remove it"):
        neuroshed.import_volume(source, target, SIZE, **options)


def test_what_cannot_be_imported_is_refused_when_planned(tmp_path):
    with pytest.raises(InputError, match="float64 voxels"):
        plan(tmp_path, npy(tmp_path / "a.npy", np.zeros((2, 2, 2))))
    with pytest.raises(InputError, match="no dataset 'raw'; there are: labels"):
        plan(tmp_path, hdf5(tmp_path / "a.h5", labels()), dataset="raw")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [*SOURCES, "jpeg"])
@pytest.mark.parametrize("intensity", [None, (0.0, 200.0)])
def test_memory_stays_within_the_prediction(tmp_path, name, intensity):
    if name == "jpeg":
        source = jpeg_folder(tmp_path / "jpegs", labels("uint8", (32, 256, 256)))
    else:
        source = SOURCES[name](tmp_path, labels("uint16", (32, 256, 256)))
    stage = plan(tmp_path, source, intensity=intensity, block_shape=(32, 128, 256))
    stage.prepare()
    stage.run("", (0, 0, 0))
    fresh = Import.model_validate_json(stage.model_dump_json())
    predicted = fresh.memory_bytes("")
    tracemalloc.start()
    try:
        fresh.run("", (0, 1, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= predicted


class Shaped:
    """A source without voxels, which says nothing of labels."""

    reader = Reader

    def __init__(self, shape, unit, dtype):
        self.shape, self.unit, self.dtype, self.stored_dtype = shape, unit, np.dtype(dtype), np.dtype(dtype)

    def part(self):
        return Part.of(self, None, None, None)


@pytest.mark.parametrize(
    ("shape", "unit", "dtype", "expected"),
    [
        ((1000, 1000, 1000), (1, 1, 1), "uint8", (256, 256, 256)),
        ((1000, 1000, 1000), (1, 1, 1), "uint64", (256, 256, 256)),
        ((1000, 1000, 1000), (1, 1000, 1000), "uint8", (128, 1024, 1024)),
        ((125, 1250, 1250), (1, 1250, 1250), "uint64", (16, 1280, 1280)),
        ((30, 100, 100), (1, 100, 100), "uint8", (32, 128, 128)),
        ((5000, 9000, 20000), (1, 9000, 20000), "uint8", (16, 3008, 4032)),
        ((5000, 9000, 20000), (1, 256, 256), "uint8", (256, 256, 256)),
        ((5000, 9000, 20000), (1, 64, 20000), "uint8", (64, 256, 4032)),
    ],
)
def test_default_blocks_suit_the_source(shape, unit, dtype, expected):
    block = default_block_shape(Shaped(shape, unit, dtype).part())
    assert block == expected
    assert np.prod(block, dtype=np.int64) * np.dtype(dtype).itemsize <= 256 * 2**20


def test_default_blocks_decode_a_section_once(tmp_path):
    source = open_source(sections(tmp_path / "png", labels("uint8")))
    assert default_block_shape(Part.of(source, None, None, None)) == (16, 128, 128)
