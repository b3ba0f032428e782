"""Volumes that are made in buckets: the same files as on disk, of which readers see nothing before all are there."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.testing import assert_array_equal
from werkzeug.wrappers import Request, Response

import neuroshed
from neuroshed.errors import InputError, NeuroshedError, RunFailedError, StorageFullError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.storage import buckets
from neuroshed.storage.growing import METADATA, Growing
from neuroshed.storage.levels import open_levels
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume
from tests.conftest import new_bucket
from tests.servers import Faults, Served

from ..promises.chaos import done_blocks
from ..storage.test_bad_stores import QUICK
from .commands import started
from .test_exports import HERE, voxels, write

SHAPE = (9, 70, 140)
BOX = Box((1, 2, 3), (8, 60, 133))
Make = Callable[[Path, Path | Location], object]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels and an image of one shape, and what other formats have of it."""
    folder = tmp_path_factory.mktemp("sources")
    write(folder / "labels.zarr", voxels("uint64", SHAPE), levels=2)
    write(folder / "image.zarr", voxels("uint8", SHAPE))
    np.save(folder / "image.npy", voxels("uint8", SHAPE))
    return folder


def precomputed(sources: Path, target: Path | Location) -> object:
    return neuroshed.export(sources / "labels.zarr", target, format="precomputed", cluster=HERE)


def both(sources: Path, target: Path | Location) -> object:
    return neuroshed.export(sources / "labels.zarr", target, image=sources / "image.zarr", cluster=HERE)


def crop(sources: Path, target: Path | Location) -> object:
    return neuroshed.volume_crop(sources / "labels.zarr", target, BOX, block_shape=(64, 64, 64), cluster=HERE)


def imported(sources: Path, target: Path | Location) -> object:
    return neuroshed.import_volume(sources / "image.npy", target, (40, 8, 4), pyramid=True, cluster=HERE)


MAKERS: dict[str, Make] = {"precomputed": precomputed, "image and labels": both, "crop": crop, "import": imported}


def contents(folder: Location) -> dict[str, bytes]:
    return {str(file).removeprefix(f"{folder}/"): file.read_bytes() for file, _ in folder.files()}


def is_data(path: str) -> bool:
    return path.endswith(".shard") or "/c/" in path


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_files_as_on_disk_the_first_that_readers_open_last(
    name: str, sources: Path, tmp_path: Path, any_bucket: Location, faults: Faults
) -> None:
    make, target = MAKERS[name], any_bucket / "a folder" / "out"
    put: list[str] = []

    def record(request: Request) -> Response | None:
        found = request.path.partition("/a folder/out/")
        if request.method == "PUT" and found[1] and not found[2].startswith("."):
            put.append(found[2])
        return None

    faults.refuse = record
    try:
        assert make(sources, target) == str(target)
    finally:
        faults.refuse = lambda request: None
    make(sources, tmp_path / "out")
    assert contents(target) == contents(Location.of(tmp_path / "out"))
    # Each once, none of a claim or a run folder is left, and metadata follows what it is about.
    assert sorted(put) == sorted(contents(target))
    assert (any_bucket / "a folder").names() == ["out"]
    assert not any((any_bucket / "a folder" / f".out.{work}").exists() for work in ("export", "crop", "import"))
    metadata = [file.rpartition("/")[2] in METADATA for file in put]
    assert metadata == sorted(metadata)
    assert put[-1] in METADATA
    for file in put:
        below = file.removesuffix("zarr.json")
        assert all(put.index(other) <= put.index(file) for other in put if file != below and other.startswith(below))


@pytest.mark.parametrize("name", ["precomputed", "image and labels"])
def test_killed_it_shows_nothing_and_goes_on(name: str, sources: Path, tmp_path: Path, s3_served: Served) -> None:
    folder = new_bucket("s3", _Asking(s3_served))
    target, run = folder / "out", folder / ".out.export"
    words = ["--format", "precomputed"] if name == "precomputed" else ["--image", str(sources / "image.zarr")]
    with started("export", sources / "labels.zarr", target, *words, "--cluster", "in-process:1") as process:
        at = []

        def kill(request: Request) -> Response | None:
            if request.method == "PUT" and is_data(request.path):
                at.append(request.path)
                if len(at) == 3:
                    deadline = time.monotonic() + 60
                    while not done_blocks(run) and time.monotonic() < deadline:
                        time.sleep(0.05)
                    process.send_signal(signal.SIGKILL)
                    return Response(status=500)
            return None

        s3_served.faults.refuse = kill
        try:
            assert process.wait(60) == -signal.SIGKILL
        finally:
            s3_served.faults.refuse = lambda request: None
    assert at[2:] == at[-1:]
    assert [file for file in contents(target) if file.rpartition("/")[2] in METADATA] == []
    with pytest.raises(InputError, match="not a Zarr array or group"):
        open_volume(target)
    # Not by something else, nor with other parameters.
    with pytest.raises(WorkflowError, match=rf"^target {target} holds a part of something else"):
        neuroshed.export(sources / "image.zarr", target, cluster=HERE)
    with pytest.raises(WorkflowError, match=rf"^target {target} holds a part of something else"):
        crop(sources, target)
    begun = len(contents(target))
    again: list[str] = []
    s3_served.faults.refuse = lambda request: (
        again.append(request.path) if request.method == "PUT" and is_data(request.path) else None
    )
    try:
        MAKERS[name](sources, target)
    finally:
        s3_served.faults.refuse = lambda request: None
    MAKERS[name](sources, tmp_path / "out")
    assert contents(target) == contents(Location.of(tmp_path / "out"))
    assert begun >= 2
    assert 0 < len(again) < sum(map(is_data, contents(target)))


class _Asking:
    """What `new_bucket` asks for."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def getfixturevalue(self, name: str) -> Served:
        return self._served


def test_other_programs_read_it_over_http(
    sources: Path, bucket: Location, s3_served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CLOUD_FILES_DIR", "CLOUD_VOLUME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "cloud"))
    from cloudvolume import CloudVolume

    url = f"{s3_served.address}/{str(bucket).removeprefix('s3://')}"
    # Anybody may read.
    resource = str(bucket).replace("s3://", "arn:aws:s3:::")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"{resource}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]}).encode()
    request = urllib.request.Request(f"{url}?policy", policy, {"Content-Type": "text/json"}, method="PUT")
    with urllib.request.urlopen(request):
        pass
    precomputed(sources, bucket / "out")
    both(sources, bucket / "both.zarr")
    levels = list(open_levels(Location.of(sources / "labels.zarr")))
    for number, level in enumerate(levels):
        wanted = level.read(level.box)
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"{url}/out/", "scale_index": number}
        assert_array_equal(tensorstore.open(spec).result().read().result()[..., 0].T, wanted)
        read = CloudVolume(f"precomputed://{url}/out", mip=number, progress=False, fill_missing=False)
        assert_array_equal(np.asarray(read[:, :, :])[..., 0].T, wanted)
    finest = levels[0].read(levels[0].box)
    store = {"driver": "zarr3", "kvstore": f"{url}/both.zarr/labels/segmentation/0/"}
    assert_array_equal(tensorstore.open(store).result().read().result(), finest)


def test_what_is_there_stays(sources: Path, any_bucket: Location) -> None:
    target = any_bucket / "out"
    (target / "mine").put(b"1")
    for make in MAKERS.values():
        with pytest.raises(WorkflowError, match=rf"^target {target} exists already; choose another or remove it$"):
            make(sources, target)
    assert [str(file) for file, _ in any_bucket.files()] == [f"{target}/mine"]
    for other, said in (
        (any_bucket, "is all of a bucket; choose a folder in it"),
        ("http://127.0.0.1/out", "is on a web server, which is only read; choose a folder or bucket"),
    ):
        with pytest.raises(WorkflowError, match=said):
            precomputed(sources, other)
    with pytest.raises(WorkflowError, match=r"is in a bucket; sections are written to a folder"):
        neuroshed.export(sources / "image.zarr", any_bucket / "tiff", format="tiff", cluster=HERE)
    source = create_volume(
        any_bucket / "a.zarr", shape=(4, 4, 4), dtype="u1", shard_shape=(4, 4, 4), voxel_size=[1] * 3
    )
    with pytest.raises(WorkflowError, match=r"is in .*a\.zarr, which is never changed"):
        neuroshed.volume_crop(str(source.path), source.path / "part.zarr", cluster=HERE)


@pytest.mark.parametrize(
    ("any_bucket", "status", "code", "kind"),
    [
        ("s3", 403, "AccessDenied", RunFailedError),
        ("gs", 403, "QuotaExceeded", StorageFullError),
        ("az", 507, "StorageFull", StorageFullError),
    ],
    indirect=["any_bucket"],
)
@pytest.mark.parametrize("name", ["precomputed", "crop"])
def test_a_store_that_takes_nothing_is_told_and_the_same_call_goes_on(
    name: str,
    any_bucket: Location,
    status: int,
    code: str,
    kind: type[NeuroshedError],
    faults: Faults,
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(buckets, "RETRIES", buckets.RETRIES | QUICK)
    monkeypatch.setattr("neuroshed.engine.attempts.LONGEST_BACKOFF_SECONDS", 0.01)
    target, where = any_bucket / "out", ".shard" if name == "precomputed" else "/c/"
    with faults.refusing(999, status, code, "PUT", where), pytest.raises(kind, match=f"{target}.*{code}.*goes on") as e:
        MAKERS[name](sources, target)
    assert "\n" not in str(e.value)
    assert contents(target) == {}
    MAKERS[name](sources, target)
    MAKERS[name](sources, tmp_path / "out")
    assert contents(target) == contents(Location.of(tmp_path / "out"))


def test_what_somebody_removed_is_made_anew(sources: Path, bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder of what was broken off, and its journal, are still there."""
    target = bucket / "out"

    def broken(self: Growing) -> Location:
        raise RuntimeError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(Growing, "put_in_place", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            crop(sources, target)
    assert (bucket / ".out.crop").exists()
    target.delete_tree()
    crop(sources, target)
    volume = open_volume(target)
    assert_array_equal(volume.read(volume.box), voxels("uint64", SHAPE)[BOX.slices()])


def test_levels_of_a_volume_in_a_bucket(sources: Path, any_bucket: Location, tmp_path: Path) -> None:
    crop(sources, any_bucket / "a.zarr")
    crop(sources, tmp_path / "out" / "a.zarr")
    for path in (any_bucket / "a.zarr", Location.of(tmp_path / "out" / "a.zarr")):
        assert len(neuroshed.pyramid(path, levels=2, cluster=HERE)["shapes"]) == 3
    assert contents(any_bucket) == contents(Location.of(tmp_path / "out"))
    zarr.open_group((any_bucket / "a.zarr").zarr_store(read_only=True), mode="r")
