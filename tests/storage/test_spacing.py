"""Voxel sizes are taken from files that tell them, and from no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

import neuroshed
from neuroshed.cli import main
from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.storage.sources import open_source
from neuroshed.storage.spacing import of_n5

DATA = np.random.default_rng(1).integers(0, 256, (4, 6, 8), np.uint8)


def mrc(path: Path, size: float | tuple[float, float, float], data: np.ndarray = DATA) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.voxel_size = size
    return path


def test_tiffs_of_imagej_and_ome(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    metadata = {"axes": "ZYX", "spacing": 0.04, "unit": "um"}
    tifffile.imwrite(path, DATA, imagej=True, resolution=(250, 125), metadata=metadata)
    assert open_source(path).voxel_size == (40.0, 8.0, 4.0)
    tifffile.imwrite(
        path, DATA, ome=True,
        metadata={
            "axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.008,
            "PhysicalSizeZ": 400, "PhysicalSizeZUnit": "Å",
        },
    )  # fmt: skip
    assert open_source(path).voxel_size == (40.0, 8.0, 4.0)


NM = {"pixelResolution": {"unit": "nm", "dimensions": [4, 8, 40]}}
UM = {"pixelResolution": {"unit": "um", "dimensions": [0.008, 0.016, 0.04]}}
OPEN_ORGANELLE = {"axes": ["z", "y", "x"], "units": ["nm"] * 3, "scale": [40, 16, 8], "translate": [0, 4, 2]}


@pytest.mark.parametrize(
    ("own", "above", "name", "expected"),
    [
        (NM, [], "raw", ((40, 8, 4), (0, 0, 0))),
        ({"resolution": [4, 8, 40]}, [], "raw", ((40, 8, 4), (0, 0, 0))),
        # As n5-viewer has it: the finest level's size at each level.
        (NM | {"downsamplingFactors": [2, 2, 1]}, [{}], "s1", ((40, 16, 8), (0, 4, 2))),
        # Each level's own.
        (UM, [NM], "s1", ((40, 16, 8), (0, 0, 0))),
        ({"transform": OPEN_ORGANELLE} | UM, [], "s1", ((40, 16, 8), (0, 4, 2))),
        # Of the group.
        ({}, [NM | {"scales": [[1, 1, 1], [2, 2, 1]]}], "s1", ((40, 16, 8), (0, 4, 2))),
        ({}, [{}, NM], "s0", ((40, 8, 4), (0, 0, 0))),
        ({}, [NM], "s1", None),
        # BigDataViewer's, in units that another file tells.
        ({"downsamplingFactors": [1, 1, 1]}, [{"resolution": [1, 1, 4], "saved_completely": True}], "s0", None),
        ({"pixelResolution": {"dimensions": [4, 8, 40]}}, [], "raw", None),
        ({"resolution": [4, 8]}, [], "raw", None),
        ({}, [], "raw", None),
    ],
)
def test_n5_by_its_customs(own: Any, above: list[Any], name: str, expected: Any) -> None:
    assert of_n5([own, *above], name) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": (72, 72), "resolutionunit": 2},
        {"imagej": True, "resolution": (250, 250), "metadata": {"axes": "ZYX"}},
        {"imagej": True, "resolution": (250, 250), "metadata": {"axes": "ZYX", "spacing": 1.0, "unit": "pixel"}},
        {"imagej": True, "metadata": {"axes": "ZYX", "unit": "um"}},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm"}},
    ],
)
def test_tiffs_that_do_not_tell(tmp_path: Path, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", DATA, photometric="minisblack", **options)
    assert open_source(tmp_path / "a.tif").voxel_size is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"resolution": [40.0, 4.0, 4.0]}, (40.0, 4.0, 4.0)),
        ({"voxel_size": np.array([8, 8, 8])}, (8.0, 8.0, 8.0)),
        ({"element_size_um": np.array([0.04, 0.004, 0.004], np.float32)}, (40.0, 4.0, 4.0)),
        ({"resolution": "high"}, None),
        ({"resolution": [0.0, 4.0, 4.0]}, None),
        ({"resolution": [4.0, 4.0]}, None),
        ({}, None),
    ],
)
def test_attributes_of_hdf5(tmp_path: Path, attributes: dict[str, object], expected: object) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=DATA).attrs.update(attributes)
    assert open_source(tmp_path / "a.h5").voxel_size == expected


def test_mrc_volumes(tmp_path: Path) -> None:
    source = open_source(mrc(tmp_path / "a.mrc", (40.0, 80.0, 400.0), DATA.astype(np.uint16)))
    assert source.voxel_size == (40.0, 8.0, 4.0)
    assert (source.shape, source.dtype) == (DATA.shape, np.dtype("uint16"))
    box = Box((1, 0, 2), (3, 6, 7))
    np.testing.assert_array_equal(source.read(box), DATA[box.slices()])
    assert open_source(mrc(tmp_path / "b.rec", 0.0, DATA.astype(np.int16))).voxel_size is None
    with pytest.raises(InputError, match="float32 voxels; say which intensities"):
        open_source(mrc(tmp_path / "c.map", 4.0, DATA.astype(np.float32)))


@pytest.mark.parametrize("damage", ["short", "garbage", "image"])
def test_mrc_files_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    path = mrc(tmp_path / "a.mrc", 4.0, DATA[0].astype(np.int16) if damage == "image" else DATA.astype(np.int16))
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "garbage":
        path.write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match=r"a\.mrc"):
        open_source(path)


def test_an_import_takes_what_the_file_tells_and_asks_for_what_it_does_not(tmp_path: Path) -> None:
    path = mrc(tmp_path / "a.mrc", (40.0, 80.0, 400.0), DATA.astype(np.uint16))
    cluster = ["--cluster", "in-process:1"]
    told = CliRunner().invoke(main, ["import", str(path), str(tmp_path / "a.zarr"), *cluster])
    assert told.exit_code == 0, told.output
    assert f"voxel size 40 x 8 x 4 nm, as {path} says" in told.stdout
    assert neuroshed.volume_info(tmp_path / "a.zarr")["voxel_size"] == [40.0, 8.0, 4.0]
    # What is said counts for more.
    CliRunner().invoke(main, ["import", str(path), str(tmp_path / "b.zarr"), "--voxel-size", "1", "2", "3", *cluster])
    assert neuroshed.volume_info(tmp_path / "b.zarr")["voxel_size"] == [1.0, 2.0, 3.0]
    np.save(tmp_path / "c.npy", DATA)
    told = CliRunner().invoke(main, ["import", str(tmp_path / "c.npy"), str(tmp_path / "c.zarr"), *cluster])
    assert told.exit_code == 2
    assert "does not say how large its voxels are; give `--voxel-size Z Y X`" in told.stderr
