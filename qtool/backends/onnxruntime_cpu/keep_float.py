"""Prevents onnxruntime from quantizing nodes that have to stay float.

Since 1.20, onnxruntime quantizes the float weights of a layer by itself, per tensor, when the layer reads a
DequantizeLinear and its output goes to a QuantizeLinear. A Sum of one tensor between the layer and the QuantizeLinear
has no effect on the result and prevents that; onnxruntime removes other no-ops, but not this one. It also stops
onnxruntime from moving a QuantizeLinear in front of a MaxPool: after float layers the integer pool would have channels
first, and take dozens of times as long.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.names import Names

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_ABSORBED = ("Relu", "Clip")
# Operators in front of which onnxruntime moves a QuantizeLinear.
_PASSED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


class KeepFloatLayers(ir.passes.InPlacePass):
    """Separates float layers and pools from the QuantizeLinear after them, where onnxruntime would quantize them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inserts one Sum after each such layer."""
        found = [
            node
            for node in model.graph
            if node.domain == "" and (_would_be_quantized(node) or _would_pool_integers(node))
        ]
        if found:
            names = Names(model.graph)
            for node in found:
                _separate(model.graph, node, names)
        return ir.passes.PassResult(model, bool(found))


def without_separators(model: ir.Model) -> None:
    """Removes each Sum of one tensor, which does nothing but keep a layer float, in place."""
    for node in list(model.graph):
        if node.op_type != "Sum" or node.domain != "" or len(node.inputs) != 1 or node.outputs[0].is_graph_output():
            continue
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, node.inputs[0])
        model.graph.remove(node, safe=True)


def _would_be_quantized(node: ir.Node) -> bool:
    if node.op_type not in _LAYERS:
        return False
    source, weight = node.inputs[0], node.inputs[1]
    producer = None if source is None else source.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or not is_constant(weight):
        return False
    reader = _only_reader(node)
    while reader is not None and reader.op_type in _ABSORBED:
        reader = _only_reader(reader)
    return reader is not None and reader.op_type == "QuantizeLinear"


def _only_reader(node: ir.Node) -> ir.Node | None:
    """Returns the node that alone reads what ``node`` makes; that it is an output as well is all the same here."""
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None


def _would_pool_integers(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "MaxPool" or source is None or _made_by(source) == "DequantizeLinear":
        return False
    return any(use.node.op_type in ("QuantizeLinear", *_PASSED) for use in node.outputs[0].uses())


def _made_by(value: ir.Value) -> str | None:
    producer = value.producer()
    return None if producer is None else producer.op_type


def _separate(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    output = node.outputs[0]
    uses = list(output.uses())
    separator = ir.node("Sum", [output], name=names.for_node(f"{node.name}_kept_float"))
    kept = separator.outputs[0]
    kept.name, kept.shape, kept.type = names.free(f"{output.name}_kept_float"), output.shape, output.type
    for use in uses:
        use.node.replace_input_with(use.idx, kept)
    graph.insert_after(node, separator)
