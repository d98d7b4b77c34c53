"""Relus in a row become one, and clamps that do something stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from qtool.passes.quantization.join_relus import JoinRelus

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Tanh (x) b = Relu (a) c = Relu (b) d = Relu (c) y = Tanh (d)", ["Tanh", "Relu", "Tanh"]),
        ("a = Tanh (x) b = Relu (a) y = Relu (b)", ["Tanh", "Relu"]),
        # Both values are outputs, and each has to be made by a node of its own.
        ("y = Relu (x) z = Relu (y)", ["Relu", "Relu"]),
        ("a = Relu (x) b = Neg (a) y = Relu (b)", ["Relu", "Neg", "Relu"]),
        ("y = Relu (x)", ["Relu"]),
    ],
)
def test_relus_in_a_row_become_one(parsed: Parsed, applied: Applied, body: str, left: list[str]) -> None:
    outputs = "float[N,4] y, float[N,4] z" if "z =" in body else "float[N,4] y"
    model: Any = applied(parsed(f"g (float[N,4] x) => ({outputs}) {{ {body} }}"), JoinRelus())
    assert [node.op_type for node in model.graph] == left
    assert JoinRelus()(model).modified is False
