"""Writes what tf2onnx leaves behind in operators that ONNX has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.passes.arithmetic import replace_node
from qtool.passes.constants import add_constant
from qtool.passes.names import Names


class RewriteErfc(ir.passes.InPlacePass):
    """Rewrites erfc(x), which Keras puts into a Gelu and ONNX does not have, as 1 - erf(x)."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites each such node of the graph itself."""
        modified = False
        names = Names(model.graph)
        for node in [node for node in model.graph if node.op_type == "Erfc" and not node.domain]:
            value = node.inputs[0]
            dtype = None if value is None else value.dtype
            one = np.asarray(1, np.float32 if dtype is None else dtype.numpy())
            erf = ir.node("Erf", [value], name=f"{node.name}_erf")
            erf.outputs[0].name = names.free(f"{node.outputs[0].name}_erf")
            erf.outputs[0].type, erf.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
            model.graph.insert_before(node, erf)
            constant = add_constant(model.graph, f"{node.outputs[0].name}_one", one, names=names)
            replace_node(model.graph, node, ir.node("Sub", [constant, erf.outputs[0]], name=node.name))
            modified = True
        return ir.passes.PassResult(model, modified=modified)
