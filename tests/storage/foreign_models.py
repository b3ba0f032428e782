"""One small network saved in every format that others use, with the truth of what it answers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

PATCH = (8, 10, 12)


class Valid(nn.Module):
    """A convolution without padding: an answer two voxels smaller along each axis, four logits."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.conv = nn.Conv3d(1, channels, 3)
        for parameter in self.conv.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.conv(image)
        return answer


def make(channels: int = 4) -> Valid:
    """What a `package.module:callable` may be."""
    return Valid(channels)


def function() -> Any:
    """A callable that gives a function on tensors."""
    return Valid().eval()


def nothing() -> str:
    """A callable that gives nothing of use."""
    return "a network"


def save_export(folder: Path) -> Path:
    path = folder / "net.pt2"
    torch.export.save(torch.export.export(Valid().eval(), (torch.zeros(1, 1, *PATCH),)), path)
    return path


def save_torchscript(folder: Path) -> Path:
    path = folder / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Valid().eval()), path)
    return path


def save_onnx(folder: Path) -> Path:
    net = Valid()
    names = {"weight": net.conv.weight, "bias": net.conv.bias}
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["answer"])],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 1, *PATCH])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["b", 4, *(side - 2 for side in PATCH)])],
        [numpy_helper.from_array(tensor.detach().numpy(), name) for name, tensor in names.items()],
    )
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def save_weights(folder: Path, suffix: str = ".safetensors") -> Path:
    path = folder / f"weights{suffix}"
    state = Valid().state_dict()
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


ARCHITECTURE = """
from torch import nn

class Valid(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 3)

    def forward(self, image):
        return self.conv(image)
"""


def save_package(folder: Path, kind: str, preprocessing: list[dict[str, Any]] | None = None) -> Path:
    """A package of bioimage.io 0.5; returns its folder."""
    package = folder / f"package-{kind}"
    package.mkdir()
    if kind == "onnx":
        weights: dict[str, Any] = {"onnx": {"source": save_onnx(package).name, "opset_version": 17}}
    elif kind == "torchscript":
        source = save_torchscript(package).name
        weights = {"torchscript": {"source": source, "pytorch_version": "2.0"}}
    else:
        (package / "net.py").write_text(ARCHITECTURE)
        architecture = {"source": "net.py", "callable": "Valid", "kwargs": {"channels": 4}}
        source = save_weights(package, ".pth").name
        weights = {"pytorch_state_dict": {"source": source, "architecture": architecture, "pytorch_version": "2.0"}}
    sizes = dict(zip("zyx", PATCH, strict=True))
    np.save(package / "in.npy", np.zeros((1, 1, *PATCH), np.float32))
    np.save(package / "out.npy", np.zeros((1, 4, *(side - 2 for side in PATCH)), np.float32))
    (package / "README.md").write_text("A network for tests.")
    size = {axis: {"tensor_id": "image", "axis_id": axis, "offset": -2} for axis in "zyx"}
    description = {
        "type": "model",
        "format_version": "0.5.4",
        "name": "A network for tests",
        "description": "Answers with noise",
        "authors": [{"name": "nobody"}],
        "cite": [{"text": "none", "url": "https://example.org"}],
        "license": "CC0-1.0",
        "documentation": "README.md",
        "inputs": [
            {
                "id": "image",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["em"]}]
                + [{"type": "space", "id": axis, "size": {"min": sizes[axis], "step": 2}} for axis in "zyx"],
                "data": {"type": "float32"},
                "preprocessing": preprocessing or [],
                "test_tensor": {"source": "in.npy"},
            }
        ],
        "outputs": [
            {
                "id": "affinities",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": list("zyxm")}]
                + [{"type": "space", "id": axis, "size": size[axis], "halo": 1} for axis in "zyx"],
                "data": {"type": "float32"},
                "test_tensor": {"source": "out.npy"},
            }
        ],
        "weights": weights,
    }
    (package / "rdf.yaml").write_text(yaml.safe_dump(description))
    return package
