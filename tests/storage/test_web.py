"""Volumes on web servers: read like others, never written, and told in one line when they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import neuroshed
from neuroshed.errors import InputError, WorkflowError
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume, open_volume
from tests.workflow.commands import free_port

from ..promises.chunks import random_affinities, write_affinities


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_are_read_by_the_chunk(server: str, tmp_path: Path, asked: list[str], zarr_format: int) -> None:
    data = np.random.default_rng(1).integers(0, 256, (8, 12, 16), np.uint8)
    path = tmp_path / "www" / "a.zarr"
    zarr.create_array(path, shape=data.shape, chunks=(4, 4, 4), dtype="u1", zarr_format=zarr_format)[:] = data
    volume = open_volume(f"{server}/a.zarr")
    asked.clear()
    box = type(volume.box)((0, 4, 4), (4, 6, 8))
    np.testing.assert_array_equal(volume.read(box), data[box.slices()])
    assert len([path for path in asked if "zarr.json" not in path]) == 1


def test_sharded_volumes_and_what_is_told_of_them(server: str, tmp_path: Path) -> None:
    path = tmp_path / "www" / "a.zarr"
    made = create_volume(path, shape=(64, 64, 128), dtype=np.uint8, shard_shape=(64, 64, 128), voxel_size=(9, 8, 7))
    data = np.random.default_rng(1).integers(0, 256, (64, 64, 128), np.uint8)
    made.write(made.box, data)
    volume = open_volume(f"{server}/a.zarr")
    assert volume.voxel_size == (9.0, 8.0, 7.0)
    np.testing.assert_array_equal(volume.read(volume.box), data)
    found = neuroshed.volume_info(f"{server}/a.zarr")
    assert (found["files"], found["stored_bytes"], found["values"]["most"]) == (None, None, 255)


def test_files_are_checked_without_a_listing(server: str, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "www" / "a.zarr", shape=(64, 64, 64), chunks=(32, 32, 32), dtype="u2")
    array[:32] = np.random.default_rng(0).integers(0, 9, (32, 64, 64))
    found = neuroshed.volume_check(f"{server}/a.zarr")
    assert (found["files"], found["missing"], found["damaged"]) == (8, 4, [])
    file = tmp_path / "www" / "a.zarr" / "c" / "0" / "1" / "1"
    file.write_bytes(file.read_bytes()[:100])
    (row,) = neuroshed.volume_check(f"{server}/a.zarr")["damaged"]
    assert (row["file"], row["kind"]) == (f"{server}/a.zarr/c/0/1/1", "damaged")


def test_a_run_takes_its_input_from_a_web_server(server: str, tmp_path: Path) -> None:
    affinities = random_affinities(np.random.default_rng(1), (8, 16, 16), 256)
    write_affinities(tmp_path / "www" / "a.zarr", affinities)
    results = []
    for name, source in (("web", f"{server}/a.zarr"), ("disk", tmp_path / "www" / "a.zarr")):
        settings = [f"affinities={source}", f"output={tmp_path / name}", "block_shape=[8,8,8]", "cluster=in-process:2"]
        summary = neuroshed.run("stitch", settings)
        volumes = [open_volume(path) for path in summary["segmentations"].values()]
        results.append([volume.read(volume.box) for volume in volumes])
    for web, disk in zip(*results, strict=True):
        np.testing.assert_array_equal(web, disk)


def test_nothing_is_written_or_listed(server: str) -> None:
    place = Location.of(f"{server}/runs/one/")
    assert (str(place), place.name, str(place.parent)) == (f"{server}/runs/one", "one", f"{server}/runs")
    for act in (
        lambda: place.put(b""),
        lambda: place.create(b""),
        place.delete,
        place.delete_tree,
        place.make_folder,
        place.replacing,
        lambda: place.zarr_store(read_only=False),
    ):
        with pytest.raises(WorkflowError, match="is on a web server, which is only read"):
            act()
    for act in (place.names, place.files):
        with pytest.raises(WorkflowError, match="cannot be listed"):
            act()
    assert not place.exists()
    assert place.size() is None
    with pytest.raises(FileNotFoundError):
        place.open_read()


def test_mistakes_are_told_in_one_line(server: str) -> None:
    with pytest.raises(InputError, match="no volume at http"):
        open_volume(f"{server}/nothing.zarr")
    with pytest.raises(WorkflowError, match="refuses to show it"):
        open_volume(f"{server}/secret.zarr")
    with pytest.raises(WorkflowError, match="names nothing on a web server"):
        Location.of("https://host/")
    for url in (
        "https://me:pw@host/a.zarr",
        "https://me:pw@host/",
        "https://host/a.zarr?token=abc",
        "https://host/a.zarr#x",
    ):
        with pytest.raises(WorkflowError, match=r"https://host/(a\.zarr)? has a user, a query or a fragment") as caught:
            Location.of(url)
        assert "pw" not in str(caught.value)
        assert "abc" not in str(caught.value)
    with pytest.raises(WorkflowError, match="the server does not do its work") as told:
        Location.of(f"http://127.0.0.1:{free_port()}/a.zarr").check()
    assert "\n" not in str(told.value)
