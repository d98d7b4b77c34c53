"""What a node reads, with what graphs inside it read."""

from __future__ import annotations

import onnx_ir as ir

from qtool.graph.node_reads import read_by

_MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
branches (float[2] x, bool take, bool deeper) => (float[2] y) {
    outer = Relu(x)
    y = If (take) <
        then_branch = then_graph () => (float[2] then_out) {
            inner = Add(outer, x)
            then_out = If (deeper) <
                then_branch = deep () => (float[2] deep_out) { deep_out = Mul(inner, outer) },
                else_branch = flat () => (float[2] flat_out) { flat_out = Neg(inner) }
            >
        },
        else_branch = else_graph () => (float[2] else_out) { else_out = Identity(outer) }
    >
}
"""


def test_values_read_inside_branches_are_read_by_the_node_that_holds_them() -> None:
    graph = ir.from_onnx_text(_MODEL).graph
    relu, chosen = tuple(graph)
    assert [value.name for value in read_by(relu)] == ["x"]
    assert {value.name for value in read_by(chosen)} == {"take", "outer", "x", "deeper"}
    assert next(read_by(chosen)).name == "take"
