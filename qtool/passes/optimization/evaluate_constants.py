"""Constant folding, with onnxscript."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import optimizer

from qtool.graph.constants import constant_array
from qtool.passes.normalization.split_counts import write_lengths
from qtool.passes.optimization.control_flow import forget_removed_branches, graphs_of

# Folding Q/DQ would turn the integers of a quantized model into floats again.
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
# A result of so many elements may be stored even if its inputs are kept.
_LARGEST_GROWTH = 1 << 16
# The same for a tensor with a single repeated value.
_LARGEST_FILLED = 1 << 12
# Their reference implementations are fast also for tensors above the library's limit.
_CHEAP = frozenset(
    {
        *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Cos", "Div", "Equal", "Exp", "Expand", "Flatten", "Floor"),
        *("Gather", "Greater", "Less", "Log", "Max", "Min", "Mul", "Neg", "Not", "Pad", "Pow", "Range", "Reciprocal"),
        *("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Sigmoid", "Sin", "Slice"),
        *("Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
    }
)
_LARGEST_INPUT = 1 << 26
# numpy accumulates in the type of the elements, runtimes in float32.
_SUMS = frozenset({"Gemm", "MatMul", "ReduceL2", "ReduceMean", "ReduceSum", "Softmax"})
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class EvaluateConstants(ir.passes.InPlacePass):
    """Folds constant expressions unless the file would grow, and replaces an If of a known condition by its branch."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds in one sweep; a shape without free lengths counts as constant."""
        branches = len(graphs_of(model))
        result = optimizer.fold_constants(model, output_size_limit=_LARGEST_GROWTH, should_fold=_should_fold)
        write_lengths(model)
        if len(graphs_of(model)) != branches:
            forget_removed_branches(model)
        return ir.passes.PassResult(model, modified=bool(result.modified))


def _should_fold(node: ir.Node) -> bool | None:
    """Returns whether to fold a node whose inputs are all constants; None leaves it to the library."""
    inputs = [value for value in node.inputs if value is not None]
    if node.domain != "" or node.op_type in _KEPT:
        return False
    if node.op_type in _SUMS and any(value.dtype in _HALF for value in inputs):
        return False
    if node.op_type == "ConstantOfShape":
        shape = constant_array(node.inputs[0])
        return shape is not None and math.prod(shape.tolist()) <= _LARGEST_FILLED
    if node.op_type not in _CHEAP:
        return None
    return sum(value.const_value.size for value in inputs if value.const_value is not None) <= _LARGEST_INPUT
