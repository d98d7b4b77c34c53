"""Writes operators that are integer arithmetic themselves as DequantizeLinear, the float operator and QuantizeLinear.

Sources: the ONNX operators QLinearConv and QLinearMatMul, https://onnx.ai/onnx/operators/, and those of onnxruntime's
com.microsoft domain, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names

_MICROSOFT = "com.microsoft"
# Operators with one scale per tensor: the float one behind them, and the place of each input that is followed by its
# scale and zero point. The scale and zero point of the output come last.
_PLAIN: Mapping[tuple[str, str], tuple[str, int]] = {
    (_MICROSOFT, "QLinearAdd"): ("Add", 2),
    (_MICROSOFT, "QLinearMul"): ("Mul", 2),
    (_MICROSOFT, "QLinearSigmoid"): ("Sigmoid", 1),
    (_MICROSOFT, "QLinearLeakyRelu"): ("LeakyRelu", 1),
    (_MICROSOFT, "QLinearGlobalAveragePool"): ("GlobalAveragePool", 1),
    (_MICROSOFT, "QLinearAveragePool"): ("AveragePool", 1),
}
# Operators that only move values take integers as they are.
_MOVING = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity", "Gather", "Expand"}
)
_LAYOUT = "channels_last"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """A float operator.

    Attributes:
        op_type: its name.
        inputs: what it takes.
        grid: scale and zero point of what it gives; None where that stays float.
        without: attributes that only the integer operator has.
    """

    op_type: str
    inputs: Sequence[ir.Value | None]
    grid: Sequence[ir.Value | None] | None
    without: Sequence[str] = ()


class SpellOutIntegers(ir.passes.InPlacePass):
    """Replaces QLinearConv, QLinearMatMul, QGemm and similar; those with other layouts of channels or scales stay."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces supported operators, in graph order, so that moved integers are found, too."""
        writer = _Writer(model.graph)
        modified = [writer.replace(node) for node in list(model.graph)]
        return ir.passes.PassResult(model, any(modified))


class _Writer:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)

    def replace(self, node: ir.Node) -> bool:
        """Writes one node in float; returns whether it is one of those that can be."""
        form = self._form(node)
        if form is None:
            return False
        attributes = [attribute for name, attribute in node.attributes.items() if name not in form.without]
        plain = ir.node(form.op_type, list(form.inputs), name=node.name)
        for attribute in attributes:
            plain.attributes.add(attribute)
        output, result = node.outputs[0], plain.outputs[0]
        new = [plain]
        if form.grid is None:
            result.type, result.shape = output.type, output.shape
        else:
            result.name = self._names.free(f"{output.name}_float")
            result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), output.shape
            new.append(ir.node("QuantizeLinear", [result, *form.grid], name=self._names.for_node(f"{node.name}_grid")))
            new[-1].outputs[0].type, new[-1].outputs[0].shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], new, [output], [new[-1].outputs[0]])
        return True

    def _form(self, node: ir.Node) -> _Form | None:
        inputs = list(node.inputs)
        if integer_attribute(node, _LAYOUT, 0):
            return None
        if node.domain == "" and node.op_type == "QLinearConv":
            return self._conv(node, [*inputs, *[None] * (9 - len(inputs))])
        if node.domain == "" and node.op_type == "QLinearMatMul":
            return self._matmul(node, inputs)
        if node.domain == _MICROSOFT and node.op_type == "QGemm":
            return self._gemm(node, [*inputs, *[None] * (9 - len(inputs))])
        if (node.domain, node.op_type) in _PLAIN:
            op_type, count = _PLAIN[node.domain, node.op_type]
            floats = [self._float(node, *inputs[3 * place : 3 * place + 3]) for place in range(count)]
            return _Form(op_type=op_type, inputs=floats, grid=inputs[3 * count :], without=[_LAYOUT])
        if node.domain == "" and node.op_type in _MOVING and inputs and inputs[0] is not None:
            quantize = inputs[0].producer()
            if quantize is not None and quantize.op_type == "QuantizeLinear" and len(node.outputs) == 1:
                grid = list(quantize.inputs[1:])
                return _Form(op_type=node.op_type, inputs=[self._float(node, inputs[0], *grid), *inputs[1:]], grid=grid)
        return None

    def _conv(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> _Form | None:
        x, x_scale, x_zero, weight, scale, zero, y_scale, y_zero, bias = inputs
        floats = [self._float(node, x, x_scale, x_zero), self._float(node, weight, scale, zero, axis=0)]
        if bias is not None:
            grid = self._product(node, x_scale, scale)
            if grid is None:
                return None
            floats.append(self._float(node, bias, grid, None, axis=0))
        return _Form(op_type="Conv", inputs=floats, grid=[y_scale, y_zero])

    def _matmul(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> _Form | None:
        a, a_scale, a_zero, b, b_scale, b_zero, *grid = inputs
        # Rows of the first and columns of the second may have scales of their own; those of batches are another form.
        if _scales(a_scale) != 1 or _rank(b_scale) > 1 or (_scales(b_scale) != 1 and b is not None and b.shape is None):
            return None
        axis = 0 if b is None or b.shape is None else len(b.shape) - 1
        floats = [self._float(node, a, a_scale, a_zero), self._float(node, b, b_scale, b_zero, axis=axis)]
        return _Form(op_type="MatMul", inputs=floats, grid=grid)

    def _gemm(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> _Form | None:
        a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = inputs
        columns = 0 if integer_attribute(node, "transB", 0) else 1
        floats = [self._float(node, a, a_scale, a_zero), self._float(node, b, b_scale, b_zero, axis=columns)]
        if c is not None:
            alpha = node.attributes.get("alpha")
            grid = self._product(node, a_scale, b_scale, 1.0 if alpha is None else alpha.as_float())
            if grid is None:
                return None
            last = 0 if c.shape is None else len(c.shape) - 1
            floats.append(self._float(node, c, grid, None, axis=last))
        return _Form(op_type="Gemm", inputs=floats, grid=None if y_scale is None else [y_scale, y_zero])

    def _float(
        self,
        node: ir.Node,
        value: ir.Value | None,
        scale: ir.Value | None = None,
        zero: ir.Value | None = None,
        *,
        axis: int | None = None,
    ) -> ir.Value | None:
        """Inserts a DequantizeLinear before ``node`` and returns its output."""
        if value is None:
            return None
        attributes = {} if axis is None or _scales(scale) == 1 else {"axis": axis}
        inputs = [value, scale] if zero is None else [value, scale, zero]
        dequantize = ir.node("DequantizeLinear", inputs, attributes, name=self._names.for_node(f"{value.name}_float"))
        result = dequantize.outputs[0]
        result.name = self._names.free(f"{value.name}_dequantized")
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        self._graph.insert_before(node, dequantize)
        return result

    def _product(
        self, node: ir.Node, first: ir.Value | None, second: ir.Value | None, factor: float = 1.0
    ) -> ir.Value | None:
        """Returns the scale of a sum of products; None where one of theirs is computed as the model runs."""
        arrays = [constant_array(value) for value in (first, second)]
        if arrays[0] is None or arrays[1] is None:
            return None
        product = np.asarray(arrays[0].reshape(-1) * arrays[1].reshape(-1) * np.float32(factor), np.float32)
        stored = product.reshape(()) if product.size == 1 else product
        return add_constant(self._graph, f"{node.name}_bias_scale", stored, names=self._names)


def _scales(scale: ir.Value | None) -> int:
    """Returns how many scales there are; 0 where they are computed as the model runs."""
    array = constant_array(scale)
    return 0 if array is None else int(array.size)


def _rank(scale: ir.Value | None) -> int:
    array = constant_array(scale)
    return 0 if array is None else array.ndim
