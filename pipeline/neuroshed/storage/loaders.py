"""Loading networks from files of other frameworks, each as a function from a tensor to a tensor."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from neuroshed.errors import InputError
from neuroshed.geometry import Vec
from neuroshed.model.foreign import Call
from neuroshed.model.words import Kind


class Declaration(Protocol):
    """What is declared of a model, as far as loading needs it."""

    @property
    def path(self) -> str:
        """File, or `package.module:callable`."""

    @property
    def weights(self) -> str | None:
        """File of a state dict."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a callable."""


@dataclass(frozen=True)
class Source:
    """Where a network comes from, before it is loaded, and what its file says of it."""

    name: str
    """What it is, in words."""
    files: Sequence[Path]
    """All that decides what it computes."""
    load: Callable[[str], Call]
    """Loads it for a device; raises `InputError` if that fails."""
    runs_code: bool
    """Whether loading can run code of whoever made it."""
    input_axes: str = "bczyx"
    output_axes: str = "bczyx"
    smallest: Vec | None = None
    """The smallest patch it takes, if it says so."""
    lost: Vec = (0, 0, 0)
    """How much smaller its answer is than a patch."""
    halo: Vec = (0, 0, 0)
    """Voxels of the answer on each side that it wants left out."""
    scaling: Call | None = None
    """Pre-processing that belongs to it."""


def open_source(declared: Declaration, kind: Kind) -> Source:
    """The source of a declared model of a kind; nothing is loaded."""
    if kind == "callable":
        files = [_module_file(declared.path)]
        files += [Path(declared.weights)] if declared.weights else []
        return Source("a callable", files, lambda device: _load_callable(declared, device), True)
    path = Path(declared.path)
    if kind == "torch.export":
        return Source("a torch.export file", [path], lambda device: load_export(path, device), True)
    if kind == "torchscript":
        return Source("TorchScript", [path], lambda device: load_torchscript(path, device), True)
    return Source("ONNX", [path], lambda device: load_onnx(path, device), False)


def load_export(path: Path, device: str) -> Call:
    """A `.pt2` file of `torch.export.save`; can run code."""
    with _told(path):
        module = torch.export.load(path).module()
    return module.to(device)


def load_torchscript(path: Path, device: str) -> Call:
    """A file of `torch.jit.save`; can run code."""
    with _told(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        load: Callable[..., nn.Module] = torch.jit.load
        module = load(str(path), map_location=device)
    return module.eval()


def load_onnx(path: Path, device: str) -> Call:
    """An ONNX file, by onnxruntime; runs no code."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"model {path} needs onnxruntime; pip install neuroshed[onnx]") from error
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        providers.insert(0, "CUDAExecutionProvider")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise InputError(
                f"model {path}: this onnxruntime knows no GPU; install onnxruntime-gpu, or set device: cpu"
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    with _told(path):
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        name = session.get_inputs()[0].name

    def call(image: Tensor) -> Tensor:
        (answer, *_) = session.run(None, {name: image.contiguous().cpu().numpy()})
        return torch.from_numpy(answer).to(device)

    return call


def load_module(module: nn.Module, weights: Path | None, device: str) -> Call:
    """A module with the weights of a file, which is read without running code."""
    if weights is not None:
        try:
            module.load_state_dict(_state_dict(weights))
        except RuntimeError as error:
            first = " ".join(str(error).split())
            raise InputError(f"weights {weights} do not fit the module: {first}") from error
    return module.to(device).eval()


def read_model_file(file: Path) -> bytes:
    """The bytes of a model's file; raises `InputError` if they cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"model file {file} cannot be read ({error.strerror}); check the path") from error


def _load_callable(declared: Declaration, device: str) -> Call:
    module_name, _, name = declared.path.partition(":")
    try:
        made = getattr(importlib.import_module(module_name), name)(**declared.arguments)
    except Exception as error:
        raise InputError(f"model {declared.path} cannot be made: {type(error).__name__}: {error}") from error
    if isinstance(made, nn.Module):
        return load_module(made, Path(declared.weights) if declared.weights else None, device)
    if declared.weights or not callable(made):
        raise InputError(
            f"model {declared.path} gave {type(made).__name__}; needed is a torch module, or without `weights` a "
            "function on tensors"
        )
    call: Call = made
    return call


def _module_file(path: str) -> Path:
    module_name, _, name = path.partition(":")
    try:
        # Finding a module imports its parents, but not itself.
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"model {path}: {error}; check the name, and PYTHONPATH on all workers") from error
    if spec is None or not spec.origin or not name:
        raise InputError(f"model {path}: there is no such module; needed is package.module:callable, on PYTHONPATH")
    return Path(spec.origin)


def _state_dict(file: Path) -> Mapping[str, Tensor]:
    data = read_model_file(file)
    try:
        if file.suffix == ".safetensors":
            tensors: Mapping[str, Tensor] = safetensors.torch.load(data)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"weights {file} cannot be read without running code ({str(error).splitlines()[0]}); save the state dict "
            "alone, best as safetensors"
        ) from error
    return tensors


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn whatever a framework raises over a file into an `InputError`."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"model {path} cannot be loaded ({reason}); save it again") from error
