"""Which layer of OpenVINO's executed graph runs every node, and in which precision."""

from __future__ import annotations

import onnx_ir as ir

from qtool.backends.node_kernel import INTEGERS, NodeKernel
from qtool.backends.openvino.coverage import layer_of, layers_by_node, openvino_coverage
from qtool.backends.openvino.execution import IN_OPENVINO


def kernels_of(model: ir.Model) -> dict[str, NodeKernel]:
    """Opens ``model``, whose nodes all have names, and returns what runs the nodes of its main graph, by name.

    Raises:
        UsageError: OpenVINO is not installed.
        RuntimeRefusedError: it does not load the model.
    """
    integer = {row.node for row in openvino_coverage(model).nodes if row.kernel is not None}
    with IN_OPENVINO.open(model) as session:
        layers = layers_by_node(session.executed())
    found = {}
    for node in model.graph:
        layer = layer_of(node, layers)
        precision = None if layer is None else INTEGERS if node.name in integer else layer.precision
        found[node.name or ""] = NodeKernel(kernel=None if layer is None else layer.kind, precision=precision)
    return found
