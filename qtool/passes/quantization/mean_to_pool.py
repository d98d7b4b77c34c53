"""Replaces a mean over all spatial positions by GlobalAveragePool, which runs on integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.passes.quantization.arithmetic import replace_node


class MeanToGlobalAveragePool(ir.passes.InPlacePass):
    """Replaces ReduceMean over every axis past the second by GlobalAveragePool, then Squeeze where axes are dropped."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces each such node of known rank."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            if node.op_type == "ReduceMean" and node.domain == "" and _is_spatial(node):
                _replace(model.graph, node, names)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_spatial(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) < 3 or source.dtype != ir.DataType.FLOAT:
        return False
    axes = _axes(node)
    rank = len(source.shape)
    # LayerNormalization over (batch, steps, channels) begins with it, which onnxruntime runs as one operator.
    if rank == 3 and integer_attribute(node, "keepdims", 1):
        return False
    return axes is not None and sorted(axis % rank for axis in axes) == list(range(2, rank))


def _axes(node: ir.Node) -> list[int] | None:
    """Returns the axes, an attribute before opset 18 and an input since, or None when they are not known."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    array = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


def _replace(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    source = node.inputs[0]
    pool = ir.node("GlobalAveragePool", [source], name=node.name and names.for_node(f"{node.name}_pool"))
    if integer_attribute(node, "keepdims", 1):
        replace_node(graph, node, pool)
        return
    if source is None or source.shape is None:
        raise AssertionError("only called for nodes of known rank")
    rank = len(source.shape)
    pool.outputs[0].name = names.free(f"{node.outputs[0].name}_pooled")
    pool.outputs[0].dtype = ir.DataType.FLOAT
    pool.outputs[0].shape = ir.Shape([*source.shape[:2], *[1] * (rank - 2)])
    axes = add_constant(graph, f"{node.outputs[0].name}_axes", np.arange(2, rank, dtype=np.int64), names=names)
    graph.insert_before(node, pool)
    replace_node(graph, node, ir.node("Squeeze", [pool.outputs[0], axes], name=node.name))
