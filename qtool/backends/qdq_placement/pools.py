"""Pools that run faster on integers than in float in onnxruntime."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx_ir as ir

from qtool.graph.constants import is_constant

# Operators between a Conv and a pool that keep the layout.
_KEEPING_LAYOUT = frozenset(
    {"Add", "AveragePool", "Clip", "Concat", "Div", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul"}
    | {"PRelu", "Relu", "Resize", "Sigmoid", "Softplus", "Sub", "Sum", "Tanh"}
)


def has_channels_last(value: ir.Value | None, integer: AbstractSet[ir.Node]) -> bool:
    """Returns whether ``value`` comes from a Conv of ``integer``, through element-wise operators that keep the layout.

    onnxruntime's 8-bit integer pools with channels first take dozens of times as long as those in float.
    """
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value is None or value in seen or is_constant(value):
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None:
            continue
        if producer.op_type == "Conv":
            if producer in integer:
                return True
            continue
        if producer.op_type in _KEEPING_LAYOUT:
            waiting += producer.inputs
    return False
