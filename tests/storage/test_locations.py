"""Folders and buckets answer alike; what a store refuses is said in one line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import threading
import urllib.request
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


@pytest.mark.parametrize("text", ["s3://bucket/runs//one/", "S3://bucket/runs/one"])
def test_urls_have_one_form(text: str) -> None:
    assert str(Location.of(text)) == "s3://bucket/runs/one"


@pytest.mark.parametrize("root", ["/data/runs", "s3://bucket/runs"])
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
    for top in ("/", "s3://bucket"):
        assert Location.of(top).parent == Location.of(top)
        assert (Location.of(top) / "a").parent == Location.of(top)
        assert (Location.of(top) / "a").is_relative_to(Location.of(top))


def test_only_folders_have_paths() -> None:
    with pytest.raises(WorkflowError, match=r"s3://b/a is in an object store.*use a folder"):
        _ = Location.of("s3://b/a").local


@pytest.mark.parametrize("text", ["gs://bucket/a", "az://bucket/a", "ftp://host/a"])
def test_other_stores_are_not_supported_yet(text: str) -> None:
    with pytest.raises(WorkflowError, match="not supported yet; supported are folders, s3://, and https:// for inputs"):
        Location.of(text)


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "s3://bucket/../a", "s3://bucket/./a"])
def test_urls_without_a_place_are_refused(text: str) -> None:
    with pytest.raises(WorkflowError, match="write s3://BUCKET/NAME"):
        Location.of(text)


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
    with pytest.raises(ValidationError, match="needed is a path or an s3:// URL"):
        Model.model_validate({"path": 5})
    with pytest.raises(ValidationError, match="valid string"):
        Model.model_validate_json('{"path": 5}')


def test_a_file_is_put_read_replaced_and_removed(place: Location) -> None:
    place.make_folder()
    file = place / "plan #1?.json"
    assert not file.exists()
    assert file.size() is None
    with pytest.raises(FileNotFoundError) as caught:
        file.read_bytes()
    assert caught.value.filename == str(file)
    for data in (b"one", b"", b"three"):
        file.put(data)
        assert (file.read_bytes(), file.size(), file.exists()) == (data, len(data), True)
    assert place.exists()
    for _ in range(2):
        file.delete()
        assert not file.exists()
    assert not place.exists()


def test_what_is_below_a_file_is_not_there(place: Location) -> None:
    place.make_folder()
    (place / "file").put(b"1")
    assert not (place / "file" / "x").exists()
    assert (place / "file" / "x").size() is None


def test_creating_never_replaces(place: Location) -> None:
    place.make_folder()
    assert (place / "a").create(b"first")
    assert not (place / "a").create(b"second")
    assert (place / "a").read_bytes() == b"first"
    assert [file for file, _ in place.files()] == [place / "a"]


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


def test_of_many_only_one_creates(place: Location) -> None:
    place.make_folder()
    answers = at_once(8, (place / "a").create)
    assert sum(answers) == 1
    assert (place / "a").read_bytes() == b"%d" % answers.index(True)


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


def test_listing(place: Location) -> None:
    assert place.names() == []
    assert list(place.files()) == []
    files = {"b": 3, "a/c/x.parquet": 4, "a/y": 0, ".a.partial": 1, "a/.hidden/z": 1}
    for name, size in files.items():
        (place / name).parent.make_folder()
        (place / name).put(bytes(size))
    (place.parent / "of runs2").make_folder()
    (place.parent / "of runs2" / "other").put(b"1")
    assert place.names() == ["a", "b"]
    assert (place / "a").names() == ["c", "y"]
    assert {str(file): size for file, size in place.files()} == {
        f"{place}/{name}": size for name, size in files.items() if "/." not in f"/{name}"
    }
    assert sizes([place / "b", place / "none", place / "a/c/x.parquet"]) == [
        (place / "b", 3),
        (place / "none", None),
        (place / "a/c/x.parquet", 4),
    ]
    assert lacking([place / "b", place / "a/y", place / "none"]) == place / "a/y"
    assert lacking([place / "b", place / "a/c/x.parquet"]) is None
    delete_all([place / "none", place / "a/y", place / "a/c/x.parquet"])
    assert [file for file, _ in place.files()] == [place / "b"]
    (place / "a").delete_tree()
    assert not (place / "a").exists()
    assert place.names() == ["b"]
    place.delete_tree()
    place.delete_tree()
    assert not (place / ".a.partial").exists()
    assert (place.parent / "of runs2" / "other").exists()


def test_a_long_listing_is_whole(bucket: Location) -> None:
    number = 1203
    for row in range(number):
        (bucket / f"many/{row:04d}").put(b"")
    assert len((bucket / "many").names()) == len(list((bucket / "many").files())) == number
    (bucket / "many").delete_tree()
    assert list(bucket.files()) == []
    assert not bucket.exists()


def test_files_are_read_from_anywhere(place: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).bytes(3 << 20)
    place.make_folder()
    (place / "a").put(data)
    with (place / "a").open_read() as file:
        assert file.seek(-5, os.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.read(3) == b""
        file.seek(7)
        file.seek(3, os.SEEK_CUR)
        assert (file.read(2 << 20), file.tell()) == (data[10 : 10 + (2 << 20)], 10 + (2 << 20))
        file.seek(len(data) + 10)
        assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        (place / "none").open_read()


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(bucket: Location) -> None:
    (bucket / "a").put(bytes(10))
    with (bucket / "a").open_read() as file:
        (bucket / "a").put(b"other data")
        with pytest.raises(OSError, match="replaced while it was read"):
            file.read(4)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_written_in_pieces_it_is_there_in_the_end(place: Location, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parts of less than this are refused, but the last.
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    place.make_folder()
    pieces = [bytes([row]) * size for row in range(120)]
    with (place / "a").replacing() as file:
        for piece in pieces:
            file.write(piece)
            assert not (place / "a").exists()
    assert (place / "a").read_bytes() == b"".join(pieces)
    assert [name for name, _ in place.files()] == [place / "a"]


@pytest.mark.parametrize("number", [1, 120])
@pytest.mark.parametrize("before", [None, b"before"])
def test_a_write_that_is_broken_off_leaves_nothing(
    place: Location, number: int, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 5 << 20)
    place.make_folder()
    if before:
        (place / "a").put(before)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with (place / "a").replacing() as file:
            for _ in range(number):
                file.write(bytes(100_000))
            raise KeyboardInterrupt
    if before:
        assert (place / "a").read_bytes() == before
    else:
        assert not place.exists()


def test_zarr_reads_and_writes(place: Location) -> None:
    array = zarr.create_array(place.zarr_store(read_only=False), name="0", shape=(5,), dtype="uint8")
    array[...] = np.arange(5)
    assert (place / "0" / "zarr.json").exists()
    with (place / "other").telling():
        again = zarr.open_array(place.zarr_store(read_only=True), path="0", mode="r")
    assert again[...].tolist() == list(range(5))
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def read_in_another_process(file: Location, answers: Any) -> None:
    try:
        answers.put(file.read_bytes())
    except WorkflowError as error:
        answers.put(str(error))


@pytest.mark.parametrize(("method", "expected"), [("spawn", b"data"), ("fork", "forked from one that uses S3 already")])
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


def verbs(place: Location) -> list[Any]:
    return [
        place.check,
        place.exists,
        place.names,
        lambda: list(place.files()),
        place.delete_tree,
        lambda: (place / "a").read_bytes(),
        lambda: (place / "a").put(b"1"),
        lambda: (place / "a").create(b"1"),
    ]


def one_line(function: Any, match: str) -> None:
    with pytest.raises(WorkflowError, match=match) as caught:
        function()
    assert "\n" not in str(caught.value)


def test_a_missing_bucket_is_named(s3_server: str) -> None:
    for verb in verbs(Location.of("s3://no-such-bucket/runs")):
        one_line(verb, "there is no bucket no-such-bucket; create it, or check its name")
    with pytest.raises(WorkflowError, match="no bucket"), Location.of("s3://no-such-bucket/a").replacing() as file:
        file.write(b"1")


def test_an_endpoint_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | {"max_retries": 0})
    monkeypatch.setattr(buckets, "CHECK_RETRIES", 0)
    for verb in verbs(Location.of("s3://unreachable/runs")):
        one_line(verb, "127.0.0.1:9.*check AWS_ENDPOINT_URL, AWS_REGION and the network")


def test_missing_credentials_are_said(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Where a machine of Amazon's asks for its own.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | {"max_retries": 0})
    one_line((Location.of("s3://without-credentials") / "a").exists, "no credentials were found; set AWS_ACCESS_KEY_ID")


def test_refused_credentials_are_said(bucket: Location, s3_server: str) -> None:
    (bucket / "a").put(b"1")

    def checked(after: bytes) -> None:
        kind = {"Content-Type": "text/plain"}
        with urllib.request.urlopen(urllib.request.Request(f"{s3_server}/moto-api/reset-auth", after, kind)):
            pass

    checked(b"0")
    try:
        for verb in ((bucket / "a").read_bytes, bucket.names, (bucket / "a").exists):
            one_line(verb, "the store refuses these credentials; check AWS_ACCESS_KEY_ID")
    finally:
        checked(b"inf")
    assert (bucket / "a").read_bytes() == b"1"


def test_each_bucket_has_one_client(s3_server: str) -> None:
    assert buckets.client("one") is buckets.client("one")
    assert buckets.client("one") is not buckets.client("other")
