"""Lets the table of tokens and the head of a decoder read one tensor the same way."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from qtool.graph.constants import add_constant, constant_array, reads_rows
from qtool.graph.names import Names


def share_tied_table(model: ir.Model) -> bool:
    """Rewrites a head that is tied to the table: both read rows, one a token; returns whether there was one.

    Exporters let one of them read a Transpose of the other's tensor, of which onnxruntime makes a second copy when it
    opens the model, and which nothing can quantize as one. The head becomes Gemm, which reads rows as they are.
    """
    for value in list(model.graph.initializers.values()):
        direct = [use.node for use in value.uses()]
        turns = [node for node in direct if _turns(node)]
        behind = [use.node for turn in turns for use in turn.outputs[0].uses()]
        heads = [node for node in (*direct, *behind) if _is_head(node, value, turns)]
        tables = [node for node in (*direct, *behind) if reads_rows(node)]
        if (
            len(turns) != 1
            or len(heads) != 1
            or not tables
            or len(direct) + len(behind) != len(heads) + len(tables) + 1
        ):
            continue
        floats = constant_array(value)
        if floats is None or floats.ndim != 2 or heads[0].inputs[0] is None or heads[0].inputs[0].shape is None:
            continue
        # The one that stands behind the Transpose reads the other orientation.
        if all(node in behind for node in tables):
            rows = add_constant(model.graph, f"{value.name}_rows", np.ascontiguousarray(floats.T))
        else:
            rows = value
        for table in tables:
            table.replace_input_with(0, rows)
        _as_gemm(model.graph, heads[0], rows)
        common.RemoveUnusedNodesPass()(model)
        return True
    return False


def _turns(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and (order is None or list(order.as_ints()) == [1, 0])


def _is_head(node: ir.Node, value: ir.Value, turns: list[ir.Node]) -> bool:
    if node.op_type != "MatMul" or node.inputs[0] is value:
        return False
    return node.inputs[1] is value or any(node.inputs[1] is turn.outputs[0] for turn in turns)


def _as_gemm(graph: ir.Graph, head: ir.Node, rows: ir.Value) -> None:
    given, output, names = head.inputs[0], head.outputs[0], Names(graph)
    if given is None or given.shape is None or rows.shape is None:
        raise AssertionError("both have shapes")
    tokens, features = rows.shape.numpy()
    stem = head.name or "head"
    flat = add_constant(graph, f"{stem}_flat_shape", np.array([-1, features], np.int64), names=names)
    whole = np.array([*[0] * (len(given.shape) - 1), tokens], np.int64)
    first = ir.node("Reshape", [given, flat], name=names.for_node(f"{stem}_flat"))
    gemm = ir.node("Gemm", [first.outputs[0], rows], {"transB": 1}, name=head.name)
    shape = ir.node("Shape", [given], {"start": 0, "end": len(whole) - 1}, name=names.for_node(f"{stem}_lengths"))
    last = add_constant(graph, f"{stem}_tokens", whole[-1:], names=names)
    joined = ir.node("Concat", [shape.outputs[0], last], {"axis": 0}, name=names.for_node(f"{stem}_shape"))
    back = ir.node("Reshape", [gemm.outputs[0], joined.outputs[0]], name=names.for_node(f"{stem}_logits"))
    made = [first, gemm, shape, joined, back]
    for node in made[:-1]:
        node.outputs[0].name = names.free(f"{node.name}_output")
    ir.convenience.replace_nodes_and_values(graph, head, [head], made, [output], back.outputs)
