"""Gives a Pad with a list of axes the padding of every axis.

onnxruntime (1.18 to 1.31) moves integer convolutions to a layout with channels last and reorders what a Pad between
them adds as if it were given for all axes: with the list of axes it stops.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names

# Inputs of a Pad since opset 18.
_PADS, _AXES = 1, 3


class PadAllAxes(ir.passes.InPlacePass):
    """Removes the list of axes of each Pad of known rank, and pads the other axes by zero."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Changes every Pad of the graph itself whose axes are stored."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            places = _places(node) if node.op_type == "Pad" and node.domain == "" else None
            if places is not None:
                _pad_all(model.graph, node, places, names)
                modified = True
        return ir.passes.PassResult(model, modified)


def _places(node: ir.Node) -> tuple[list[int], int] | None:
    """Returns where in a list for all axes each of the numbers belongs, and the length of that list.

    It holds what goes before each axis, and then what goes behind each (operator Pad of the ONNX specification).
    """
    source = node.inputs[0]
    axes = constant_array(node.inputs[_AXES]) if len(node.inputs) > _AXES else None
    if source is None or source.shape is None or axes is None or node.inputs[_PADS] is None:
        return None
    rank = len(source.shape)
    padded = [int(axis) % rank for axis in axes.reshape(-1)] if rank else []
    return [*padded, *(axis + rank for axis in padded)], 2 * rank


def _pad_all(graph: ir.Graph, node: ir.Node, places: tuple[list[int], int], names: Names) -> None:
    given, (positions, length) = node.inputs[_PADS], places
    stored, stem = constant_array(given), f"{node.outputs[0].name}_pads"
    every = np.zeros(length, np.int64)
    if stored is not None:
        every[positions] = stored.reshape(-1)
        node.replace_input_with(_PADS, add_constant(graph, stem, every, names=names))
    else:
        zeros = add_constant(graph, f"{stem}_elsewhere", every, names=names)
        index = add_constant(graph, f"{stem}_positions", np.asarray(positions, np.int64), names=names)
        scatter = ir.node("ScatterElements", [zeros, index, given], name=names.for_node(stem))
        made = scatter.outputs[0]
        made.name, made.dtype, made.shape = names.free(stem), ir.DataType.INT64, ir.Shape([length])
        graph.insert_before(node, scatter)
        node.replace_input_with(_PADS, made)
    node.resize_inputs(_AXES)
