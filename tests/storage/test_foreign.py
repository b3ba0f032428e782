"""One network in every format gives one answer; conventions are applied as declared; code runs only if trusted."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from neuroshed.errors import BlockError, InputError
from neuroshed.geometry import Box, Vec
from neuroshed.model.foreign import Channel, ForeignNetwork, Interface, check_interface
from neuroshed.storage.declared import ForeignModel
from neuroshed.storage.foreign import open_foreign
from neuroshed.storage.networks import read_declaration, resolved

from . import foreign_models as saved

DECLARED: dict[str, Any] = {
    "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, -9]],
    "output": "logits",
    "input_shape": saved.PATCH,
    "output_shape": [side - 2 for side in saved.PATCH],
}
HERE = "tests.storage.foreign_models"
KEPT = Box((2, 2, 2), (5, 7, 9))
IMAGE = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 1, *saved.PATCH), np.uint8))


def expected(image: Tensor) -> Tensor:
    """What the network says, by hand."""
    with torch.inference_mode():
        answer = saved.Valid()(image).sigmoid()[:, :3]
    return answer[:, :, *KEPT.slices((1, 1, 1))]


FORMATS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "torch.export": lambda folder: {"path": saved.save_export(folder)},
    "torchscript": lambda folder: {"path": saved.save_torchscript(folder), "kind": "torchscript"},
    "onnx": lambda folder: {"path": saved.save_onnx(folder), "trust": False},
    "callable": lambda folder: {
        "path": f"{HERE}:make", "arguments": {"channels": 4}, "weights": saved.save_weights(folder)
    },
    "callable with a state dict": lambda folder: {"path": f"{HERE}:make", "weights": saved.save_weights(folder, ".pt")},
    "function": lambda folder: {"path": f"{HERE}:function"},
    "package in ONNX": lambda folder: {"path": saved.save_package(folder, "onnx"), "trust": False},
    "package in TorchScript": lambda folder: {"path": saved.save_package(folder, "torchscript")},
    "package in Python": lambda folder: {"path": saved.save_package(folder, "state")},
}  # fmt: skip


def declare(values: dict[str, Any]) -> ForeignModel:
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return ForeignModel.model_validate(DECLARED | {"trust": True} | texts)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_answer(tmp_path: Path, name: str) -> None:
    declared = declare(FORMATS[name](tmp_path))
    foreign = open_foreign(declared)
    assert foreign.lattice.patch == saved.PATCH
    assert foreign.lattice.context == ((2, 2, 2) if "package" in name else (1, 1, 1))
    network = foreign.network((0.0, 255.0), "cpu", "float32")
    image = IMAGE[:1]
    with torch.inference_mode():
        got = network.affinities(image, KEPT)
    # Packages scale by themselves, here not at all.
    given = image.float() if "package" in name else image.float() / 255 * 2 - 1
    torch.testing.assert_close(got, expected(given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_what_can_run_code_runs_only_if_trusted(tmp_path: Path, name: str) -> None:
    values = FORMATS[name](tmp_path)
    needs_trust = "trust" not in values
    declared = declare(values | {"trust": False})
    if needs_trust:
        with pytest.raises(InputError, match=r"can run any code when it is loaded; set trust: true"):
            open_foreign(declared)
    else:
        assert open_foreign(declared).source.runs_code is False


def test_looking_at_a_model_runs_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text("raise SystemExit('exploded')")
    monkeypatch.syspath_prepend(tmp_path)
    foreign = open_foreign(declare({"path": "bomb:make"}))
    assert len(foreign.network_sha256) == 64
    assert "bomb" not in sys.modules


def network(net: Callable[[Tensor], Tensor], channels: tuple[Channel, ...], **changes: Any) -> ForeignNetwork:
    values: dict[str, Any] = {
        "input_shape": (6, 6, 6), "output_shape": (6, 6, 6), "input_axes": "bczyx", "output_axes": "bczyx",
        "answers": "probabilities", "inverted": False, "channels": channels, "declared_channels": 3,
    }  # fmt: skip
    interface = Interface(**values | changes)
    check_interface(interface)
    return ForeignNetwork(net, lambda image: image, interface)


OURS = tuple(Channel(number, (0, 0, 0)) for number in range(3))


def truth(labels: Tensor, offset: Vec) -> Tensor:
    """1 where a voxel and that at its offset have the same label, by hand, 0 beyond the patch."""
    there = torch.zeros(labels.shape)
    sides = labels.shape[-3:]
    for place in itertools.product(*map(range, sides)):
        other = tuple(p + o for p, o in zip(place, offset, strict=True))
        if all(0 <= o < side for o, side in zip(other, sides, strict=True)):
            there[..., *place] = (labels[..., *place] == labels[..., *other]).float()
    return there


@pytest.mark.parametrize("stored_at", ["source", "destination"])
@pytest.mark.parametrize("sign", ["negative", "positive"])
@pytest.mark.parametrize("channels", ["zyx", "xyz"])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_network_that_knows_the_truth_in_any_convention(
    tmp_path: Path, stored_at: str, sign: str, channels: str, inverted: bool
) -> None:
    labels = torch.from_numpy(np.random.default_rng(3).integers(1, 3, (1, 1, 6, 6, 6)))
    step = -1 if sign == "negative" else 1

    def answer(image: Tensor) -> Tensor:
        made = []
        for axis in channels:
            offset = tuple(step if name == axis else 0 for name in "zyx")
            edges = truth(labels[:, 0], (offset[0], offset[1], offset[2]))
            if stored_at == "destination":
                edges = torch.roll(edges, offset, (1, 2, 3))
            made.append(1 - edges if inverted else edges)
        return torch.stack(made, 1)

    file = tmp_path / "net.onnx"
    file.touch()
    declared = ForeignModel(
        path=str(file), channels=channels, sign=sign, stored_at=stored_at, inverted=inverted,
        output="probabilities", input_shape=(6, 6, 6),
    )  # fmt: skip
    foreign = open_foreign(declared)
    needs_more = (sign == "negative") == (stored_at == "destination")
    assert foreign.lattice.context == ((1, 1, 1) if needs_more else (0, 0, 0))
    kept = Box((1, 1, 1), (5, 5, 5))
    got = ForeignNetwork(answer, lambda image: image, foreign.interface).affinities(labels, kept)
    for axis in range(3):
        offset = (-(axis == 0), -(axis == 1), -(axis == 2))
        assert torch.equal(got[:, axis], truth(labels[:, 0], offset)[:, *kept.slices()])


def test_axes_are_turned_as_declared() -> None:
    def answer(image: Tensor) -> Tensor:
        assert image.shape == (6, 5, 4, 2)  # x y z b
        return image[..., None].expand(6, 5, 4, 2, 3) / 255

    net = network(answer, OURS, input_axes="xyzb", output_axes="xyzbc", input_shape=(4, 5, 6), output_shape=(4, 5, 6))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 4, 5, 6), np.uint8))
    got = net.affinities(image, Box((0, 0, 0), (4, 5, 6)))
    torch.testing.assert_close(got[:, 1], image[:, 0].float() / 255)


WRONG: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any], str]] = {
    "channels": (lambda image: image.expand(-1, 2, -1, -1, -1), {}, "gives 2 channels, declared are 3"),
    "shape": (lambda image: torch.zeros(1, 3, 4, 6, 6), {}, r"gives \(4, 6, 6\) voxels for a patch of \(6, 6, 6\)"),
    "axes": (lambda image: torch.zeros(3, 6, 6, 6), {}, "gives 4 axes of shape"),
    "logits": (lambda image: torch.full((1, 3, 6, 6, 6), -2.5), {}, "values in -2.5 to -2.5, declared are probabil"),
    "no tensor": (lambda image: [image], {}, "gives list; needed is one tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_not_what_was_declared(name: str) -> None:
    answers, changes, message = WRONG[name]
    with pytest.raises(BlockError, match=message):
        network(answers, OURS, **changes).affinities(torch.zeros(1, 1, 6, 6, 6), Box((0, 0, 0), (6, 6, 6)))


def test_what_is_no_number_stays_none() -> None:
    values = torch.full((1, 3, 6, 6, 6), 0.5)
    values[0, 1, 2, 3, 4] = torch.inf
    for answers in ("logits", "probabilities"):
        got = network(lambda image: values, OURS, answers=answers).affinities(values[:, :1], Box((0, 0, 0), (6, 6, 6)))
        assert torch.isnan(got[0, 1, 2, 3, 4])
        assert int(torch.isnan(got).sum()) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"path": "net.bin"}, "its ending does not tell what it is; declare kind"),
    ({"path": "missing.onnx"}, r"no file missing\.onnx"),
    ({"path": "no.such.module:make"}, "No module named 'no'"),
    ({"path": f"{HERE}_not:make"}, "there is no such module"),
    ({"path": "FILE", "kind": "onnx", "input_shape": None}, "declare input_shape"),
    ({"path": "FILE", "kind": "onnx", "output_shape": (3, 8, 10)}, "differ by an even number"),
    ({"path": "FILE", "kind": "onnx", "context": (4, 0, 0)}, "must be larger than twice its context"),
    ({"path": "FILE", "kind": "onnx", "offsets": [(0, -1, 0), (0, 0, -1)]}, r"no channel holds the edges of offset"),
    ({"path": "FILE", "kind": "onnx", "input_axes": "czyx"}, "must be an order of b, c, z, y, x"),
    ({"path": "FILE", "kind": "bioimage.io"}, "is no package of bioimage.io"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    file = tmp_path / "net.bin"
    file.write_bytes(b"garbage")
    given = {key: str(file) if value == "FILE" else value for key, value in values.items()}
    with pytest.raises(InputError, match=message) as caught:
        open_foreign(declare(given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["onnx", "torchscript", "torch.export"])
def test_a_damaged_file_is_told(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "net.bin"
    file.write_bytes(b"garbage")
    foreign = open_foreign(declare({"path": file, "kind": kind}))
    with pytest.raises(InputError, match=r"net\.bin cannot be loaded"):
        foreign.network((0.0, 255.0), "cpu", "float32")


def test_callables_that_give_nothing_of_use(tmp_path: Path) -> None:
    weights = saved.save_weights(tmp_path)
    for values, message in (
        ({"path": f"{HERE}:nothing"}, "gave str; needed is a torch module"),
        ({"path": f"{HERE}:none"}, "AttributeError"),
        ({"path": f"{HERE}:make", "arguments": {"depth": 3}}, "TypeError"),
        ({"path": f"{HERE}:make", "arguments": {"channels": 3}, "weights": weights}, "do not fit the module"),
    ):
        with pytest.raises(InputError, match=message):
            open_foreign(declare(values)).network((0.0, 255.0), "cpu", "float32")


def test_pickled_weights_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (Path("exploded"),)

    torch.save({"conv.weight": Bomb()}, tmp_path / "weights.pt")
    foreign = open_foreign(declare({"path": f"{HERE}:make", "weights": tmp_path / "weights.pt"}))
    with pytest.raises(InputError, match="cannot be read without running code"):
        foreign.network((0.0, 255.0), "cpu", "float32")
    assert not Path("exploded").exists()


def test_the_fingerprint_is_of_files_and_conventions(tmp_path: Path) -> None:
    first = declare({"path": saved.save_onnx(tmp_path)})
    other = tmp_path / "elsewhere"
    other.mkdir()
    again = declare({"path": saved.save_onnx(other)})
    assert open_foreign(first).network_sha256 == open_foreign(again).network_sha256
    turned = first.model_copy(update={"inverted": True})
    assert open_foreign(turned).network_sha256 != open_foreign(first).network_sha256
    Path(again.path).write_bytes(Path(again.path).read_bytes() + b" ")
    assert open_foreign(again).network_sha256 != open_foreign(first).network_sha256


STEPS: dict[str, tuple[list[dict[str, Any]], Callable[[np.ndarray[Any, Any]], Any]]] = {
    "scale_linear": (
        [{"id": "scale_linear", "kwargs": {"gain": 0.5, "offset": -3}}], lambda image: image * 0.5 - 3
    ),
    "fixed": (
        [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 100, "std": 50}}], lambda image: (image - 100) / 50
    ),
    "of the patch": (
        [{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "z", "y", "x"], "eps": 1e-6}}],
        lambda image: (image - image.mean((1, 2, 3, 4), keepdims=True)) / image.std((1, 2, 3, 4), keepdims=True),
    ),
    "range": (
        [{"id": "scale_range", "kwargs": {"min_percentile": 10, "max_percentile": 90, "eps": 1e-6}}],
        lambda image: np.stack([(i - np.percentile(i, 10)) / np.ptp(np.percentile(i, (10, 90))) for i in image]),
    ),
    "chain": (
        [
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
            {"id": "clip", "kwargs": {"min": 20, "max": 200}},
            {"id": "scale_linear", "kwargs": {"gain": 0.01}},
        ],
        lambda image: image.clip(20, 200) * 0.01,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_the_pre_processing_of_packages(tmp_path: Path, name: str) -> None:
    steps, by_hand = STEPS[name]
    foreign = open_foreign(declare({"path": saved.save_package(tmp_path, "onnx", steps), "trust": False}))
    assert not foreign.scales_intensities
    network = foreign.network((0.0, 1.0), "cpu", "float32")
    given = torch.from_numpy(np.asarray(by_hand(IMAGE.numpy().astype(np.float64)), np.float32))
    torch.testing.assert_close(network.affinities(IMAGE, KEPT), expected(given), rtol=1e-3, atol=1e-4)


def test_declarations_in_a_file(tmp_path: Path) -> None:
    saved.save_onnx(tmp_path)
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump({**DECLARED, "path": "net.onnx", "input_shape": list(saved.PATCH)}))
    assert resolved(str(file)) == declare({"path": tmp_path / "net.onnx", "trust": False})
    assert read_declaration(file, trust=True).trust
    for values, message in (
        ({**DECLARED, "trust": True}, "says itself that it is to be trusted"),
        (["net.onnx"], "must hold keys and values"),
        ({**DECLARED, "path": "net.onnx", "output": None}, "theirs.yaml: output: "),
        ({"path": "net.onnx", "output": "logits"}, "declare what the channels are"),
    ):
        file.write_text(yaml.safe_dump(values | {"input_shape": [8, 10, 12]} if isinstance(values, dict) else values))
        with pytest.raises(InputError, match=message):
            resolved(str(file))


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.pt", "package/rdf.yaml"])
def test_a_bare_path_of_a_foreign_model_asks_for_a_declaration(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="not one of ours, whose conventions travel with it; declare them"):
        resolved(str(tmp_path / name))
