"""Exact results on a processor whose 16-bit sums saturate: shifts integers from s8 to u8.

onnxruntime multiplies u8 by u8 with VPMADDWD, whose sums have 32 bits on every x86. Weights, s8 activations and their
zero points are shifted by 128, which does not change the real values.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.backends.execution import Form, as_it_is
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names
from qtool.qdq.recurrent_layers import WEIGHTS, ZERO_POINTS, is_recurrent
from qtool.schemes import DynamicScheme, Scheme

_SHIFT = 128
_LAYERS = ("Conv", "Gemm", "MatMul")
_MATMUL_INTEGER_ZERO_POINT = 3


def exact_form(scheme: Scheme | DynamicScheme) -> Form:
    """Returns a function that gives graphs quantized by ``scheme`` a form that this processor computes exactly.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return with_exact_sums if scheme.largest_pair is None and sums_saturate() else as_it_is


def with_exact_sums(model: ir.Model) -> ir.Model:
    """Returns a copy of a graph in QDQ format, or with MatMulInteger, in which no product is u8 by s8.

    Its outputs are those of ``model`` on a processor with 32-bit sums.
    """
    changed = model.clone()
    writer = _Writer(changed.graph)
    for node in ir.traversal.RecursiveGraphIterator(changed.graph):
        if is_recurrent(node):
            writer.shift_recurrent(node)
        if node.domain != "":
            continue
        if node.op_type == "QuantizeLinear":
            writer.shift_activation(node)
        elif node.op_type in _LAYERS and len(node.inputs) > 1:
            writer.shift_weight(node)
        elif node.op_type == "MatMulInteger":
            writer.shift_stored_weight(node)
    for name, value in list(changed.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del changed.graph.initializers[name]
    return changed


class _Writer:
    """Shifts constants of one graph; each shifted constant is stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = Names(graph)
        self._shifted: dict[ir.Value, ir.Value] = {}

    def shift_activation(self, quantize: ir.Node) -> None:
        """Changes a QuantizeLinear and DequantizeLinear pair from s8 to u8, where nothing else reads the integers."""
        zero_point = quantize.inputs[2] if len(quantize.inputs) > 2 else None
        value = quantize.outputs[0]
        readers = [use.node for use in value.uses()]
        paired = readers and all(
            node.op_type == "DequantizeLinear" and len(node.inputs) > 2 and node.inputs[2] is not None
            for node in readers
        )
        if zero_point is None or not paired or value.is_graph_output() or not _is_s8(zero_point):
            return
        quantize.replace_input_with(2, self._up(zero_point))
        value.dtype = ir.DataType.UINT8
        for reader in readers:
            held = reader.inputs[2]
            if held is not None:
                reader.replace_input_with(2, self._up(held))

    def shift_weight(self, layer: ir.Node) -> None:
        """Changes the stored weights of a layer to u8."""
        value = layer.inputs[1]
        dequantize = None if value is None else value.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return
        stored, scale = dequantize.inputs[:2]
        zero_point = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
        if stored is None or scale is None or not _is_s8(stored):
            return
        shift = self._zeros_like(scale) if zero_point is None else self._up(zero_point)
        dequantize.replace_input_with(0, self._up(stored))
        if zero_point is None:
            dequantize.resize_inputs(3)
        dequantize.replace_input_with(2, shift)

    def shift_recurrent(self, node: ir.Node) -> None:
        """Shifts the weights of a DynamicQuantizeLSTM, and their zero points."""
        for index in (*WEIGHTS, *ZERO_POINTS):
            value = node.inputs[index]
            if value is not None and _is_s8(value):
                node.replace_input_with(index, self._up(value))

    def shift_stored_weight(self, product: ir.Node) -> None:
        """Changes the stored weights of a MatMulInteger to u8."""
        stored = product.inputs[1]
        if stored is None or not _is_s8(stored):
            return
        position = _MATMUL_INTEGER_ZERO_POINT
        zero_point = product.inputs[position] if len(product.inputs) > position else None
        shift = self._scalar() if zero_point is None else self._up(zero_point)
        product.replace_input_with(1, self._up(stored))
        if len(product.inputs) <= position:
            product.resize_inputs(position + 1)
        product.replace_input_with(position, shift)

    def _up(self, value: ir.Value) -> ir.Value:
        if value not in self._shifted:
            array = constant_array(value)
            if array is None:
                raise AssertionError(f"{value.name} is stored")
            shifted = (array.astype(np.int16) + _SHIFT).astype(np.uint8)
            self._shifted[value] = add_constant(self._graph, f"{value.name}_shifted", shifted, names=self._names)
        return self._shifted[value]

    def _zeros_like(self, scale: ir.Value) -> ir.Value:
        if scale not in self._shifted:
            array = constant_array(scale)
            shape = () if array is None else array.shape
            zeros = np.full(shape, _SHIFT, np.uint8)
            self._shifted[scale] = add_constant(self._graph, f"{scale.name}_zero_point", zeros, names=self._names)
        return self._shifted[scale]

    def _scalar(self) -> ir.Value:
        return add_constant(self._graph, "shifted_zero_point", np.asarray(_SHIFT, np.uint8), names=self._names)


def _is_s8(value: ir.Value) -> bool:
    array = constant_array(value)
    return array is not None and array.dtype == np.int8
