"""Moves Relu and Clip before operators that only move values, so that the producing layer absorbs them.

Clamping is monotone and element-wise, so it commutes with selecting, repeating, permuting and taking the maximum of
values.
"""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.constants import is_constant, sole_consumer

_MOVERS = (
    "DepthToSpace",
    "Flatten",
    "Gather",
    "MaxPool",
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)


class HoistClamps(ir.passes.InPlacePass):
    """Swaps a clamp with the moving operator before it, repeatedly."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Swaps every pair whose values nothing else reads."""
        modified = False
        for node in list(model.graph):
            while (mover := _mover_before(node)) is not None:
                _swap(model.graph, mover, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _mover_before(clamp: ir.Node) -> ir.Node | None:
    if clamp.domain != "" or clamp.op_type not in ("Relu", "Clip"):
        return None
    if not all(value is None or is_constant(value) for value in clamp.inputs[1:]):
        return None
    value = clamp.inputs[0]
    mover = None if value is None else value.producer()
    if value is None or mover is None or mover.domain != "" or mover.op_type not in _MOVERS:
        return None
    if len(mover.outputs) != 1 or sole_consumer(value) is not clamp:
        return None
    source = mover.inputs[0]
    if source is None or source.producer() is None or sole_consumer(source) is not mover:
        return None
    return mover


def _swap(graph: ir.Graph, mover: ir.Node, clamp: ir.Node) -> None:
    """Turns source -> mover -> moved -> clamp -> output into source -> clamp -> clamped -> mover -> output."""
    source, moved, output = mover.inputs[0], mover.outputs[0], clamp.outputs[0]
    if source is None:
        raise AssertionError("a mover without input was let through")
    # The clamp's node now makes the value between the two, the mover's the result: each keeps its shape.
    readers = list(output.uses())
    clamp.replace_input_with(0, source)
    mover.replace_input_with(0, output)
    for use in readers:
        use.node.replace_input_with(use.idx, moved)
    for position, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[position] = moved
    output.name, moved.name = moved.name, output.name
    output.shape, moved.shape = source.shape, output.shape
    moved.type = output.type
    graph.remove(clamp)
    graph.insert_before(mover, clamp)
