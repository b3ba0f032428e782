"""Packages of bioimage.io (format 0.5): axes, halo, pre-processing and weights as their `rdf.yaml` declares them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.model.foreign import Call
from neuroshed.storage.loaders import Source, load_module, load_onnx, load_torchscript

AXES = {"batch": "b", "channel": "c"}


def open_package(path: Path) -> Source:
    """The source of a package, by the first of its weights that can be used; prefers those that run no code.

    Raises `InputError` if the package does not meet the format, or has no one-channel 3-D input.
    """
    try:
        from bioimageio.spec import load_model_description
        from bioimageio.spec.model import v0_5
    except ImportError as error:
        raise InputError(f"model {path} needs bioimageio.spec; pip install neuroshed[bioimage]") from error
    file = path / "rdf.yaml" if path.is_dir() else path
    try:
        model = load_model_description(file, perform_io_checks=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model {path} is no package of bioimage.io: {reason}") from error
    if not isinstance(model, v0_5.ModelDescr):
        raise InputError(f"model {path} has format {model.format_version}, needed is 0.5; update the package")
    if len(model.inputs) != 1 or not model.outputs:
        raise InputError(f"model {path} has {len(model.inputs)} inputs; needed is one, and an output")
    given, answer = model.inputs[0], model.outputs[0]
    input_axes, output_axes = (_axes(tensor.axes) for tensor in (given, answer))
    smallest = _smallest(given)
    name, files, load, runs_code = _weights(path, model.weights)
    return Source(
        name=f"a package with {name}",
        files=files,
        load=load,
        runs_code=runs_code,
        input_axes=input_axes,
        output_axes=output_axes,
        smallest=smallest,
        lost=_lost(path, given, answer),
        halo=_spatial(answer, lambda axis: int(getattr(axis, "halo", 0))),
        scaling=_chain([_step(path, step) for step in given.preprocessing]),
    )


def _axes(axes: Sequence[Any]) -> str:
    return "".join(AXES.get(axis.type, str(axis.id)) for axis in axes)


def _spatial(tensor: Any, value: Callable[[Any], int]) -> Vec:
    by_name = {str(axis.id): value(axis) for axis in tensor.axes if axis.type == "space"}
    z, y, x = (by_name.get(axis, 0) for axis in "zyx")
    return z, y, x


def _smallest(tensor: Any) -> Vec:
    return _spatial(tensor, lambda axis: int(getattr(axis.size, "min", axis.size)))


def _lost(path: Path, given: Any, answer: Any) -> Vec:
    """How much smaller the answer is than the input: what the sizes say that refer to it, or the fixed sizes."""

    def lost(axis: Any) -> int:
        if isinstance(axis.size, int):
            return _smallest(given)["zyx".index(str(axis.id))] - axis.size
        if getattr(axis.size, "tensor_id", None) == given.id and getattr(axis, "scale", 1.0) == 1.0:
            return -int(axis.size.offset)
        raise InputError(f"model {path}: the size of output axis {axis.id} is neither fixed nor that of the input")

    return _spatial(answer, lost)


def _weights(path: Path, weights: Any) -> tuple[str, list[Path], Callable[[str], Call], bool]:
    def local(source: Any) -> Path:
        found = source.absolute() if hasattr(source, "absolute") else source
        return Path(str(found))

    if weights.onnx:
        file = local(weights.onnx.source)
        return "ONNX", [file], lambda device: load_onnx(file, device), False
    if weights.torchscript:
        file = local(weights.torchscript.source)
        return "TorchScript", [file], lambda device: load_torchscript(file, device), True
    if weights.pytorch_state_dict:
        state = weights.pytorch_state_dict
        file, architecture = local(state.source), state.architecture
        code = [local(architecture.source)] if hasattr(architecture, "source") else []
        make = _architecture(path, architecture, code)
        return "a network in Python", [file, *code], lambda device: load_module(make(), file, device), True
    raise InputError(f"model {path} has no weights of a usable kind: onnx, torchscript or pytorch_state_dict")


def _architecture(path: Path, architecture: Any, code: list[Path]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        try:
            if code:
                spec = importlib.util.spec_from_file_location(f"neuroshed_package_{code[0].stem}", code[0])
                assert spec is not None
                assert spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(architecture.import_from)
            made = getattr(module, str(architecture.callable))(**architecture.kwargs)
        except Exception as error:
            raise InputError(f"model {path}: its network cannot be made: {type(error).__name__}: {error}") from error
        assert isinstance(made, nn.Module)
        return made

    return make


def _chain(steps: list[Call]) -> Call:
    def prepare(image: Tensor) -> Tensor:
        for step in steps:
            image = step(image)
        return image

    return prepare


def _step(path: Path, step: Any) -> Call:
    """A step of pre-processing, on `(b, c, z, y, x)`; statistics are those of each patch."""
    name, options = str(step.id), _options(step)
    if name == "ensure_dtype":
        return lambda image: image
    if name == "clip":
        return lambda image: image.clamp(options.min, options.max)
    if name == "binarize":
        return lambda image: (image > options.threshold).float()
    if name == "sigmoid":
        return torch.sigmoid
    if name == "scale_linear":
        gain, offset = (_number(path, value) for value in (options.gain, options.offset))
        return lambda image: image * gain + offset
    if name == "fixed_zero_mean_unit_variance":
        mean, std = (_number(path, value) for value in (options.mean, options.std))
        return lambda image: (image - mean) / std
    if name == "zero_mean_unit_variance":
        return lambda image: _standardised(image, float(options.eps))
    if name == "scale_range" and options.reference_tensor is None:
        return lambda image: _ranged(image, options.min_percentile, options.max_percentile, float(options.eps))
    raise InputError(f"model {path}: pre-processing {name} is not supported; save the model with it inside")


def _options(step: Any) -> Any:
    return getattr(step, "kwargs", None)


def _number(path: Path, value: Any) -> float:
    values = [value] if isinstance(value, int | float) else list(value)
    if len(values) != 1:
        raise InputError(f"model {path}: its pre-processing is for {len(values)} channels, an image has one")
    return float(values[0])


def _standardised(image: Tensor, eps: float) -> Tensor:
    sides = (1, 2, 3, 4)
    return (image - image.mean(sides, keepdim=True)) / (image.std(sides, correction=0, keepdim=True) + eps)


def _ranged(image: Tensor, low: float, high: float, eps: float) -> Tensor:
    flat = image.flatten(1).sort(1).values
    ends = []
    for percentile in (low, high):
        place = (flat.shape[1] - 1) * percentile / 100
        below = int(place)
        above = min(below + 1, flat.shape[1] - 1)
        ends.append((flat[:, below] + (flat[:, above] - flat[:, below]) * (place - below)).view(-1, 1, 1, 1, 1))
    return (image - ends[0]) / (ends[1] - ends[0] + eps)
