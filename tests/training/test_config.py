"""The configuration: strict keys, one-line errors, and which changes a resumed training allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from neuroshed.errors import WorkflowError
from neuroshed.training import config as config_module
from neuroshed.training.config import FREE, TrainingConfig, difference, load_config, parse_config

MakeConfig = Callable[..., TrainingConfig]
SOURCE = {"image": "a", "labels": "b"}
WORKFLOWS = Path(__file__).parents[2] / "workflows"


@pytest.mark.parametrize("recipe", ["train", "train_sections"])
def test_the_recipes_of_the_shipped_models_are_valid(recipe: str) -> None:
    file = WORKFLOWS / f"{recipe}.yaml"
    config = load_config(file)
    assert config.network.out_channels == len(config.offsets)
    written = yaml.safe_load(file.read_text())
    assert not any(Path(source["image"]).is_absolute() for source in (*written["samples"], *written["validation"]))


def test_a_configuration_survives_yaml(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "learning_rat: unknown key; known are .*learning_rate"),
        ({"augment": {"blur": 1}}, "augment.blur: unknown key; known are .*blurred"),
        ({"samples": [{"image": "a", "labels": "b", "boxes": 1}]}, "samples.0.boxes: unknown key; known are box,"),
        (
            {"samples": [{"image": "a", "labels": "b", "sections": {"thickness": [4], "axis": "z"}}]},
            "known are axes, t",
        ),
        ({"samples": [{"image": "a", "labels": "b", "sections": {"thickness": [1]}}]}, "sections.thickness.0: "),
        ({"network": {"features": [8], "kernels": [[3, 3, 3]], "pools": [], "depth": 1}}, "network.depth: unknown key"),
        ({"steps": 0}, "steps: Input should be greater"),
        ({"samples": []}, "samples: "),
        ({"offsets": [[0, 0, -1]] * 3}, "first three offsets must be"),
        ({"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [-9, 0, 0]]}, "out_channels is 3, but 4 offsets need 4"),
        ({"patch_shape": [9, 12, 12]}, "patch_shape .* not a multiple"),
        ({"lattice": {"patch": [15, 16, 16], "context": [4, 4, 4]}}, "lattice.patch .* not a multiple"),
        ({"lattice": {"patch": [16, 16, 16], "context": [4, 4, 4], "stride": 8}}, "lattice.stride: "),
        ({"lattice": {"patch": [16, 16, 16], "context": [8, 4, 4]}}, "larger than twice its context"),
        ({"steps": 5}, "exceed steps = 5"),
        ({"normalisation": [255, 0]}, "low < high"),
        ({"device": "gpu"}, "device: "),
        ({"learning_rate": float("nan")}, "learning_rate: "),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(
    make_config: MakeConfig, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(WorkflowError, match=message) as caught:
        make_config(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["steps: [", "", "- 1"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(WorkflowError, match=r"bad\.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"cannot read .*none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_every_field_says_what_it_is() -> None:
    source = Path(config_module.__file__).read_text()
    models = [config_module.Source, config_module.Cut, config_module.Augment, TrainingConfig]
    for name in (name for model in models for name in model.model_fields):
        declaration = source.index(f"\n    {name}: ")
        assert source[declaration + 1 :].split("\n", 2)[1].lstrip().startswith('"""'), name


def test_the_learning_rate_warms_up_stays_and_falls(make_config: MakeConfig) -> None:
    config = make_config(steps=100, warmup_steps=10, decay_steps=50, learning_rate=0.5)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[9:50] == [0.5] * 41
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[75] == pytest.approx(0.25)
    assert 0 < rates[99] < 0.001


def test_only_free_fields_may_change(make_config: MakeConfig) -> None:
    config = make_config()
    changes: dict[str, Any] = {"description": "new", "output": "elsewhere", "steps": 99, "preload_gib": 0.0}
    changes |= dict.fromkeys(FREE - {*changes}, 7)
    assert difference(config, make_config(**changes)) is None
    assert difference(config, make_config(seed=3)) == "seed (was 0, is 3)"
    assert (difference(config, make_config(augment={"noise": 0.1})) or "").startswith("augment.noise (was 0.05")


def test_what_is_not_a_mapping_is_refused() -> None:
    with pytest.raises(WorkflowError, match="the whole"):
        parse_config(None)


def test_models_are_strict() -> None:
    for model in vars(config_module).values():
        if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel:
            assert model.model_config["extra"] == "forbid"
