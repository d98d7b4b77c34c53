"""Folds the factors of a Gemm into its weights and bias: integer kernels have none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names


class FoldGemmFactors(ir.passes.InPlacePass):
    """Writes alpha * A * B + beta * C as A * (alpha * B) + (beta * C), where B and C are float32 constants."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Folds each factor separately; that of a computed operand stays."""
        modified = False
        names = Names(model.graph)
        for node in model.graph:
            if node.op_type == "Gemm" and node.domain == "":
                folded = [_fold(model.graph, node, name, names) for name in ("alpha", "beta")]
                modified = any(folded) or modified
        return ir.passes.PassResult(model, modified)


def _fold(graph: ir.Graph, node: ir.Node, name: str, names: Names) -> bool:
    attribute = node.attributes.get(name)
    factor = 1.0 if attribute is None else attribute.as_float()
    if factor == 1.0:
        return False
    # Without a third input, beta has no effect.
    if name == "beta" and (len(node.inputs) < 3 or node.inputs[2] is None):
        del node.attributes[name]
        return True
    # Alpha may be folded into either factor of the product; weights are usually the second.
    for index in (1, 0) if name == "alpha" else (2,):
        value = node.inputs[index]
        array = constant_array(value)
        if value is None or array is None or array.dtype != np.float32:
            continue
        with np.errstate(over="ignore"):
            scaled = (array.astype(np.float64) * factor).astype(np.float32)
        if np.isfinite(array).all() and not np.isfinite(scaled).all():
            continue
        node.replace_input_with(index, add_constant(graph, f"{value.name}_scaled", scaled, names=names))
        del node.attributes[name]
        return True
    return False
