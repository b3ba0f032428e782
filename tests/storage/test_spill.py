from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroshed.errors import BlockError
from neuroshed.kernels.merging import Edges
from neuroshed.storage import spill
from neuroshed.storage.spill import EdgeStore


def some(rng: np.random.Generator, count: int) -> Edges:
    return Edges(*rng.integers(0, 1 << 32, (2, count)), rng.integers(-(1 << 62), 1 << 62, (count, 2)))


def assert_holds(store: EdgeStore, expected: list[Edges]) -> None:
    assert store.count == sum(piece.left.size for piece in expected)
    for column in range(3):
        found = np.concatenate([piece[column] for piece in store])
        np.testing.assert_array_equal(found, np.concatenate([piece[column] for piece in expected]))


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("room", [0, 10, 10**6])
def test_holds_what_was_put_in(room: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "CHUNK", chunk)
    rng = np.random.default_rng(room)
    store, expected = EdgeStore(2, room), []
    for count in (3, 0, 1, 40, 5):
        expected.append(some(rng, count))
        store.append(*expected[-1])
        assert_holds(store, expected)
        assert_holds(store, expected)
    taken = store.taken()
    np.testing.assert_array_equal(taken.stats, np.concatenate([piece.stats for piece in expected]))
    assert taken.left.dtype == np.uint32
    assert store.count == 0
    assert store.taken().stats.shape == (0, 2)


def test_files_are_where_tmpdir_says_and_gone_with_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> int:
        # One descriptor is that of the listing itself, and gone.
        with_names = (file for file in Path("/proc/self/fd").iterdir() if file.exists() or file.is_symlink())
        return sum(str(file.readlink()).startswith(str(tmp_path)) for file in with_names)

    monkeypatch.setattr(spill.tempfile, "tempdir", str(tmp_path))
    store = EdgeStore(2, 0)
    store.append(*some(np.random.default_rng(0), 9))
    assert opened() == 1
    assert not list(tmp_path.iterdir())
    del store
    assert opened() == 0


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_is_an_error(damage: str) -> None:
    store = EdgeStore(2, 0)
    store.append(*some(np.random.default_rng(0), 9))
    file = store._file
    assert file is not None
    if damage == "cut":
        file.truncate(100)
    else:
        file.seek(100)
        (byte,) = file.read(1)
        file.seek(100)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(BlockError, match=r"temporary file of edges is damaged; see that .+ TMPDIR"):
        store.taken()


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115  closed with the store
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", lambda buffering: full)
    with pytest.raises(OSError, match="No space left"):
        EdgeStore(2, 0).append(*some(np.random.default_rng(0), 9))
