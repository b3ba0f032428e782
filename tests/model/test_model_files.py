"""Models survive the disk, and a file that does not belong is refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from neuroshed.errors import InputError
from neuroshed.model.lattice import Lattice
from neuroshed.model.targets import NEAREST
from neuroshed.model.unet import Architecture, new_network
from neuroshed.storage.models import ModelCard, load_model, save_model
from neuroshed.training.config import parse_config
from neuroshed.workflow.config import find

ARCHITECTURE = Architecture(features=(8, 16), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),))


def card(architecture: Architecture = ARCHITECTURE) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        offsets=NEAREST,
        lattice=Lattice((16, 16, 16), (4, 4, 4)),
        normalisation=(0.0, 255.0),
        voxel_size=(40.0, 4.0, 4.0),
        training={"steps": 3},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "net-1.2", card(), new_network(ARCHITECTURE, 3).state_dict())


@pytest.mark.parametrize("name", ["net-1.2.json", "net-1.2.safetensors", "net-1.2", "."])
def test_a_model_is_found_by_either_file_the_stem_or_the_folder(saved: Path, name: str) -> None:
    model = load_model(saved.parent / name)
    assert model.card == card().model_copy(update={"weights_sha256": model.weights_sha256})
    assert len(model.weights_sha256) == 64
    expected = new_network(ARCHITECTURE, 3).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.net.state_dict().items())
    assert not model.net.training


def test_saving_again_replaces_the_pair(saved: Path) -> None:
    before = load_model(saved).weights_sha256
    save_model(saved, card(), new_network(ARCHITECTURE, 4).state_dict())
    assert load_model(saved).weights_sha256 != before
    assert sorted(file.name for file in saved.parent.iterdir()) == ["net-1.2.json", "net-1.2.safetensors"]


def test_changed_weights_are_refused(saved: Path) -> None:
    weights = saved.parent / "net-1.2.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"SHA-256.*copy both files again"):
        load_model(saved)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = Architecture(features=(8, 24), kernels=((3, 3, 3),) * 2, pools=((2, 2, 2),))
    path = save_model(tmp_path / "net", card(), new_network(other, 0).state_dict())
    with pytest.raises(InputError, match=r"does not fit the architecture: .*\(24, .*the network needs \(16, "):
        load_model(path)


@pytest.mark.parametrize("left_out", ["head.bias", None])
def test_missing_and_left_over_weights_are_refused(tmp_path: Path, left_out: str | None) -> None:
    weights = new_network(ARCHITECTURE, 0).state_dict()
    if left_out:
        del weights[left_out]
    else:
        weights["extra"] = torch.zeros(1)
    with pytest.raises(InputError, match=f"{left_out or 'extra'} is"):
        load_model(save_model(tmp_path / "net", card(), weights))


def test_what_is_not_safetensors_is_refused(saved: Path) -> None:
    import hashlib

    weights = saved.parent / "net-1.2.safetensors"
    weights.write_bytes(b"pickle")
    content = json.loads(saved.read_text()) | {"weights_sha256": hashlib.sha256(b"pickle").hexdigest()}
    saved.write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"offsets": [[0, 0, -1]] * 3}, "first three offsets"),
        ({"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -3]]}, "4 offsets and descriptors, but 3"),
        ({"lattice": {"patch": [15, 16, 16], "context": [4, 4, 4]}}, "not a multiple"),
        ({"normalisation": [255, 0]}, "low < high"),
    ],
)
def test_a_card_that_is_wrong_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_model(saved)


def test_a_card_that_is_not_json_is_refused(saved: Path) -> None:
    saved.write_text("{")
    with pytest.raises(InputError, match="does not describe a model"):
        load_model(saved)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_half_is_named(saved: Path, suffix: str) -> None:
    (saved.parent / f"net-1.2{suffix}").unlink()
    with pytest.raises(InputError, match=rf"net-1.2\{suffix} is missing"):
        load_model(saved.parent / "net-1.2")


def test_a_folder_of_two_models_is_ambiguous(saved: Path) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(saved.parent / f"net-1.2{suffix}", saved.parent / f"other{suffix}")
    with pytest.raises(InputError, match=r"net-1.2, other; name"):
        load_model(saved.parent)


@pytest.mark.parametrize(
    ("name", "recipe", "thickness"), [("fibsem", "train", 10.0), ("sections", "train_sections", 40.0)]
)
def test_a_shipped_model_loads_by_name_is_small_and_has_its_recipe(name: str, recipe: str, thickness: float) -> None:
    model = load_model(name)
    assert model.card.voxel_size == (thickness, 10.0, 10.0)
    config = parse_config(yaml.safe_load(find(recipe)))
    assert (config.network, config.offsets, config.lattice) == (
        model.card.architecture,
        model.card.offsets,
        model.card.lattice,
    )
    assert sum(p.numel() for p in model.net.parameters()) * 4 < 6e6


def test_weights_that_are_no_numbers_are_refused_by_name(saved: Path) -> None:
    model = load_model(saved)
    weights = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    weights["head.bias"][1] = float("nan")
    with pytest.raises(InputError, match=r"holds NaN or infinity in head\.bias"):
        load_model(save_model(saved.parent / "broken", model.card, weights))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"shipped name \(.*fibsem"):
        load_model("no-such-model")
