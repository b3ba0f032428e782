"""Promise 3: nothing is lost or wrong in silence in a volume, on every kind of store that volumes are written to.

A shard is whole or not there when its writer is killed; a bit that flipped is an error; so is a shard that is missing.
`zarr` is how arrays are read and written that tensorstore does not know, and in processes that were forked.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt
import pytest
from numpy.testing import assert_array_equal

from neuroshed.errors import BlockError
from neuroshed.geometry import Box
from neuroshed.storage import volumes
from neuroshed.storage.files import is_draft, remove_drafts
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import Volume, create_volume, open_volume
from tests.conftest import STORES, new_bucket

SIDE = 64
# The second shard is cut by the edge, so that it is read before it is written again.
SHAPE = (SIDE, SIDE, SIDE + SIDE // 2)
KILLS = 15
DISK, ZARR = "disk", "zarr"


@pytest.fixture(params=[DISK, ZARR, *STORES])
def backend(request: pytest.FixtureRequest, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Location]:
    """How a volume is read and written, and where it lies."""
    if request.param == ZARR:
        use_zarr(monkeypatch.setattr)
    place = Location.of(tmp_path) if request.param in (DISK, ZARR) else new_bucket(request.param, request)  # type: ignore[arg-type]
    return request.param, place / "a.zarr"


def use_zarr(setattr_: Callable[[object, str, object], None]) -> None:
    """Have this process read and write as one that was forked does."""
    setattr_(volumes, "was_forked", lambda: True)


def volume_at(path: Location, side: int = SIDE) -> Volume:
    shape = (side, side, side + side // 2)
    return create_volume(path, shape=shape, dtype="uint64", shard_shape=(side,) * 3, voxel_size=(8, 8, 8))


def state(number: int) -> npt.NDArray[np.uint64]:
    """What a volume holds after it was written that often."""
    return np.random.default_rng(number % 2).integers(0, 1 << 60, SHAPE, np.uint64)


def shards(volume: Volume) -> list[Box]:
    z, y, x = volume.shard_shape
    return [Box((0, 0, 0), (z, y, x)), Box((0, 0, x), volume.shape)]


def write_on_and_on(kind: str, path: str, environment: dict[str, str], written: Connection) -> None:
    """Write a volume until this process is killed, and tell of each shard."""
    # What it is forked from was started before the store.
    os.environ.update(environment)
    if kind == ZARR:
        use_zarr(setattr)
    volume = volume_at(Location.of(path))
    assert (volume._on_disk is not None) == (kind == DISK)
    states = [state(0), state(1)]
    while True:
        for data in states:
            for box in shards(volume):
                volume.write(box, data[box.slices()])
                written.send(True)


def test_a_shard_is_whole_or_not_there_when_its_writer_is_killed(backend: tuple[str, Location]) -> None:
    kind, path = backend
    context = multiprocessing.get_context("forkserver")
    # Imported and not used: what is forked from it has everything to start.
    context.set_forkserver_preload([__name__])
    seed = random.randrange(1 << 30)
    rng, found = random.Random(seed), []
    volume_at(path)
    for _ in range(KILLS):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=write_on_and_on, args=(kind, str(path), {**os.environ}, there))
        writer.start()
        try:
            for _ in range(rng.randrange(4)):
                assert here.poll(60)
                here.recv()
            time.sleep(rng.uniform(0, 0.1))
        finally:
            writer.kill()
            writer.join()
            writer.close()
        volume = open_volume(path)
        for box in shards(volume):
            if next(volume_at(path).files(box)).size() is None:
                continue
            data = volume.read(box)
            same = [number for number in (0, 1) if np.array_equal(data, state(number)[box.slices()])]
            assert same, f"seed {seed}: shard {box} is neither of what was written"
            found += same
    assert set(found) == {0, 1}
    files = {file for file, _ in path.files()}
    assert files <= {*volume_at(path).files(volume.box), path / "zarr.json", path / "0" / "zarr.json"}
    if path.is_local:
        remove_drafts(path.local)
        assert not [each for each in path.local.rglob("*") if is_draft(each.name)]


def test_a_flipped_bit_is_an_error_and_never_another_value(backend: tuple[str, Location]) -> None:
    _, path = backend
    volume = volume_at(path, 16)
    data = np.random.default_rng(1).integers(0, 50, volume.shape).astype(np.uint64)
    for box in shards(volume):
        volume.write(box, data[box.slices()])
    box = shards(volume)[0]
    (file,) = volume.files(box)
    whole = file.read_bytes()
    rng = random.Random(3)
    places = {*rng.sample(range(len(whole)), 40 if path.is_local else 6), 0, len(whole) - 1, len(whole) - 20}
    caught = 0
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        file.put(bytes(damaged))
        try:
            # A header may have bits that mean nothing.
            assert_array_equal(open_volume(path).read(box), data[box.slices()])
        except BlockError:
            caught += 1
    assert caught >= len(places) - 1
    file.put(whole)
    assert_array_equal(open_volume(path).read(box), data[box.slices()])


def test_a_shard_that_is_missing_is_an_error_and_no_zeros(backend: tuple[str, Location]) -> None:
    _, path = backend
    volume = volume_at(path, 16)
    for box in shards(volume):
        volume.write(box, np.zeros(box.shape, np.uint64))
    assert not volume.read(volume.box).any()
    for box in shards(volume):
        (file,) = volume.files(box)
        whole = file.read_bytes()
        file.delete()
        with pytest.raises(BlockError, match=f"{file} is missing or empty"):
            volume_at(path, 16).read(volume.box)
        file.put(whole)
    assert not volume_at(path, 16).read(volume.box).any()
