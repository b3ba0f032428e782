"""The parts of the demo, without its run: what ships, how it is licensed, what the picture looks like."""

from __future__ import annotations

import struct
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest

from neuroshed.geometry import Box, Vec
from neuroshed.report.figure import draw_result, section_box
from neuroshed.showcase import BLOCK_SHAPE, VOXEL_SIZE, clear
from neuroshed.stages.affinities import NEAREST
from neuroshed.storage.models import load_model, shipped_models
from neuroshed.storage.volumes import create_volume

ASSETS = Path(str(resources.files("neuroshed"))) / "assets"
LIMIT = 6_000_000


def test_what_ships_is_small() -> None:
    files = {file.name: file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()}
    assert {"fib25.h5", "README.md"} <= {*files}
    assert files["fib25.h5"] <= LIMIT
    assert shipped_models() == ["fibsem", "sections"]
    for name in shipped_models():
        assert files[f"{name}.json"] + files[f"{name}.safetensors"] <= LIMIT


def test_the_volume_comes_with_its_licence_and_source() -> None:
    text = (ASSETS / "demo" / "README.md").read_text()
    assert "Licence: Creative Commons Attribution" in text
    assert "github.com/janelia-flyem/neuroproof_examples" in text
    assert "FIB-25" in text


def test_the_volume_is_an_image_with_a_truth() -> None:
    with h5py.File(ASSETS / "demo" / "fib25.h5") as file:
        raw, labels = file["raw"], file["labels"]
        assert raw.shape == labels.shape
        assert raw.dtype == np.uint8
        assert labels.dtype.kind == "u"
        assert np.unique(labels[:, ::4, ::4]).size > 20
        assert raw[0].std() > 10


def test_the_network_fits_the_demo() -> None:
    assert "fibsem" in shipped_models()
    card = load_model("fibsem").card
    assert card.voxel_size == VOXEL_SIZE
    assert card.offsets[:3] == NEAREST
    # Blocks of whole strides compute nothing twice but context.
    assert all(block % stride == 0 for block, stride in zip(BLOCK_SHAPE, card.lattice.stride, strict=True))


def test_clearing_removes_what_a_demo_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("image.zarr", "truth.zarr", ".image.zarr.import", "run", "mine"):
        (tmp_path / name).mkdir()
    for name in ("demo.png", "notes.txt"):
        (tmp_path / name).touch()
    clear(tmp_path)
    clear(tmp_path / "never")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes.txt"]


def volume(path: Path, data: np.ndarray) -> Path:
    shape = data.shape[-3:]
    created = create_volume(
        path,
        shape=shape,
        dtype=data.dtype,
        shard_shape=shape,
        voxel_size=VOXEL_SIZE,
        voxel_offsets=NEAREST if data.ndim == 4 else None,
    )
    created.write(Box.of_shape(shape), data)
    return path


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.mark.parametrize("shape", [(20, 30, 6), (6, 40, 20), (9, 9, 9), (12, 3, 30)])
def test_the_picture(shape: Vec, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 9, shape, np.uint64) for name in ("fragments", "segmentation", "truth")}
    labels["fragments"][:2] = 2**63 + 5
    paths = {name: volume(tmp_path / name, data) for name, data in labels.items()}
    picture = draw_result(
        tmp_path / "demo.png",
        volume(tmp_path / "image", rng.integers(0, 255, shape, np.uint8)),
        volume(tmp_path / "affinities", rng.integers(0, 255, (3, *shape), np.uint8)),
        {name: paths[name] for name in ("fragments", "segmentation")},
        paths["truth"],
        titles=["watershed", "threshold 0.3"],
        heading="a test",
    )
    width, height = png_size(picture)
    assert 1000 <= width <= 3000
    assert 200 <= height <= 3000
    box = section_box(shape)
    assert box.size == max(shape[0] * shape[1], shape[0] * shape[2], shape[1] * shape[2])


def test_labels_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    empty = volume(tmp_path / "empty", np.zeros((4, 5, 6), np.uint64))
    picture = draw_result(
        tmp_path / "demo.png",
        volume(tmp_path / "image", np.zeros((4, 5, 6), np.uint8)),
        volume(tmp_path / "affinities", np.zeros((3, 4, 5, 6), np.uint8)),
        {"segmentation": empty},
        empty,
        titles=[""],
        heading="",
    )
    assert png_size(picture)[0] > 500
