"""Keeps onnxruntime from quantizing layers that were meant to stay float.

Since 1.20, onnxruntime quantizes the float weights of a layer by itself, per tensor, when the layer reads a
DequantizeLinear and its output goes to a QuantizeLinear. A Sum of one tensor between the layer and the QuantizeLinear
computes nothing and stands in its way; onnxruntime removes other operators without effect, but not this one.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.passes.constants import is_constant, sole_consumer

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_ABSORBED = ("Relu", "Clip")


class KeepFloatLayers(ir.passes.InPlacePass):
    """Separates float layers from the QuantizeLinear behind them, where they also read a DequantizeLinear."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inserts one Sum behind each such layer."""
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type in _LAYERS and _would_be_quantized(node):
                _separate(model.graph, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _would_be_quantized(node: ir.Node) -> bool:
    source, weight = node.inputs[0], node.inputs[1]
    maker = None if source is None else source.producer()
    if maker is None or maker.op_type != "DequantizeLinear" or not is_constant(weight):
        return False
    reader = sole_consumer(node.outputs[0])
    while reader is not None and reader.op_type in _ABSORBED:
        reader = sole_consumer(reader.outputs[0])
    return reader is not None and reader.op_type == "QuantizeLinear"


def _separate(graph: ir.Graph, node: ir.Node) -> None:
    output = node.outputs[0]
    uses = list(output.uses())
    separator = ir.node("Sum", [output], name=f"{node.name}_kept_float")
    kept = separator.outputs[0]
    kept.name, kept.shape, kept.type = f"{output.name}_kept_float", output.shape, output.type
    for use in uses:
        use.node.replace_input_with(use.idx, kept)
    graph.insert_after(node, separator)
