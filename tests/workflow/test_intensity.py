"""The same tissue in other contrast, bits, sign or polarity gives the same affinities; one intensity range a volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

import neuroshed
from neuroshed.errors import InputError
from neuroshed.geometry import Box
from neuroshed.stages.predict import Predict
from neuroshed.storage.models import load_model, save_model
from neuroshed.storage.volumes import open_volume
from neuroshed.workflow.config import load
from neuroshed.workflow.plan import make_plan

Writer = Callable[..., Path]
SHAPE = (16, 24, 20)


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> list[str]:
    loaded = load_model(model)
    card = loaded.card.model_copy(update={"spread": (0.2, 0.8)})
    path = save_model(tmp_path / "spread", card, loaded.net.state_dict())
    return [f"model={path}", f"output={tmp_path / 'run'}", "block_shape=[16,16,16]", "cluster=in-process:2"]


@pytest.fixture
def tissue() -> npt.NDArray[np.float64]:
    """Smooth noise within 60..200."""
    noise = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=SHAPE), 1.0)
    return np.interp(noise, (noise.min(), noise.max()), (60, 200))


def predict(settings: list[str], image: Path, *more: str) -> npt.NDArray[np.uint8]:
    summary = neuroshed.run("segment", [*settings, f"image={image}", *more])
    affinities: npt.NDArray[np.uint8] = open_volume(summary["affinities"]).read(Box.of_shape(SHAPE))
    return affinities


CHANGES: dict[str, Any] = {
    "low contrast": lambda v: (v * 0.6 + 60).round().astype(np.uint8),
    "16 bits": lambda v: (v * 200 + 1000).round().astype(np.uint16),
    "signed": lambda v: (v - 128).round().astype(np.int8),
    "signed 16 bits": lambda v: (v * 100 - 13000).round().astype(np.int16),
    "inverted": lambda v: (255 - v).round().astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_tissue_gives_the_same_affinities(
    settings: list[str], tissue: npt.NDArray[np.float64], write_image: Writer, change: str
) -> None:
    plain = predict(settings, write_image("plain.zarr", tissue.round().astype(np.uint8)))
    assert plain.std() > 10
    changed = write_image("changed.zarr", CHANGES[change](tissue))
    got = predict(settings, changed, *(["predict.inverted=true"] if change == "inverted" else []))
    # Rounded to fewer values, or to others.
    assert np.abs(got.astype(int) - plain).mean() < 2
    fixed = predict(settings, changed, "predict.intensity=[0,255]")
    assert np.abs(fixed.astype(int) - plain).mean() > 6


def test_the_range_is_that_of_the_volume_whatever_the_box(
    settings: list[str], tissue: npt.NDArray[np.float64], write_image: Writer
) -> None:
    tissue[:8] += 40
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
