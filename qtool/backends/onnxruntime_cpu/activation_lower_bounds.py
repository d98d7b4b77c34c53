"""Finds lower bounds of activations, below which all values give the same result.

A hard swish, x * clip(x + 3, 0, 6) / 6, is zero for every x below -3: a grid for x need not cover smaller values, even
if the data has them.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import constant_number
from qtool.passes.quantization.constant_chains import constant_operand

# Below this, x * sigmoid(x) is between -0.0005 and 0, less than half a step of any 8-bit grid that reaches 1.
_SIGMOID_IS_ZERO = -10.0


def activation_lower_bound(value: ir.Value) -> float | None:
    """Returns the bound below which all values give the same result, or None where there is none.

    All readers must be one gate: a clamp of x + c, HardSigmoid or Sigmoid, whose output multiplies x itself.
    """
    if value.is_graph_output():
        return None
    products: set[ir.Node] = set()
    gates: list[tuple[ir.Node, ir.Value, float]] = []
    for use in value.uses():
        gate = _gate(use.node)
        if gate is not None:
            gates.append((use.node, *gate))
        elif use.node.domain == "" and use.node.op_type == "Mul":
            products.add(use.node)
        else:
            return None
    if not gates:
        return None
    outputs = {id(output) for _, output, _ in gates}
    # Each product must be of x and a gate of it, and each gate must have no other reader.
    for product in products:
        if not any(id(operand) in outputs for operand in product.inputs if operand is not value):
            return None
    for _, output, _ in gates:
        if output.is_graph_output() or any(use.node not in products for use in output.uses()):
            return None
    return min(low for _, _, low in gates)


def _gate(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Returns a gate's output and the input up to which it is zero."""
    if node.domain != "":
        return None
    if node.op_type == "Sigmoid":
        return node.outputs[0], _SIGMOID_IS_ZERO
    if node.op_type == "HardSigmoid":
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        slope = 0.2 if alpha is None else alpha.as_float()
        offset = 0.5 if beta is None else beta.as_float()
        return (node.outputs[0], -offset / slope) if slope > 0 else None
    found = constant_operand(node) if node.op_type == "Add" else None
    if found is None or found[1].size != 1 or len(node.outputs[0].uses()) != 1:
        return None
    offset = float(found[1].reshape(()))
    clamp = next(iter(node.outputs[0].uses())).node
    if clamp.domain != "" or clamp.op_type != "Clip" or len(clamp.inputs) < 2 or clamp.inputs[1] is None:
        return None
    if constant_number(clamp.inputs[1]) != 0.0:
        return None
    return clamp.outputs[0], -offset
