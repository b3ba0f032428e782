"""Asked to, writers read what they wrote and say which file is not what it should be."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuroshed.errors import BlockError
from neuroshed.geometry import Box
from neuroshed.storage.locations import Location
from neuroshed.storage.nodes import read_node, write_node
from neuroshed.storage.readback import reading_back
from neuroshed.storage.volumes import Volume, create_volume

SHAPE = (8, 8, 16)
DATA = np.random.default_rng(2).integers(1, 200, SHAPE).astype(np.uint64)
TABLES = {"edges": {"left": np.arange(5), "right": np.arange(5, 10)}, "nodes": {"id": np.arange(3, dtype=np.uint64)}}


def volume(place: Location) -> Volume:
    return create_volume(place / "a.zarr", shape=SHAPE, dtype="uint64", shard_shape=(8, 8, 8), voxel_size=(1, 1, 1))


def harmed(monkeypatch: pytest.MonkeyPatch, harm: Callable[[Location], None]) -> list[Location]:
    """Have the last file that was written harmed before it is read back; returns the files harmed."""
    done: list[Location] = []

    def forget(files: Any) -> None:
        *_, last = files
        # In a context of its own, where nothing is read back.
        contextvars.Context().run(harm, last)
        done.append(last)

    for module in ("volumes", "nodes"):
        monkeypatch.setattr(f"neuroshed.storage.{module}.forget_cached", forget)
    return done


def other_values(file: Location) -> None:
    """A sound file with other contents, as a disk keeps that has lost the last write."""
    if file.name.endswith("parquet"):
        write_node(file.parent / "other", {**TABLES, "nodes": {"id": np.arange(1, 4, dtype=np.uint64)}})
        file.put((file.parent / "other").read_bytes())
    else:
        other = create_volume(
            file.parent.parent.parent.parent / "other.zarr",
            shape=SHAPE,
            dtype="uint64",
            shard_shape=(8, 8, 8),
            voxel_size=(1, 1, 1),
        )
        data = DATA.copy()
        data[2, 3, 12] += 1
        other.write(other.box, data)
        *_, there = other.files(other.box)
        file.put(there.read_bytes())


def flipped(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[40:48] = bytes(8)
    file.put(bytes(data))


HARMS = [
    (other_values, "differ, the first at voxel \\[2, 3, 12\\]", "its checksums are others"),
    (flipped, "is damaged", "is damaged"),
    (lambda file: file.put(file.read_bytes()[:-9]), "is damaged", "is damaged"),
    (lambda file: file.put(b""), "is missing or empty", "is damaged"),
    (lambda file: file.delete(), "is missing or empty", "is missing"),
]


def test_what_is_held_is_quietly_written(place: Location) -> None:
    with reading_back():
        written = volume(place)
        written.write(written.box, DATA)
        write_node(place / "a.parquet", TABLES)
    np.testing.assert_array_equal(written.read(written.box), DATA)
    np.testing.assert_array_equal(read_node(place / "a.parquet", "nodes")[0]["id"], np.arange(3))


@pytest.mark.parametrize(("harm", "of_volumes", "of_tables"), HARMS)
def test_what_is_not_held_is_named(
    harm: Callable[[Location], None], of_volumes: str, of_tables: str, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = volume(place)
    done = harmed(monkeypatch, harm)
    said = r"a file: its disk or store does not hold what was written \(.*"
    with reading_back(), pytest.raises(BlockError, match=said.replace("a file", "0/c/0/0/[01]") + of_volumes) as caught:
        written.write(written.box, DATA)
    assert "\n" not in str(caught.value)
    with reading_back(), pytest.raises(BlockError, match=said.replace("a file", r"a\.parquet") + of_tables) as caught:
        write_node(place / "a.parquet", TABLES)
    assert "\n" not in str(caught.value)
    assert len(done) >= 2
    # Not asked, nothing is read.
    volume(place).write(written.box, DATA)
    write_node(place / "a.parquet", TABLES)


def test_only_who_asks_reads_back(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    done = harmed(monkeypatch, lambda file: None)
    written = volume(place)
    with reading_back():
        thread = threading.Thread(target=written.write, args=(written.box, DATA))
        thread.start()
        thread.join()
        assert not done
        written.write(Box((0, 0, 0), (8, 8, 8)), DATA[:, :, :8])
        assert done == list(written.files(Box((0, 0, 0), (8, 8, 8))))
    written.write(written.box, DATA)
    assert len(done) == 1
