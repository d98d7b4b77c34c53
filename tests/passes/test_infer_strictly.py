"""Types and shapes are inferred as onnx-ir's own pass infers them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes import common

from qtool.passes.normalization.infer_strictly import InferStrictly


def _model(*, columns: int = 64) -> ir.Model:
    """A product with a large weight, a Reshape by a small constant, and an If, whose branches read both."""
    weight = np.random.default_rng(0).standard_normal((columns, 64)).astype(np.float32)
    weights = [
        numpy_helper.from_array(weight, "large"),
        numpy_helper.from_array(np.array([-1, 8, 8], np.int64), "lengths"),
        numpy_helper.from_array(np.ones((), np.float32), "default"),
    ]
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(operator, ["r", "default"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, operator in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["m"]),
        helper.make_node("Reshape", ["m", "lengths"], ["r"]),
        helper.make_node("If", ["which"], ["y"], **branches),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 64]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
        helper.make_tensor_value_info("default", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def _bytes(model: ir.Model) -> bytes:
    written: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return written


def test_it_finds_what_the_pass_of_onnx_ir_finds() -> None:
    ours, theirs = _model(), _model()
    found, expected = InferStrictly()(ours), common.ShapeInferencePass()(theirs)
    assert found.modified is expected.modified is True
    assert _bytes(ours) == _bytes(theirs)
    shapes = {value.name: value.shape for node in ours.graph for value in node.outputs}
    assert shapes["r"] == ir.Shape([3, 8, 8])
    assert not InferStrictly()(ours).modified


def test_what_goes_into_a_subgraph_gets_a_shape_as_well() -> None:
    def unknown(*names: str) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]

    nodes = [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Exp", ["row"], ["made"])]
    body = helper.make_graph(nodes, "body", unknown("state", "row"), unknown("next", "made"))
    graph = helper.make_graph(
        [helper.make_node("Scan", ["first", "x"], ["last", "y"], body=body, num_scan_inputs=1)],
        "g",
        [
            helper.make_tensor_value_info("first", TensorProto.FLOAT, [64]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 64]),
        ],
        unknown("last", "y"),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours, theirs = ir.from_proto(proto), ir.from_proto(proto)
    found, expected = InferStrictly()(ours), common.ShapeInferencePass()(theirs)
    assert found.modified is expected.modified is True
    assert _bytes(ours) == _bytes(theirs)
    inside = ours.graph[0].attributes["body"].as_graph()
    assert [value.shape for value in inside.inputs] == [ir.Shape([64]), ir.Shape([64])]


def test_a_graph_that_contradicts_itself_is_left_as_it_is() -> None:
    model = _model(columns=63)
    assert not InferStrictly()(model).modified
    assert [node.outputs[0].shape for node in model.graph] == [None, None, None]
    assert sorted(model.graph.initializers) == ["default", "large", "lengths"]
    assert [value.name for value in model.graph.inputs] == ["x", "which", "default"]
