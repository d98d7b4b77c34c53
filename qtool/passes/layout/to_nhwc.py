"""Channels last (NHWC) between layers, for runtimes with that layout."""

from __future__ import annotations

import onnx_ir as ir

from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.names import Names
from qtool.passes.layout.transposes import move_transposes, transpose_perm

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
# Operators that ONNX defines for channels first only.
LAYERS = frozenset(
    {
        *("AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace"),
        *("GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "LRN", "LpPool", "MaxPool", "QLinearConv"),
        *("Resize", "SpaceToDepth"),
    }
)


class ToNhwc(ir.passes.InPlacePass):
    """Puts each layer of images between two Transpose nodes, and all nodes between layers on channels last.

    ONNX itself has no layers with channels last: a runtime or converter that has them fuses a layer and its two
    Transpose nodes. Inputs and outputs of the graph keep their layout.

    Attributes:
        remark: how many Transpose nodes there were and are, in words; None where nothing changed.
    """

    def __init__(self) -> None:
        """Starts without a remark."""
        self.remark: str | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrites all layers of images of the main graph whose outputs are not turned already."""
        self.remark = None
        infer_shapes(model)
        graph = model.graph
        layers = [node for node in graph if _is_layer(node) and not _is_turned(node.outputs[0])]
        if not layers:
            return ir.passes.PassResult(model, modified=False)
        before = _count(graph)
        names = Names(graph)
        move_transposes(graph, model.opset_imports.get("", 1), {_turned_back(graph, names, node) for node in layers})
        self.remark = f"{before} → {_count(graph)} Transpose nodes"
        return ir.passes.PassResult(model, modified=True)


def _is_layer(node: ir.Node) -> bool:
    shape = node.outputs[0].shape
    is_image = shape is not None and len(shape) == len(TO_LAST) and not node.outputs[0].is_graph_output()
    return node.op_type in LAYERS and not node.domain and is_image


def _is_turned(value: ir.Value) -> bool:
    """Returns whether only Transpose nodes that put its channels last read a value."""
    return all(transpose_perm(use.node) == TO_LAST for use in value.uses())


def _turned_back(graph: ir.Graph, names: Names, layer: ir.Node) -> ir.Node:
    """Adds Transpose nodes to channels last and back after a layer; returns the second one, which is to move."""
    made = layer.outputs[0]
    readers = list(made.uses())
    last = _transpose(graph, names, made, TO_LAST, layer)
    first = _transpose(graph, names, last.outputs[0], TO_FIRST, last)
    for use in readers:
        use.node.replace_input_with(use.idx, first.outputs[0])
    return first


def _transpose(graph: ir.Graph, names: Names, value: ir.Value, perm: tuple[int, ...], behind: ir.Node) -> ir.Node:
    name = names.for_both(f"{value.name}_{'channels_last' if perm == TO_LAST else 'channels_first'}")
    node = ir.node("Transpose", [value], attributes={"perm": perm}, name=name)
    node.outputs[0].name, node.outputs[0].type = name, value.type
    if value.shape is not None:
        node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in perm])
    graph.insert_after(behind, node)
    return node


def _count(graph: ir.Graph) -> int:
    return sum(node.op_type == "Transpose" and not node.domain for node in graph)
