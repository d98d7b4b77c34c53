"""Gives constants that are outputs of the graph as well to their readers under another name.

What then changes a layer's weights cannot change what the graph gives out.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.names import Names


class SeparateConstantOutputs(ir.passes.InPlacePass):
    """Lets the readers of a constant output read a constant of their own, which shares its tensor."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Separates each output that is a constant with readers."""
        graph = model.graph
        shared = [value for value in dict.fromkeys(graph.outputs) if is_constant(value) and value.uses()]
        for value in shared:
            name = Names(graph).free(f"{value.name}_read")
            read = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            graph.register_initializer(read)
            for use in tuple(value.uses()):
                use.node.replace_input_with(use.idx, read)
        return ir.passes.PassResult(model, modified=bool(shared))
