"""Spells HardSwish and HardSigmoid out, since onnxruntime has no integer kernels for them, but has for their parts.

Source: operators HardSigmoid and HardSwish of the ONNX specification.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.optimization.operators import opset_of
from qtool.passes.arithmetic import replace_node
from qtool.passes.constants import add_constant
from qtool.passes.names import Names

# From here on Clip takes its bounds as inputs.
_FIRST_OPSET = 11
_HARD_SWISH_SLOPE, _HARD_SWISH_OFFSET = 1 / 6, 0.5
_HARD_SIGMOID_SLOPE, _HARD_SIGMOID_OFFSET = 0.2, 0.5


class SpellOutHardSwish(ir.passes.InPlacePass):
    """Writes HardSigmoid(x) as clip(slope * x + offset, 0, 1), and HardSwish(x) as x times that, in float32."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every one of them."""
        if opset_of(model) < _FIRST_OPSET:
            return ir.passes.PassResult(model, modified=False)
        names = Names(model.graph)
        modified = False
        for node in [node for node in model.graph if node.op_type in ("HardSwish", "HardSigmoid") and not node.domain]:
            source = node.inputs[0]
            if source is not None and source.dtype == ir.DataType.FLOAT:
                _spell_out(model.graph, node, source, names)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _spell_out(graph: ir.Graph, node: ir.Node, source: ir.Value, names: Names) -> None:
    slope, offset = _HARD_SWISH_SLOPE, _HARD_SWISH_OFFSET
    if node.op_type == "HardSigmoid":
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        slope = _HARD_SIGMOID_SLOPE if alpha is None else alpha.as_float()
        offset = _HARD_SIGMOID_OFFSET if beta is None else beta.as_float()

    label = node.name or names.free("hard_swish")

    def constant(name: str, number: float) -> ir.Value:
        return add_constant(graph, f"{label}_{name}", np.asarray(number, np.float32), names=names)

    def step(op_type: str, inputs: list[ir.Value]) -> ir.Value:
        made = ir.node(op_type, inputs, name=f"{label}_{op_type}")
        output = made.outputs[0]
        output.name, output.type, output.shape = names.free(f"{label}_{op_type}"), source.type, source.shape
        graph.insert_before(node, made)
        return output

    raised = step("Add", [step("Mul", [source, constant("slope", slope)]), constant("offset", offset)])
    bounds = [constant("low", 0.0), constant("high", 1.0)]
    if node.op_type == "HardSigmoid":
        replace_node(graph, node, ir.node("Clip", [raised, *bounds], name=node.name))
    else:
        replace_node(graph, node, ir.node("Mul", [source, step("Clip", [raised, *bounds])], name=node.name))
