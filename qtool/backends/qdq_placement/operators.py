"""The operators that onnxruntime's CPU provider can run between DQ and Q.

Each row was read from the optimized graph and is covered by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

import onnx_ir as ir

# None is an unknown type.
FLOAT_TYPES = (None, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# No activation of a working model is that large; such a value represents minus infinity in a mask.
LARGEST_ACTIVATION = 1e8


class Kind(Enum):
    """How an operator can take part in integer arithmetic."""

    LAYER = auto()
    """Multiplies by weights: the reason to quantize."""
    ELEMENTWISE = auto()
    """Has an integer kernel that rescales, between DQ on every input and Q on its output."""
    MOVING = auto()
    """Moves or selects values, so that integers pass through with unchanged parameters."""
    CLAMPING = auto()
    """Is absorbed into the Q after it when the grid ends where it clamps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One row of the table.

    Attributes:
        kind: how it takes part.
        data_inputs: positions of the inputs that are quantized; None for all of them.
        needs_integer_output: whether it runs on integers only when its output is quantized too.
    """

    kind: Kind
    data_inputs: tuple[int, ...] | None = (0,)
    needs_integer_output: bool = True


OPERATORS: Mapping[str, Operator] = {
    "Conv": Operator(kind=Kind.LAYER, data_inputs=(0, 1)),
    "Gemm": Operator(kind=Kind.LAYER, data_inputs=(0, 1), needs_integer_output=False),
    "MatMul": Operator(kind=Kind.LAYER, data_inputs=(0, 1), needs_integer_output=False),
    "Add": Operator(kind=Kind.ELEMENTWISE, data_inputs=None),
    "Mul": Operator(kind=Kind.ELEMENTWISE, data_inputs=None),
    "Concat": Operator(kind=Kind.ELEMENTWISE, data_inputs=None),
    "Where": Operator(kind=Kind.ELEMENTWISE, data_inputs=(1, 2)),
    "AveragePool": Operator(kind=Kind.ELEMENTWISE),
    "GlobalAveragePool": Operator(kind=Kind.ELEMENTWISE),
    "Sigmoid": Operator(kind=Kind.ELEMENTWISE),
    "LeakyRelu": Operator(kind=Kind.ELEMENTWISE),
    "MaxPool": Operator(kind=Kind.MOVING),
    "Reshape": Operator(kind=Kind.MOVING),
    "Flatten": Operator(kind=Kind.MOVING),
    "Transpose": Operator(kind=Kind.MOVING),
    "Squeeze": Operator(kind=Kind.MOVING),
    "Unsqueeze": Operator(kind=Kind.MOVING),
    "Slice": Operator(kind=Kind.MOVING),
    "Gather": Operator(kind=Kind.MOVING),
    "GatherElements": Operator(kind=Kind.MOVING),
    "ReduceMax": Operator(kind=Kind.MOVING),
    "ReduceMin": Operator(kind=Kind.MOVING),
    "Expand": Operator(kind=Kind.MOVING),
    "Tile": Operator(kind=Kind.MOVING),
    "Split": Operator(kind=Kind.MOVING),
    "Resize": Operator(kind=Kind.MOVING),
    "DepthToSpace": Operator(kind=Kind.MOVING),
    "Relu": Operator(kind=Kind.CLAMPING),
    "Clip": Operator(kind=Kind.CLAMPING),
}
