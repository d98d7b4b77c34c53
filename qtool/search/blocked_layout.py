"""Which float operators onnxruntime runs on blocks of channels (NCHWc): others need their inputs laid out again.

Found out by what onnxruntime 1.32 makes of single operators between two convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.graph.constants import integer_attribute, is_constant, sole_consumer

# Lay out their input in blocks where it is not.
_MAKERS = frozenset({"Conv", "MaxPool", "AveragePool"})
# Stay in blocks where all their inputs are, whatever the shapes of these.
_FOLLOWERS = frozenset(
    {"Relu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Concat", "GlobalAveragePool", "GlobalMaxPool"}
)
# The same, for inputs of one shape.
_ELEMENTWISE = frozenset({"Add", "Mul", "Sum"})
# Become part of a convolution that nothing else reads.
_FUSED = frozenset({"Clip", "LeakyRelu"})
_IMAGE_AXES, _CHANNELS = 4, 1


def blocked_nodes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Returns the names of the nodes that write blocks of channels when all of ``model`` is in float.

    Args:
        model: a graph, sorted topologically.
        shapes: by the name of every tensor that its layers read or make.
    """
    blocked: set[ir.Node] = set()
    for node in model.graph:
        if node.domain == "" and _is_blocked(node, shapes, blocked):
            blocked.add(node)
    return frozenset(node.name or "" for node in blocked)


def _is_blocked(node: ir.Node, shapes: Mapping[str, tuple[int, ...]], blocked: set[ir.Node]) -> bool:
    if not node.inputs or node.inputs[0] is None or len(shapes.get(node.inputs[0].name or "", ())) != _IMAGE_AXES:
        return False
    if node.op_type in _MAKERS:
        return True
    producer = node.inputs[0].producer()
    if producer not in blocked:
        return False
    if node.op_type in _FUSED:
        return producer is not None and producer.op_type == "Conv" and sole_consumer(node.inputs[0]) is node
    if node.op_type == "BatchNormalization":
        return True
    if node.op_type == "Concat" and integer_attribute(node, "axis", 0) != _CHANNELS:
        return False
    if node.op_type not in _FOLLOWERS | _ELEMENTWISE:
        return False
    given = [value for value in node.inputs if value is not None]
    if any(is_constant(value) or value.producer() not in blocked for value in given):
        return False
    return node.op_type in _FOLLOWERS or len({shapes.get(value.name or "") for value in given}) == 1
