import io
import threading
from dataclasses import replace

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box
from neuroshed.storage import sections
from neuroshed.storage.sources import open_source

SHAPE = (5, 50, 70)


def volume(dtype="uint8", shape=SHAPE):
    rng = np.random.default_rng(3)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) > 0.5
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype.newbyteorder("="), endpoint=True).astype(dtype)


def stack(path, data, **options):
    tifffile.imwrite(path, data, photometric="minisblack", **options)
    return path


def tiff_folder(path, data, **options):
    path.mkdir()
    for z, section in enumerate(data):
        # Unpadded numbers: section 10 must come after section 9.
        stack(path / f"section{z}.tif", section, **options)
    return path


def png_folder(path, data):
    path.mkdir()
    for z, section in enumerate(data):
        (path / f"s_{z}.png").write_bytes(imagecodecs.png_encode(section))
    return path


def jpeg_folder(path, data, **options):
    path.mkdir()
    for z, section in enumerate(data):
        Image.fromarray(section).save(path / f"s_{z}.{'jpg' if z else 'JPEG'}", "JPEG", **options)
    return path


def hdf5(path, data, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("volumes/raw", data=data, **options)
    return path


def npy(path, data):
    np.save(path, data)
    return path


FORMATS = {
    "tiff": lambda folder, data: stack(folder / "a.tif", data),
    "tiff-bare": lambda folder, data: stack(folder / "a.tiff", data, metadata=None),
    "tiff-big": lambda folder, data: stack(folder / "a.tif", data, bigtiff=True, byteorder=">"),
    "tiff-deflate": lambda folder, data: stack(folder / "a.tif", data, compression="deflate", predictor=True),
    "tiff-strips": lambda folder, data: stack(folder / "a.tif", data, compression="lzw", rowsperstrip=7),
    "tiff-tiles": lambda folder, data: stack(folder / "a.TIF", data, tile=(16, 32), compression="zstd"),
    "tiff-tiles-plain": lambda folder, data: stack(folder / "a.tif", data, tile=(32, 16), byteorder=">"),
    "tiff-folder": lambda folder, data: tiff_folder(folder / "tiffs", data),
    "tiff-folder-tiles": lambda folder, data: tiff_folder(folder / "tiffs", data, tile=(16, 16), compression="lzw"),
    "png": lambda folder, data: png_folder(folder / "pngs", data),
    "hdf5": lambda folder, data: hdf5(folder / "a.h5", data, chunks=(2, 16, 64), compression="gzip"),
    "hdf5-flat": lambda folder, data: hdf5(folder / "a.hdf", data),
    "npy": lambda folder, data: npy(folder / "a.npy", data),
    "npy-fortran": lambda folder, data: npy(folder / "a.npy", np.asfortranarray(data)),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", FORMATS)
def test_reads_the_voxels_of_any_box(tmp_path, name, dtype):
    data = volume(dtype, (12, 50, 70))
    source = open_source(FORMATS[name](tmp_path, data))
    assert source.shape == data.shape
    assert source.dtype == source.stored_dtype == data.dtype
    assert "12 x 50 x 70" in source.description
    for box in (
        Box.of_shape(data.shape),
        Box((9, 0, 0), (12, 50, 70)),
        Box((3, 15, 31), (5, 17, 65)),
        Box((4, 49, 69), (5, 50, 70)),
        Box((2, 7, 16), (3, 14, 32)),
    ):
        block = source.read(box)
        assert block.dtype == data.dtype
        assert block.dtype.isnative
        assert_array_equal(block, data[box.slices()])
    with pytest.raises(ValueError, match="not inside"):
        source.read(Box((0, 0, 0), (13, 1, 1)))


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    data = volume("uint16", (4, 31, 45))
    path = tmp_path_factory.mktemp("strips") / "a.tif"
    return open_source(stack(path, data, compression="lzw", rowsperstrip=6)), data


@settings(deadline=None, max_examples=60)
@given(spans=st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in (4, 31, 45))))
def test_strips_equal_the_plain_decoder(striped, spans):
    source, data = striped
    box = Box(tuple(min(a, b - 1) for a, b in spans), tuple(max(a + 1, b) for a, b in spans))
    box = box.intersect(Box.of_shape(data.shape))
    assert_array_equal(source.read(box), data[box.slices()])


def test_reads_imagej_hyperstacks_of_one_channel(tmp_path):
    data = volume("uint16")
    tifffile.imwrite(tmp_path / "a.tif", data[None, :, None], imagej=True, metadata={"axes": "TZCYX"})
    assert_array_equal(open_source(tmp_path / "a.tif").read(Box.of_shape(SHAPE)), data)


def test_reads_stacks_saved_as_time_points(tmp_path):
    data = volume("uint8")
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TYX"}, compression="deflate")
    assert_array_equal(open_source(tmp_path / "a.tif").read(Box.of_shape(SHAPE)), data)


def test_one_page_is_one_section(tmp_path):
    data = volume("uint8", (1, 20, 30))
    assert open_source(stack(tmp_path / "a.tif", data[0])).shape == (1, 20, 30)


def test_one_bit_sections_are_masks(tmp_path):
    data = volume("bool")
    folder = tmp_path / "pngs"
    folder.mkdir()
    for z, section in enumerate(data):
        buffer = io.BytesIO()
        Image.fromarray(section).save(buffer, "png")
        (folder / f"{z}.png").write_bytes(buffer.getvalue())
    for path in (folder, stack(tmp_path / "a.tif", data), npy(tmp_path / "a.npy", data)):
        source = open_source(path)
        block = source.read(Box.of_shape(SHAPE))
        assert source.dtype == block.dtype == np.uint8
        assert_array_equal(block, data.astype(np.uint8))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint32", "uint64", ">i4", ">u8"])
def test_labels_become_unsigned(tmp_path, dtype):
    data = volume(dtype)
    source = open_source(npy(tmp_path / "a.npy", data))
    block = source.read(Box.of_shape(SHAPE))
    assert source.dtype == block.dtype == np.dtype(f"uint{8 * data.dtype.itemsize}")
    assert_array_equal(block, data)


def test_negative_labels_are_refused(tmp_path):
    data = volume("int32")
    data[3, 4, 5] = -7
    source = open_source(npy(tmp_path / "a.npy", data))
    source.read(Box((0, 0, 0), (3, 50, 70)))
    with pytest.raises(BlockError, match=r"the value -7 at voxel \[3, 4, 5\] \(z y x\)"):
        source.read(Box((2, 3, 0), (5, 50, 70)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16", "int16"])
def test_an_intensity_range_gives_uint8(tmp_path, dtype):
    data = np.linspace(-100, 400, 60).reshape(3, 4, 5)
    if dtype == "uint16":
        data = np.abs(data)
    data = data.astype(dtype)
    source = open_source(npy(tmp_path / "a.npy", data), intensity=(0.0, 300.0))
    assert source.dtype == np.uint8
    expected = [round(min(max(v, 0.0), 300.0) / 300.0 * 255.0) for v in data.ravel().astype(float).tolist()]
    assert source.read(Box.of_shape((3, 4, 5))).ravel().tolist() == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers_are_refused(tmp_path, wrong):
    data = volume("float32")
    data[2, 1, 9] = data[4, 0, 0] = wrong
    source = open_source(npy(tmp_path / "a.npy", data), intensity=(0, 1))
    with pytest.raises(BlockError, match=r"at voxel \[2, 1, 9\] .*finite"):
        source.read(Box((1, 1, 1), (5, 50, 70)))


def broken(tmp_path, name):
    """A path that cannot be imported, and keyword arguments for `open_source`."""
    data = volume()
    path = tmp_path / "a"
    if name in ("rgb-png", "palette-png"):
        path = png_folder(path, data)
        colour = Image.fromarray(np.zeros((50, 70, 3), np.uint8))
        (colour if name == "rgb-png" else colour.convert("P")).save(path / "s_3.png")
    elif name == "size":
        stack(tiff_folder(path, data) / "section3.tif", data[0, 1:])
    elif name == "dtype":
        (png_folder(path, data) / "s_2.png").write_bytes(imagecodecs.png_encode(data[0].astype(np.uint16)))
    elif name == "empty-folder":
        path.mkdir()
        (path / "notes.txt").write_text("no sections")
    elif name == "mixed-folder":
        stack(png_folder(path, data) / "s_9.tif", data[0])
    elif name == "pages-in-folder":
        stack(tiff_folder(path, data) / "section1.tif", data)
    elif name == "not-a-png":
        (png_folder(path, data) / "s_1.png").write_bytes(b"GIF89a" + bytes(40))
    elif name in ("rgb-jpeg", "cmyk-jpeg"):
        mode = name.partition("-")[0].upper()
        Image.new(mode, (70, 50)).save(jpeg_folder(path, data) / "s_3.jpg")
    elif name == "lossless-jpeg":
        (jpeg_folder(path, data) / "s_2.jpg").write_bytes(
            imagecodecs.ljpeg_encode(data[0].astype(np.uint16), bitspersample=12)
        )
    elif name == "not-a-jpeg":
        (jpeg_folder(path, data) / "s_1.jpg").write_bytes(b"\xff\xd8\xff")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "the path does not exist"),
        ("rgb-png", r"s_3\.png is a RGB image; export grey"),
        ("palette-png", r"s_3\.png is a palette image"),
        ("size", r"section3\.tif is \[49, 70\] uint8, where section0\.tif is \[50, 70\] uint8"),
        ("dtype", r"s_2\.png is \[50, 70\] uint16, where s_0\.png is \[50, 70\] uint8"),
        ("empty-folder", "holds no sections"),
        ("mixed-folder", "mixes 1 TIFF and 5 PNG"),
        ("pages-in-folder", r"section1\.tif has 5 pages; a folder takes one section a file"),
        ("not-a-png", r"s_1\.png is not a PNG"),
        ("rgb-jpeg", r"s_3\.jpg is a colour image; export grey"),
        ("cmyk-jpeg", r"s_3\.jpg is a CMYK image; export grey"),
        ("lossless-jpeg", r"s_2\.jpg is a JPEG of 12 bits \(frame C3\), which is not read"),
        ("not-a-jpeg", r"s_1\.jpg is not a JPEG"),
    ],
)
def test_refuses_folders_with_the_remedy(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as caught:
        open_source(broken(tmp_path, name))
    assert "\n" not in str(caught.value)


def test_refuses_tiffs_that_are_no_grey_stack(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 20, 30, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="3 samples a pixel"):
        open_source(tmp_path / "rgb.tif")
    tifffile.imwrite(tmp_path / "zc.tif", np.zeros((4, 2, 20, 30), np.uint8), imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(InputError, match=r"axes ZCYX of \[4, 2, 20, 30\], not 3-D"):
        open_source(tmp_path / "zc.tif")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as writer:
        for shape in ((20, 30), (20, 30), (20, 31)):
            writer.write(np.zeros(shape, np.uint8), metadata=None)
    with pytest.raises(InputError, match=r"page 2 of .* is \[20, 31\] uint8, where page 0 is \[20, 30\]"):
        open_source(tmp_path / "mixed.tif")
    (tmp_path / "text.tif").write_text("not a TIFF")
    with pytest.raises(InputError, match="not a readable TIFF"):
        open_source(tmp_path / "text.tif")


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("metadata", [None, {}])
def test_a_truncated_stack_is_never_a_shorter_one(tmp_path, compression, metadata):
    data = volume()
    path = stack(tmp_path / "a.tif", data, compression=compression, metadata=metadata)
    whole = path.read_bytes()
    for part in (0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises((InputError, BlockError)):
            open_source(path).read(Box.of_shape(SHAPE))


def test_a_broken_page_is_named_and_the_others_stay_readable(tmp_path):
    data = volume()
    path = stack(tmp_path / "a.tif", data, compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[2].dataoffsets[0]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 50] = bytes(50)
    path.write_bytes(raw)
    source = open_source(path)
    assert_array_equal(source.read(Box((0, 0, 0), (2, 50, 70))), data[:2])
    with pytest.raises(BlockError, match=r"page 2 of .*a\.tif cannot be decoded"):
        source.read(Box.of_shape(SHAPE))


def test_a_broken_section_is_named(tmp_path):
    path = png_folder(tmp_path / "pngs", volume())
    section = path / "s_4.png"
    section.write_bytes(section.read_bytes()[:200])
    source = open_source(path)
    with pytest.raises(BlockError, match=r"s_4\.png cannot be decoded") as caught:
        source.read(Box.of_shape(SHAPE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_sections_are_what_others_decode(tmp_path, progressive):
    steps = np.add.outer(np.arange(12) * 9, np.add.outer(np.arange(50), np.arange(70)))
    path = jpeg_folder(tmp_path / "jpegs", steps.astype(np.uint8), progressive=progressive)
    expected = np.stack([np.asarray(Image.open(path / f"s_{z}.{'jpg' if z else 'JPEG'}")) for z in range(12)])
    source = open_source(path)
    assert "folder of 12 JPEG sections" in source.description
    box = Box((2, 7, 16), (12, 40, 60))
    assert_array_equal(source.read(box), expected[box.slices()])
    whole = (path / "s_4.jpg").read_bytes()
    for part in (len(whole) // 2, len(whole) - 2):
        (path / "s_4.jpg").write_bytes(whole[:part])
        with pytest.raises(BlockError, match=r"s_4\.jpg cannot be decoded \(the file ends too early\)"):
            open_source(path).read(box)


def test_without_the_check_sections_are_checked_when_read(tmp_path):
    source = open_source(broken(tmp_path, "size"), check=False)
    source.read(Box((0, 0, 0), (3, 50, 70)))
    with pytest.raises(BlockError, match=r"section3\.tif is \[49, 70\]"):
        source.read(Box.of_shape(SHAPE))


def test_hdf5_datasets_are_chosen(tmp_path):
    data = volume()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = data
        file["table"] = np.zeros((3, 2))
    path = tmp_path / "a.h5"
    assert_array_equal(open_source(path).read(Box.of_shape(SHAPE)), data)
    with h5py.File(path, "a") as file:
        file["volumes/labels"] = data.astype(np.uint64)
    assert open_source(path, "volumes/labels").dtype == np.uint64
    assert open_source(path, "/raw").dtype == np.uint8
    listing = r"there are: raw \[5, 50, 70\] uint8, table \[3, 2\] float64, volumes/labels \[5, 50, 70\] uint64"
    with pytest.raises(InputError, match=rf"2 3-D datasets; choose with `--dataset` \({listing}"):
        open_source(path)
    for missing in ("labels", "volumes"):
        with pytest.raises(InputError, match=rf"no dataset '{missing}'; {listing}"):
            open_source(path, missing)
    with pytest.raises(InputError, match=rf"no 3-D \(z, y, x\) dataset 'table'; {listing}"):
        open_source(path, "table")


def test_hdf5_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        open_source(path)
    hdf5(path, volume(), chunks=(5, 50, 70), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["volumes/raw"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset : chunk.byte_offset + 100] = bytes(100)
    path.write_bytes(raw)
    with pytest.raises(BlockError, match=r"of /volumes/raw in .*a\.h5 cannot be decoded"):
        open_source(path).read(Box.of_shape(SHAPE))


def test_hdf5_filters_that_are_not_installed(tmp_path, monkeypatch):
    path = hdf5(tmp_path / "a.h5", volume(), chunks=(1, 50, 70), compression="gzip")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(InputError, match=r"filter 1 \(.*\), which is not installed; rewrite it with `h5repack"):
        open_source(path)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 5)), {}, r"shape \[4, 5\]; needed is a 3-D array"),
        (np.zeros((0, 5, 5), np.uint8), {}, "with voxels in it"),
        (np.zeros((2, 2, 2), np.complex64), {}, "type complex64; supported are"),
        (np.zeros((2, 2, 2), np.float16), {}, "type float16; supported are"),
        (np.zeros((2, 2, 2), np.float32), {}, "float32 voxels; say .* with `--range LOW HIGH`"),
        (np.zeros((2, 2, 2), np.float32), {"intensity": (3.0, 3.0)}, "range 3.0 to 3.0 is empty"),
        (np.zeros((2, 2, 2), np.uint8), {"dataset": "raw"}, "leave `--dataset` out"),
    ],
)
def test_refuses_arrays_with_the_remedy(tmp_path, array, options, message):
    with pytest.raises(InputError, match=message):
        open_source(npy(tmp_path / "a.npy", array), **options)


def test_refuses_other_files(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(100))
    with pytest.raises(InputError, match="of no known format; known are"):
        open_source(tmp_path / "a.raw")
    np.save(tmp_path / "a.npy", volume())
    whole = (tmp_path / "a.npy").read_bytes()
    for part in (whole[:3], whole[:1000], b""):
        (tmp_path / "a.npy").write_bytes(part)
        with pytest.raises(InputError, match=r"not a readable \.npy"):
            open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("name", FORMATS)
def test_sources_are_never_changed(tmp_path, name):
    path = FORMATS[name](tmp_path, volume())
    files = [path] if path.is_file() else sorted(path.iterdir())
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    for file in files:
        file.chmod(0o444)
    block = open_source(path).read(Box.of_shape(SHAPE))
    block[...] = 0
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before


def test_neighbouring_blocks_decode_a_section_once(tmp_path, monkeypatch):
    decoded = []
    decode = sections.PNG.decode
    counted = replace(sections.PNG, decode=lambda file: decoded.append(file.name) or decode(file))
    monkeypatch.setattr(sections, "PNG", counted)
    source = open_source(png_folder(tmp_path / "pngs", volume()))
    for x in range(0, 70, 35):
        for y in range(0, 50, 25):
            source.read(Box((0, y, x), (5, y + 25, x + 35)))
    assert decoded == [f"s_{z}.png" for z in range(5)]


def test_the_cache_is_bounded_and_keeps_the_last_used():
    cache = sections.PieceCache(limit=250)
    loads = []

    def get(key, size=100):
        return cache.get(key, lambda: loads.append(key) or np.full(size, key, np.uint8))

    for key in (1, 2, 1, 3, 1, 2):
        assert get(key)[0] == key
    assert loads == [1, 2, 3, 2]
    assert get(9, 1000).size == 1000
    get(2)
    assert loads == [1, 2, 3, 2, 9]


def test_threads_read_one_source(tmp_path):
    data = volume("uint16", (6, 64, 64))
    source = open_source(stack(tmp_path / "a.tif", data, tile=(16, 16), compression="zstd"))
    wrong = []

    def read(z):
        for _ in range(10):
            if not np.array_equal(source.read(Box((z, 0, 0), (z + 1, 64, 64))), data[z : z + 1]):
                wrong.append(z)

    threads = [threading.Thread(target=read, args=(z,)) for z in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
