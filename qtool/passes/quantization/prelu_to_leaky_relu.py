"""Replaces PRelu with a scalar slope by LeakyRelu, which runs on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import constant_array
from qtool.passes.quantization.arithmetic import replace_node


class PReluToLeakyRelu(ir.passes.InPlacePass):
    """Replaces each PRelu whose slope is one stored float32 number, torch's default."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces each such node under its own name."""
        modified = False
        for node in list(model.graph):
            if node.domain != "" or node.op_type != "PRelu":
                continue
            slope = constant_array(node.inputs[1])
            if slope is None or slope.size != 1 or slope.dtype != np.float32:
                continue
            attributes = {"alpha": float(slope.reshape(()))}
            leaky = ir.node("LeakyRelu", [node.inputs[0]], name=node.name, attributes=attributes)
            replace_node(model.graph, node, leaky)
            modified = True
        return ir.passes.PassResult(model, modified=modified)
