"""Arrays on disk are the same, read in the fast way or by zarr."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Vec
from neuroshed.storage.disk_arrays import DiskArray
from neuroshed.storage.volumes import Volume, create_volume, open_volume

SHAPE = (20, 24, 30)
BOX = Box((3, 4, 5), (19, 24, 17))
KNOWN: list[dict[str, Any]] = [
    *({"dtype": dtype} for dtype in ("bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64")),
    *({"dtype": "uint8", "fill_value": 7, "zarr_format": number} for number in (2, 3)),
    {"dtype": "float32", "fill_value": float("nan")},
    {"dtype": "float32", "fill_value": float("inf"), "zarr_format": 2},
    {"dtype": "uint32", "shards": (16, 16, 16)},
    {"dtype": "uint8", "compressors": [GzipCodec(), Crc32cCodec()]},
    {"dtype": "uint16", "compressors": BloscCodec(cname="lz4", shuffle="bitshuffle"), "shards": (16, 16, 16)},
    {"dtype": "uint16", "compressors": None},
    {"dtype": "uint16", "filters": TransposeCodec(order=(2, 0, 1)), "compressors": ZstdCodec()},
    {"dtype": "uint16", "chunk_key_encoding": {"name": "v2", "separator": "."}},
    *({"dtype": dtype, "zarr_format": 2} for dtype in ("uint8", "<u4", ">u2", ">f4", "bool")),
    {"dtype": "uint16", "zarr_format": 2, "order": "F"},
    {"dtype": "uint16", "zarr_format": 2, "compressors": numcodecs.Blosc("zstd", 3)},
    {"dtype": "uint16", "zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
]
UNKNOWN: list[dict[str, Any]] = [
    {"dtype": "uint16", "zarr_format": 2, "compressors": numcodecs.LZMA()},
    {"dtype": "int32", "zarr_format": 2, "filters": [numcodecs.Delta("<i4")]},
]


@pytest.mark.parametrize("options", [*KNOWN, *UNKNOWN], ids=str)
def test_arrays_of_others(tmp_path: Path, options: dict[str, Any]) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=(8, 8, 8), **options)
    # Where nothing was written there are fill values.
    array[:8, :16] = np.random.default_rng(1).integers(0, 2 if array.dtype == bool else 100, (8, 16, 30))
    known = DiskArray.of(array, tmp_path / "a.zarr", strict=False) is not None
    assert known == (options in KNOWN)
    for box in (BOX, Box.of_shape(SHAPE)):
        read = open_volume(tmp_path / "a.zarr").read(box)
        assert_array_equal(read, array[box.slices()])
        assert (read.dtype, read.flags.c_contiguous) == (array.dtype.newbyteorder("="), True)
        read[...] = 1


def new_volume(path: Path, shape: Vec, side: int) -> Volume:
    return create_volume(path, shape=shape, dtype="uint8", shard_shape=(side,) * 3, voxel_size=(1.0, 1.0, 1.0))


def test_a_chunk_that_is_missing_from_a_shard_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    volume = new_volume(tmp_path / "a.zarr", (128, 128, 128), 128)
    data = np.ones(volume.shape, np.uint8)
    data[64:, :64, :64] = 0
    assert volume.sink is not None
    volume.sink.with_config({"write_empty_chunks": False})[...] = data
    assert volume.read(Box((0, 0, 0), (64, 128, 128))).all()
    with pytest.raises(BlockError, match=r"a\.zarr is damaged in .*a\.zarr/0/c/0/0/0.* is missing"):
        volume.read(volume.box)


def test_a_process_that_was_forked_reads_and_writes(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 99, (16, 16, 32), np.uint8)
    volume = new_volume(tmp_path / "a.zarr", (16, 16, 32), 16)
    left, right = Box((0, 0, 0), (16, 16, 16)), Box((0, 0, 16), (16, 16, 32))
    volume.write(left, data[left.slices()])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            volume.write(right, data[right.slices()])
            code = 0 if np.array_equal(volume.read(volume.box), data) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_array_equal(volume.read(volume.box), data)
