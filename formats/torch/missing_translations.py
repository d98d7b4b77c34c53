"""Translates operators of torch that its exporter does not support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns a translation for each operator, in the format of ``torch.onnx.export``."""
    return {torch.ops.aten.masked_select.default: _masked_select}


def _masked_select(self: Any, mask: Any) -> Any:
    """Picks the values that a mask names, in order, once both have the same shape."""
    flat: Any = opset18.Constant(value_ints=[-1])
    values = opset18.Expand(self, opset18.Shape(mask))
    flags = opset18.Expand(mask, opset18.Shape(self))
    return opset18.Compress(opset18.Reshape(values, flat), opset18.Reshape(flags, flat))
