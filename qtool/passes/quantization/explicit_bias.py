"""Gives every Conv and Gemm with stored weights a bias, zero where it had none, for bias correction."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, integer_attribute, is_constant
from qtool.graph.names import Names


class ExplicitBias(ir.passes.InPlacePass):
    """Adds a zero bias; integer kernels always add one, so it costs nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes Conv and Gemm nodes whose third input is missing and whose weights are float32 constants."""
        modified = False
        names = Names(model.graph)
        for node in model.graph:
            if node.domain != "" or node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 2:
                continue
            weight = node.inputs[1]
            if weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT or weight.shape is None:
                continue
            if len(node.inputs) > 2 and node.inputs[2] is not None:
                continue
            axis = 0 if node.op_type == "Conv" or integer_attribute(node, "transB", 0) else 1
            channels = weight.shape.numpy()[axis]
            node.resize_inputs(3)
            bias = add_constant(model.graph, f"{node.name}_zero_bias", np.zeros(channels, np.float32), names=names)
            node.replace_input_with(2, bias)
            # Without a bias it had no effect.
            node.attributes.pop("beta", None)
            modified = True
        return ir.passes.PassResult(model, modified)
