"""Which kernel of onnxruntime's CPU provider runs every node, and in which precision."""

from __future__ import annotations

import onnx_ir as ir

from qtool.backends.node_kernel import INTEGERS, NodeKernel
from qtool.backends.onnxruntime_cpu.coverage import coverage_in, optimized_nodes
from qtool.graph.specs import dtype_name


def kernels_of(model: ir.Model) -> dict[str, NodeKernel]:
    """Opens ``model``, whose nodes all have names, and returns what runs the nodes of its main graph, by name.

    Raises:
        RuntimeRefusedError: onnxruntime does not load it.
    """
    found = {}
    with optimized_nodes(model) as kept:
        integer = {row.node: row.kernel for row in coverage_in(model, kept).nodes if row.kernel is not None}
        for node in model.graph:
            name = node.name or ""
            if name in integer:
                found[name] = NodeKernel(kernel=integer[name], precision=INTEGERS)
            elif name in kept:
                found[name] = NodeKernel(kernel=kept[name].op_type, precision=_type_of(node))
            else:
                found[name] = NodeKernel(kernel=None, precision=None)
    return found


def _type_of(node: ir.Node) -> str | None:
    return dtype_name(node.outputs[0]) if node.outputs else None
