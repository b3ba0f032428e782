"""Reading and writing blocks beside the peers: affinity, image and label blocks, in one run on one machine.

    python benchmarks/io.py [--side N] [--rounds N] [--folder DIR] [--out FILE.json]

Ours is `Volume`, as every stage reads and writes; peers are zarr-python, zarr with the `zarrs` codec pipeline, and
tensorstore. All have arrays of the same layout (our metadata: zstd with checksum, chunks of 64, a block is a shard) and
read the files that ours wrote. What ours writes is synced to disk, as is what tensorstore writes; zarr syncs nothing.

Per kind there are eight blocks. `read` and `write` are whole blocks, `halo` a block's box grown by 16 voxels where it
touches all eight. Each is done once for warmth, then timed in turn, `--rounds` times; the fastest counts. MB are those
of the voxels in memory; ratios are ours / peer in speed: above 1 we are better. Then label codecs: what each makes of a
block of labels, and how fast. `zarrs` takes part if it is installed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import tensorstore
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

import shapes
from neuroshed.geometry import Box, add
from neuroshed.kernels.across import NEAREST
from neuroshed.storage.volumes import Volume, create_volume, open_volume

HALO = 16
VOXEL_SIZE = (8.0, 8.0, 8.0)
OURS, ZARR, ZARRS, TENSORSTORE = "neuroshed", "zarr-python", "zarrs", "tensorstore"
PEERS = [ZARR, *([ZARRS] if find_spec("zarrs") else []), TENSORSTORE]
CODECS: dict[str, list[Any]] = {
    "zstd-1": [ZstdCodec(level=1, checksum=True)],
    "zstd-3": [ZstdCodec(level=3, checksum=True)],
    "zstd-9": [ZstdCodec(level=9, checksum=True)],
    "gzip-5": [GzipCodec(level=5)],
    "blosc lz4, shuffled": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")],
    "blosc zstd-1, bits shuffled": [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")],
}
Array = npt.NDArray[Any]


class Ours:
    """`Volume`, as stages use it."""

    def __init__(self, volume: Volume, _: AbstractContextManager[Any]) -> None:
        self._volume = volume

    def read(self, box: Box) -> Array:
        """Its voxels, after the channels."""
        return self._volume.read(box)

    def write(self, box: Box, data: Array) -> None:
        """Whole blocks."""
        self._volume.write(box, data)


class Zarr:
    """A plain array of zarr-python, with the codec pipeline that is in force while it is opened."""

    def __init__(self, volume: Volume, pipeline: AbstractContextManager[Any]) -> None:
        with pipeline:
            self._array: Any = zarr.open_array(f"{volume.path}/0", mode="r+")

    def read(self, box: Box) -> Array:
        """Its voxels, after the channels."""
        return np.asarray(self._array[(..., *box.slices())])

    def write(self, box: Box, data: Array) -> None:
        """Whole blocks."""
        self._array[(..., *box.slices())] = data


class Tensorstore:
    """An array of tensorstore, as it comes."""

    def __init__(self, volume: Volume, _: AbstractContextManager[Any]) -> None:
        store = {"driver": "file", "path": f"{volume.path}/0/"}
        self._array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()

    def read(self, box: Box) -> Array:
        """Its voxels, after the channels."""
        return np.asarray(self._array[(..., *box.slices())].read().result())

    def write(self, box: Box, data: Array) -> None:
        """Whole blocks."""
        self._array[(..., *box.slices())].write(data).result()


def opened(name: str, volume: Volume) -> Ours | Zarr | Tensorstore:
    """A volume as a contender opens it."""
    if name == ZARRS:
        return Zarr(volume, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}))
    classes: dict[str, type[Any]] = {OURS: Ours, ZARR: Zarr, TENSORSTORE: Tensorstore}
    made: Ours | Zarr | Tensorstore = classes[name](volume, nullcontext())
    return made


def kinds(side: int) -> dict[str, Array]:
    """Eight mirrored blocks of each kind: synthetic neurons as labels (uint64), their affinities (uint8), and the image
    of the demo volume (uint8).
    """
    truth, _ = shapes.labels((side,) * 3, None)
    with (
        resources.as_file(resources.files("neuroshed") / "assets" / "demo" / "fib25.h5") as path,
        h5py.File(path) as file,
    ):
        image = file["raw"][:]
    pads = [(0, max(2 * side - n, 0)) for n in image.shape]
    image = np.pad(image, pads, mode="symmetric")[: 2 * side, : 2 * side, : 2 * side]
    labels = np.pad(truth, (0, side), mode="symmetric")
    return {"affinities": shapes.affinities(labels), "image": image, "labels": labels.astype(np.uint64)}


def new_volume(path: Path, data: Array, side: int) -> Volume:
    """A volume for the data, of shards of the given side."""
    return create_volume(
        path,
        shape=data.shape[-3:],
        dtype=data.dtype,
        shard_shape=(side,) * 3,
        voxel_size=VOXEL_SIZE,
        voxel_offsets=NEAREST if data.ndim == 4 else None,
    )


def blocks(side: int) -> Iterator[Box]:
    """The eight blocks."""
    for corner in product((0, side), repeat=3):
        yield Box(corner, add(corner, (side,) * 3))


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measured(folder: Path, kind: str, data: Array, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """MB/s of all contenders, by what they do. All read what ours wrote, and it is compared with the data."""
    middle = Box((side // 2,) * 3, (side // 2 + side,) * 3).grow(HALO)
    for box in blocks(side):
        new_volume(folder / f"{kind}.zarr", data, side).write(box, data[(..., *box.slices())])
    found: dict[str, dict[str, float]] = {}
    names = (OURS, *PEERS)
    read = {name: opened(name, open_volume(folder / f"{kind}.zarr")) for name in names}
    written = {name: opened(name, new_volume(folder / f"{kind}-{name}.zarr", data, side)) for name in names}

    def read_blocks(name: str) -> None:
        for box in blocks(side):
            assert np.array_equal(read[name].read(box)[..., 0, 0], data[(..., *box.slices())][..., 0, 0])

    def read_halo(name: str) -> None:
        read[name].read(middle)

    def write_blocks(name: str) -> None:
        for box in blocks(side):
            written[name].write(box, data[(..., *box.slices())])

    jobs = {
        "read": (read_blocks, data.nbytes),
        "halo": (read_halo, middle.size * data.itemsize * (len(data) if data.ndim == 4 else 1)),
        "write": (write_blocks, data.nbytes),
    }
    for job, (work, size) in jobs.items():
        for name in names:
            work(name)
        times = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                times[name].append(seconds(lambda work=work, name=name: work(name)))
        found[job] = {name: size / 1e6 / min(each) for name, each in times.items()}
    for name in names:
        assert np.array_equal(open_volume(folder / f"{kind}-{name}.zarr").read(middle), data[(..., *middle.slices())])
    return found


def codecs(folder: Path, labels: Array, rounds: int) -> dict[str, dict[str, float]]:
    """How much smaller each codec makes a block of labels in chunks of 64, and MB/s, by tensorstore."""
    found = {}
    for name, compressors in CODECS.items():
        place = folder / f"codec-{len(found)}"
        zarr.create_array(
            place,
            shape=labels.shape,
            dtype=labels.dtype,
            chunks=(64,) * 3,
            shards=labels.shape,
            compressors=compressors,
        )
        array = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/"}}).result()
        write = min(seconds(lambda array=array: array.write(labels).result()) for _ in range(rounds + 1))
        read = min(seconds(lambda array=array: array.read().result()) for _ in range(rounds + 1))
        stored = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        found[name] = {
            "ratio": labels.nbytes / stored,
            "write": labels.nbytes / 1e6 / write,
            "read": labels.nbytes / 1e6 / read,
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="of a block, in voxels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where volumes are written, and removed again; default: TMPDIR")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="neuroshed-io-", dir=given.folder))
    try:
        data = kinds(given.side)
        speeds = {kind: measured(folder, kind, each, given.side, given.rounds) for kind, each in data.items()}
        smaller = codecs(folder, data["labels"][: given.side, : given.side, : given.side], given.rounds)
    finally:
        shutil.rmtree(folder)
    print(f"{'MB/s':<18}{OURS:>12}" + "".join(f"{peer:>20}" for peer in PEERS))
    for kind, jobs in speeds.items():
        for job, row in jobs.items():
            beside = "".join(f"{row[peer]:>11.0f} ({row[OURS] / row[peer]:>4.2f} x)" for peer in PEERS)
            print(f"{kind + ' ' + job:<18}{row[OURS]:>12.0f}{beside}")
    for name, row in smaller.items():
        print(f"{name:<30}{row['ratio']:>7.1f} x smaller, write {row['write']:.0f}, read {row['read']:.0f} MB/s")
    text = json.dumps({"side": given.side, "speeds": speeds, "codecs": smaller})
    if given.out:
        given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
