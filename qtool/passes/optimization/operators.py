"""The operators that a pass may add to a graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

ONNXRUNTIME_DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The operators of the runtime that the result is for.

    Attributes:
        onnxruntime: whether it has onnxruntime's own operators, those of ``com.microsoft``.
        rotary_embedding: whether there is an operator for rotary embeddings, where the opset has one.
    """

    onnxruntime: bool = False
    rotary_embedding: bool = True


def opset_of(model: ir.Model) -> int:
    """Returns the version of the standard's operators that a model uses; 1 where it names none."""
    return model.opset_imports.get("", 1)


def use_onnxruntime(model: ir.Model) -> None:
    """Lets a model use onnxruntime's own operators."""
    model.opset_imports.setdefault(ONNXRUNTIME_DOMAIN, 1)
