"""Folders and buckets answer alike; what a store refuses is said in one line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from pydantic import BaseModel, TypeAdapter, ValidationError

from neuroshed.errors import WorkflowError
from neuroshed.storage import buckets
from neuroshed.storage.locations import Location
from neuroshed.storage.many import delete_all, lacking, sizes


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert str(Location.of("a/../b")) == str(tmp_path / "b")
    assert Location.of("~/x").local == tmp_path / "home" / "x"
    assert Location.of(tmp_path / "link" / "x").local == tmp_path / "there" / "x"
    assert Location.of("b") == Location.of(tmp_path / "b") == Location.of(Location.of("b"))


@pytest.mark.parametrize(
    "text", ["s3://bucket/runs//one/", "S3://bucket/runs/one", "GS://bucket/runs/one/", "az://bucket//runs/one"]
)
def test_urls_have_one_form(text: str) -> None:
    assert str(Location.of(text)) == f"{text[:2].lower()}://bucket/runs/one"


@pytest.mark.parametrize("root", ["/data/runs", "s3://bucket/runs", "gs://bucket/runs", "az://container/runs"])
def test_parts(root: str) -> None:
    runs = Location.of(root)
    file = runs / "one" / "up0/0_0_0.parquet"
    assert str(file) == f"{root}/one/up0/0_0_0.parquet"
    assert (file.name, file.parent.name, file.parent.parent) == ("0_0_0.parquet", "up0", runs / "one")
    assert file.is_relative_to(runs)
    assert runs.is_relative_to(runs)
    assert not (runs.parent / "runs2").is_relative_to(runs)
    assert sorted([runs / "b", runs / "a"]) == [runs / "a", runs / "b"]
    assert {runs / "a", runs / "a"} == {runs / "a"}
    assert (runs / "a") != str(runs / "a")
    assert pickle.loads(pickle.dumps(file)) == file
    assert type(pickle.loads(pickle.dumps(file))) is type(file)
    with pytest.raises(AttributeError, match="cannot be changed"):
        file.name = "other"  # type: ignore[misc]


def test_the_tops_are_their_own_parents() -> None:
    for top in ("/", "s3://bucket", "az://container"):
        assert Location.of(top).parent == Location.of(top)
        assert (Location.of(top) / "a").parent == Location.of(top)
        assert (Location.of(top) / "a").is_relative_to(Location.of(top))


def test_only_folders_have_paths() -> None:
    with pytest.raises(WorkflowError, match=r"s3://b/a is in an object store.*use a folder"):
        _ = Location.of("s3://b/a").local


def test_other_stores_are_unknown() -> None:
    with pytest.raises(WorkflowError, match="ftp:// is unknown; known are folders, s3://, gs://, az://, and https://"):
        Location.of("ftp://host/a")


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "gs://bucket/../a", "S3://bucket/./a"])
def test_urls_without_a_place_are_refused(text: str) -> None:
    with pytest.raises(WorkflowError, match=f"write {text[:2].lower()}://BUCKET/NAME"):
        Location.of(text)
    with pytest.raises(WorkflowError, match="in a container; write az://CONTAINER/NAME"):
        Location.of("az://")


class Model(BaseModel):
    path: Location


def test_pydantic_takes_and_stores_text(tmp_path: Path) -> None:
    for given in (tmp_path, str(tmp_path), Location.of(tmp_path)):
        model = Model.model_validate({"path": given})
        assert model.path == Location.of(tmp_path)
        assert json.loads(model.model_dump_json()) == model.model_dump(mode="json") == {"path": str(tmp_path)}
    text = Model(path=Location.of("s3://b/a")).model_dump_json()
    assert Model.model_validate_json(text).path == Location.of("s3://b/a")
    assert TypeAdapter(Location).json_schema() == {"type": "string"}
    with pytest.raises(ValidationError, match="needed is a path, or an s3://, gs:// or az:// URL"):
        Model.model_validate({"path": 5})
    with pytest.raises(ValidationError, match="valid string"):
        Model.model_validate_json('{"path": 5}')


def test_a_file_is_put_read_replaced_and_removed(any_place: Location) -> None:
    any_place.make_folder()
    file = any_place / "plan #1?.json"
    assert not file.exists()
    assert file.size() is None
    with pytest.raises(FileNotFoundError) as caught:
        file.read_bytes()
    assert caught.value.filename == str(file)
    for data in (b"one", b"", b"three"):
        file.put(data)
        assert (file.read_bytes(), file.size(), file.exists()) == (data, len(data), True)
    assert any_place.exists()
    for _ in range(2):
        file.delete()
        assert not file.exists()
    assert not any_place.exists()


def test_what_is_below_a_file_is_not_there(any_place: Location) -> None:
    any_place.make_folder()
    (any_place / "file").put(b"1")
    assert not (any_place / "file" / "x").exists()
    assert (any_place / "file" / "x").size() is None


def test_creating_never_replaces(any_place: Location) -> None:
    any_place.make_folder()
    assert (any_place / "a").create(b"first")
    assert not (any_place / "a").create(b"second")
    assert (any_place / "a").read_bytes() == b"first"
    assert [file for file, _ in any_place.files()] == [any_place / "a"]


def at_once(number: int, function: Any) -> list[bool]:
    """What a function answers to each of so many threads that start together."""
    barrier, answers = threading.Barrier(number), [False] * number

    def call(row: int) -> None:
        barrier.wait()
        answers[row] = function(b"%d" % row)

    threads = [threading.Thread(target=call, args=(row,)) for row in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_many_only_one_creates(any_place: Location) -> None:
    any_place.make_folder()
    answers = at_once(8, (any_place / "a").create)
    assert sum(answers) == 1
    assert (any_place / "a").read_bytes() == b"%d" % answers.index(True)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_links_creates_too(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*paths: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    file = Location.of(tmp_path) / "a"
    assert file.create(b"first")
    assert not file.create(b"second")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"first"


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="full"):
        (Location.of(tmp_path) / "a").create(b"first")
    assert not list(tmp_path.iterdir())


def test_listing(any_place: Location) -> None:
    assert any_place.names() == []
    assert list(any_place.files()) == []
    files = {"b": 3, "a/c/x.parquet": 4, "a/y": 0, ".a.partial": 1, "a/.hidden/z": 1}
    for name, size in files.items():
        (any_place / name).parent.make_folder()
        (any_place / name).put(bytes(size))
    (any_place.parent / "of runs2").make_folder()
    (any_place.parent / "of runs2" / "other").put(b"1")
    assert any_place.names() == ["a", "b"]
    assert (any_place / "a").names() == ["c", "y"]
    assert {str(file): size for file, size in any_place.files()} == {
        f"{any_place}/{name}": size for name, size in files.items() if "/." not in f"/{name}"
    }
    assert sizes([any_place / "b", any_place / "none", any_place / "a/c/x.parquet"]) == [
        (any_place / "b", 3),
        (any_place / "none", None),
        (any_place / "a/c/x.parquet", 4),
    ]
    assert lacking([any_place / "b", any_place / "a/y", any_place / "none"]) == any_place / "a/y"
    assert lacking([any_place / "b", any_place / "a/c/x.parquet"]) is None
    delete_all([any_place / "none", any_place / "a/y", any_place / "a/c/x.parquet"])
    assert [file for file, _ in any_place.files()] == [any_place / "b"]
    (any_place / "a").delete_tree()
    assert not (any_place / "a").exists()
    assert any_place.names() == ["b"]
    any_place.delete_tree()
    any_place.delete_tree()
    assert not (any_place / ".a.partial").exists()
    assert (any_place.parent / "of runs2" / "other").exists()


def test_a_long_listing_is_whole(any_bucket: Location) -> None:
    # More than a page: Amazon's has 1000 entries, those of the other servers here 100.
    number = 1203 if str(any_bucket).startswith("s3") else 250
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: (any_bucket / f"many/{row:04d}").put(b""), range(number)))
    assert len((any_bucket / "many").names()) == len(list((any_bucket / "many").files())) == number
    (any_bucket / "many").delete_tree()
    assert list(any_bucket.files()) == []
    assert not any_bucket.exists()


def test_a_folder_is_deleted_by_two_at_once(any_bucket: Location) -> None:
    for row in range(60):
        (any_bucket / f"many/{row:04d}").put(b"")
    at_once(4, lambda number: (any_bucket / "many").delete_tree())
    assert not any_bucket.exists()


def test_files_are_read_from_anywhere(any_place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).bytes(3 << 20)
    any_place.make_folder()
    (any_place / "a").put(data)
    with (any_place / "a").open_read() as file:
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read(3) == b""
        file.seek(7)
        file.seek(3, os.SEEK_CUR)
        assert (file.read(2 << 20), file.tell()) == (data[10 : 10 + (2 << 20)], 10 + (2 << 20))
        file.seek(len(data) + 10)
        assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        (any_place / "none").open_read()


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(any_bucket: Location) -> None:
    (any_bucket / "a").put(bytes(10))
    with (any_bucket / "a").open_read() as file:
        (any_bucket / "a").put(b"other data")
        with pytest.raises(OSError, match="replaced while it was read"):
            file.read(4)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_written_in_pieces_it_is_there_in_the_end(
    any_place: Location, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts of less than this are refused, but the last.
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    any_place.make_folder()
    pieces = [bytes([row]) * size for row in range(120)]
    with (any_place / "a").replacing() as file:
        for piece in pieces:
            file.write(piece)
            assert not (any_place / "a").exists()
    assert (any_place / "a").read_bytes() == b"".join(pieces)
    assert [name for name, _ in any_place.files()] == [any_place / "a"]


@pytest.mark.parametrize("number", [1, 120])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_is_broken_off_leaves_nothing(
    any_place: Location, number: int, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    any_place.make_folder()
    if before:
        (any_place / "a").put(before)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with (any_place / "a").replacing() as file:
            for _ in range(number):
                file.write(bytes(100_000))
            raise KeyboardInterrupt
    if before:
        assert (any_place / "a").read_bytes() == before
    else:
        assert not any_place.exists()


def test_zarr_reads_and_writes(any_place: Location) -> None:
    array = zarr.create_array(any_place.zarr_store(read_only=False), name="0", shape=(5,), dtype="uint8")
    array[...] = np.arange(5)
    assert (any_place / "0" / "zarr.json").exists()
    with (any_place / "other").telling():
        again = zarr.open_array(any_place.zarr_store(read_only=True), path="0", mode="r")
    assert again[...].tolist() == list(range(5))
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def read_in_another_process(file: Location, answers: Any) -> None:
    try:
        answers.put(file.read_bytes())
    except WorkflowError as error:
        answers.put(str(error))


@pytest.mark.parametrize(
    ("method", "expected"), [("spawn", b"data"), ("fork", "forked from one that uses object stores")]
)
def test_other_processes_make_clients_of_their_own(bucket: Location, method: str, expected: bytes | str) -> None:
    (bucket / "a").put(b"data")
    context: Any = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=read_in_another_process, args=(bucket / "a", answers))
    process.start()
    try:
        assert expected in answers.get(timeout=60)
    finally:
        process.join(10)
        process.kill()
