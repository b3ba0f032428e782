"""The same tissue in other contrast, bits, sign or polarity gives the same affinities; one intensity range a volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from scipy import ndimage

import neuroshed
from neuroshed.errors import InputError, WorkflowError
from neuroshed.geometry import Box
from neuroshed.stages.predict import Predict
from neuroshed.storage.models import load_model, save_model
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import make_plan

Writer = Callable[..., Path]
SHAPE = (16, 24, 20)


@pytest.fixture(scope="module")
def remembering(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with how bright its images were."""
    loaded = load_model(model)
    card = loaded.card.model_copy(update={"spread": (0.2, 0.8)})
    return save_model(tmp_path_factory.mktemp("model") / "spread", card, loaded.net.state_dict())


def settings_in(folder: Path, model: Path) -> list[str]:
    blocks = ("block_shape=[16,16,16]", "thresholds=[0.5]", "cluster=in-process:2")
    return [f"model={model}", f"output={folder / 'run'}", *blocks]


@pytest.fixture
def settings(remembering: Path, tmp_path: Path) -> list[str]:
    return settings_in(tmp_path, remembering)


@pytest.fixture(scope="module")
def tissue() -> npt.NDArray[np.float64]:
    """Smooth noise within 60..200."""
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=SHAPE), 1.0)
    return np.interp(noise, (noise.min(), noise.max()), (60, 200))


def predict(settings: list[str], image: Path, *more: str) -> npt.NDArray[np.uint8]:
    summary = neuroshed.run("segment", [*settings, f"image={image}", *more])
    affinities: npt.NDArray[np.uint8] = open_volume(summary["affinities"]).read(Box.of_shape(SHAPE))
    return affinities


@pytest.fixture(scope="module")
def plain(
    remembering: Path, tissue: npt.NDArray[np.float64], tmp_path_factory: pytest.TempPathFactory
) -> npt.NDArray[np.uint8]:
    """Affinities of the tissue as it is."""
    folder = tmp_path_factory.mktemp("plain")
    zarr.save_array(folder / "image.zarr", tissue.round().astype(np.uint8))
    found = predict(settings_in(folder, remembering), folder / "image.zarr")
    assert found.std() > 10
    return found


CHANGES: dict[str, Any] = {
    "low contrast": lambda v: (v * 0.6 + 60).round().astype(np.uint8),
    "16 bits": lambda v: (v * 200 + 1000).round().astype(np.uint16),
    "signed": lambda v: (v - 128).round().astype(np.int8),
    "signed 16 bits": lambda v: (v * 100 - 13000).round().astype(np.int16),
    "inverted": lambda v: (255 - v).round().astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_tissue_gives_the_same_affinities(
    settings: list[str],
    plain: npt.NDArray[np.uint8],
    tissue: npt.NDArray[np.float64],
    write_image: Writer,
    change: str,
) -> None:
    changed = write_image("changed.zarr", CHANGES[change](tissue))
    got = predict(settings, changed, *(["predict.inverted=true"] if change == "inverted" else []))
    # Rounded to fewer values, or to others.
    assert np.abs(got.astype(int) - plain).mean() < 2
    fixed = predict(settings, changed, "predict.intensity=[0,255]")
    assert np.abs(fixed.astype(int) - plain).mean() > 6


def test_the_range_is_that_of_the_volume_whatever_the_box(
    settings: list[str], tissue: npt.NDArray[np.float64], write_image: Writer
) -> None:
    tissue = np.concatenate([tissue[:8] + 40, tissue[8:]])
    image = write_image("image.zarr", tissue.round().astype(np.uint8))
    ranges = set()
    for box in ("null", "[[0,0,0],[8,24,20]]", "[[8,0,0],[16,24,20]]"):
        source = make_plan(load("segment", [*settings, f"image={image}", f"box={box}"])).fragments.source
        assert isinstance(source, Predict)
        ranges.add(source.normalisation)
    ((low, high),) = ranges
    dark, bright = np.percentile(tissue.round(), (2, 98))
    assert ((dark - low) / (high - low), (bright - low) / (high - low)) == pytest.approx((0.2, 0.8), abs=0.02)


def test_an_image_that_cannot_be_scaled_is_told(settings: list[str], write_image: Writer) -> None:
    pixels = np.full(SHAPE, 7, np.uint8)
    pixels[:, :, 0] = 0
    with pytest.raises(InputError, match=r"most of what was sampled is 7 or 0; give `predict.intensity"):
        neuroshed.plan("segment", [*settings, f"image={write_image('flat.zarr', pixels)}"])


def drifting(tissue: npt.NDArray[np.float64]) -> npt.NDArray[np.uint16]:
    """The tissue with a contrast that falls to a third, and a brightness that rises, along y and x."""
    _, y, x = np.meshgrid(*(np.linspace(0, 1, side) for side in SHAPE), indexing="ij")
    return (tissue * (30 - 20 * y) + 4000 * x).round().astype(np.uint16)


def test_a_map_of_drift_brings_back_what_it_took(
    settings: list[str], plain: npt.NDArray[np.uint8], tissue: npt.NDArray[np.float64], write_image: Writer
) -> None:
    image = write_image("drifting.zarr", drifting(tissue))
    one_range = predict(settings, image)
    levelled = predict(settings, image, "predict.drift=[16,6,5]")
    assert np.abs(levelled - plain.astype(int)).mean() < 0.6 * np.abs(one_range - plain.astype(int)).mean()


def test_levelling_does_not_depend_on_blocks_or_boxes(
    settings: list[str], tissue: npt.NDArray[np.float64], write_image: Writer, tmp_path: Path
) -> None:
    given = [f"image={write_image('drifting.zarr', drifting(tissue))}", "predict.drift=[5,7,6]"]
    found = []
    for number, block in enumerate(([16, 24, 20], [8, 12, 10], [11, 16, 9])):
        output = [f"output={tmp_path / str(number)}", f"block_shape={block}"]
        summary = neuroshed.run("segment", [*settings, *given, *output])
        found.append(open_volume(summary["affinities"]).read(Box.of_shape(SHAPE)))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    trial = [*settings, *given, f"output={tmp_path / 'trial'}", "block_shape=[8,12,10]"]
    part = neuroshed.run("segment", [*trial, "box=[[0,0,0],[8,12,10]]"])
    corner = open_volume(part["affinities"]).read(Box((0, 0, 0), (8, 12, 10)))
    np.testing.assert_array_equal(corner, found[0][:, :8, :12, :10])
    whole = neuroshed.run("segment", trial)
    assert whole["restored_blocks"] >= part["stages"]["drift"]["blocks"] + 1
    np.testing.assert_array_equal(open_volume(whole["affinities"]).read(Box.of_shape(SHAPE)), found[0])


def test_an_inverted_drifting_image(settings: list[str], tissue: npt.NDArray[np.float64], write_image: Writer) -> None:
    image = drifting(tissue)
    plain = predict(settings, write_image("image.zarr", image), "predict.drift=[16,8,8]").astype(int)
    turned = write_image("turned.zarr", (20000 - image.astype(int)).astype(np.uint16))
    got = predict(settings, turned, "predict.drift=[16,8,8]", "predict.inverted=true")
    assert np.abs(got - plain).mean() < 1


def test_drift_needs_a_model_that_remembers(model: Path, tissue: npt.NDArray[np.float64], write_image: Writer) -> None:
    image = write_image("image.zarr", tissue.round().astype(np.uint8))
    with pytest.raises(WorkflowError, match="needs a model that remembers how bright its images were"):
        neuroshed.plan("segment", [f"image={image}", "output=run", f"model={model}", "predict.drift=[9,9,9]"])
