"""Exports as napari, ome-zarr-py and Neuroglancer, in a browser, open them: the same voxels at the same place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import neuroshed
from neuroshed.engine.config import ClusterConfig
from neuroshed.storage.levels import open_levels
from neuroshed.storage.locations import Location
from neuroshed.storage.volumes import create_volume

from .sites import need

pytestmark = pytest.mark.system
HERE = ClusterConfig.model_validate("in-process:2")
SCRIPTS = Path(__file__).parent / "viewers"
SHAPE, SIZE, OFFSET = (70, 150, 201), (40.0, 8.0, 4.0), (-120.0, 48.0, 400.0)
LABELS = "labels/segmentation"
SIDE = 400
"""Pixels of a picture, of 1 nm each."""
CENTRE = (10.25, 80.0, 200.0)
"""What is in the middle of a picture, in voxels from the origin, z y x."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy image and labels of more than 32 bits, at a place of their own, in both formats."""
    folder = tmp_path_factory.mktemp("exports")
    rng = np.random.default_rng(5)
    coarse = rng.integers(2**40, 2**40 + 99, (7, 30, 26), np.uint64)
    coarse[rng.random(coarse.shape) < 0.5] = 0
    labels = np.kron(coarse, np.ones((10, 5, 8), np.uint64))[:, :, : SHAPE[2]]
    for name, data in {"image": rng.integers(9000, 30000, SHAPE, np.uint16), "labels": labels}.items():
        volume = create_volume(
            folder / name, shape=SHAPE, dtype=data.dtype, shard_shape=(64, 64, 128), voxel_size=SIZE, offset=OFFSET
        )
        volume.write(volume.box, data)
        neuroshed.pyramid(folder / name, cluster=HERE)
        neuroshed.export(folder / name, folder / f"{name}.pre", format="precomputed", cluster=HERE)
    neuroshed.export(folder / "labels", folder / "both.zarr", image=folder / "image", cluster=HERE)
    return folder


def levels(path: Path) -> list[np.ndarray]:
    return [level.read(level.box) for level in open_levels(Location.of(path))]


@pytest.fixture(scope="module")
def viewers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The viewers and what they need beside our own packages, in a folder that comes before those."""
    folder = tmp_path_factory.mktemp("viewers")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(folder), "-r", str(SCRIPTS / "requirements.txt")], check=True)
    return folder


def run(viewers: Path, script: str, folder: Path, *arguments: object) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a script tells, and the voxels that it read."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments), str(folder)]
    settings = os.environ | {"PYTHONPATH": str(viewers), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)}
    with subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=80)
        finally:
            # A browser leaves helpers.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    with np.load(folder / "voxels.npz") as voxels:
        return json.loads((folder / "result.json").read_bytes()), dict(voxels)


def test_napari_and_ome_zarr_py(exports: Path, viewers: Path, tmp_path: Path) -> None:
    result, voxels = run(viewers, "in_napari.py", tmp_path, exports / "both.zarr")
    for reader in ("napari", "ome-zarr"):
        for number, name in enumerate(("image", "labels")):
            wanted = levels(exports / name)
            assert result[reader][number]["levels"] == len(wanted) == 3
            for level, data in enumerate(wanted):
                assert_array_equal(voxels[f"{reader}/{number}/{level}"], data)
    image, labels = result["napari"]
    assert (image["kind"], labels["kind"]) == ("Image", "Labels")
    assert image["nm"] == labels["nm"] == list(SIZE)
    # napari-ome-zarr 0.10 leaves out the offset, but of both.
    assert image["start"] == labels["start"]
    window = json.loads((exports / "both.zarr/zarr.json").read_bytes())["attributes"]["ome"]["omero"]["channels"][0][
        "window"
    ]
    assert image["window"] == [window["start"], window["end"]]
    image, labels = result["ome-zarr"]
    assert image["windows"] == [[window["start"], window["end"]]]
    assert (image["specs"], labels["specs"]) == (["Multiscales", "OMERO"], ["Label", "Multiscales"])
    for found in (image, labels):
        assert found["units"] == ["nanometer"] * 3
        for level, told in zip(open_levels(Location.of(exports / "image")), found["transformations"], strict=True):
            assert [told[0]["scale"], told[1]["translation"]] == [list(level.voxel_size), list(level.offset)]


def picture(image: str, labels: str, render_scale: float) -> dict[str, Any]:
    """What Neuroglancer is to show: the image in grey, and red where there are labels."""
    return {
        "size": [SIDE, SIDE],
        "state": {
            "dimensions": {axis: [nm * 1e-9, "m"] for axis, nm in zip("xyz", SIZE[::-1], strict=True)},
            "position": CENTRE[::-1],
            "layout": "xy",
            "crossSectionScale": 1 / SIZE[2],
            "showAxisLines": False,
            "showScaleBar": False,
            "showDefaultAnnotations": False,
            "layers": [
                {
                    "name": "image",
                    "type": "image",
                    "source": image,
                    "shader": "void main() { emitGrayscale(toNormalized(getDataValue())); }",
                    "opacity": 1,
                    "crossSectionRenderScale": render_scale,
                },
                {
                    "name": "labels",
                    "type": "segmentation",
                    "source": labels,
                    "selectedAlpha": 1,
                    "segmentDefaultColor": "#ff0000",
                    "crossSectionRenderScale": render_scale,
                },
            ],
        },
    }


def drawn(image: np.ndarray, labels: np.ndarray, shift: float) -> np.ndarray:
    """The pixels of that, for one level; `shift` is where voxels begin, in voxels of the finest from their offset."""
    places = []
    for side, full, nm, offset, centre in zip(image.shape, SHAPE, SIZE, OFFSET, CENTRE, strict=True):
        pixels = np.zeros(1) if nm == SIZE[0] else (np.arange(SIDE) + 0.5 - SIDE / 2) / nm
        factor = -(-full // side)
        places.append(np.floor((centre + pixels - offset / nm - shift) / factor).astype(int))
    cut = np.ix_(*places)
    grey = np.round(image[cut][0] / 65535 * 255)
    red = labels[cut][0] != 0
    return np.where(red[..., None], [255, 0, 0], np.stack([grey] * 3, axis=-1))


def test_neuroglancer(exports: Path, viewers: Path, tmp_path: Path) -> None:
    need("chromium", packages="chromium")
    sources = {
        "ome-zarr": ["zarr3://SERVER/both.zarr", f"zarr3://SERVER/both.zarr/{LABELS}"],
        "precomputed": ["precomputed://SERVER/image.pre", "precomputed://SERVER/labels.pre"],
    }
    request = {f"{name}-{scale}": picture(*pair, scale) for name, pair in sources.items() for scale in (1, 16)}
    (tmp_path / "request.json").write_text(json.dumps(request))
    program = shutil.which("chromium")
    result, voxels = run(viewers, "in_neuroglancer.py", tmp_path, program, exports, tmp_path / "request.json")
    image, labels = levels(exports / "image"), levels(exports / "labels")
    for name in request:
        for layer, (data, *_) in {"image": image, "labels": labels}.items():
            told = result[f"{name}/{layer}"]
            order = ["zyx".index(axis) for axis in told["names"]]
            assert_array_equal(voxels[f"{name}/{layer}"], data.transpose(order))
            assert_allclose(told["nm"], [SIZE[axis] for axis in order])
            assert told["start"] == [round(OFFSET[axis] / SIZE[axis]) for axis in order]
        # The place of a voxel of an OME-Zarr is that of its centre, of one of precomputed volumes that of its corner.
        shift = -0.5 if name.startswith("ome-zarr") else 0
        level = 0 if name.endswith("-1") else 2
        pixels = np.asarray(PIL.Image.open(tmp_path / f"{name}.png"))[..., :3].astype(int)
        assert_allclose(pixels, drawn(image[level], labels[level], shift), atol=1, err_msg=name)
