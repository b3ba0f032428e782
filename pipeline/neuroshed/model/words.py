"""Words in which networks are declared, for those who need no torch to say them."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "bfloat16"]
Answers = Literal["logits", "probabilities"]
Kind = Literal["torch.export", "torchscript", "onnx", "callable"]
"""Of networks of others, by who loads them."""
