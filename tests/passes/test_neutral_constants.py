import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.passes.quantization.fold_constants import FoldConstants


def folded(operator: str, constant: np.ndarray, *, left: bool = False) -> list[str]:
    inputs = ["c", "r"] if left else ["r", "c"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(operator, inputs, ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abc"[: max(2, constant.ndim)]))],
        [numpy_helper.from_array(constant.astype(np.float32), "c")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return [node.op_type for node in FoldConstants()(ir.from_proto(model)).model.graph]


@pytest.mark.parametrize(
    ("operator", "neutral", "left"),
    [("Add", 0, False), ("Add", 0, True), ("Sub", 0, False), ("Mul", 1, False), ("Mul", 1, True), ("Div", 1, False)],
)
def test_what_changes_nothing_goes(operator: str, neutral: float, left: bool) -> None:
    assert folded(operator, np.array(neutral), left=left) == ["Relu"]
    assert folded(operator, np.array([[neutral]]), left=left) == ["Relu"]


@pytest.mark.parametrize(
    ("operator", "constant"), [("Add", 1e-10), ("Sub", 1e-12), ("Mul", 1 + 1e-6), ("Div", 1 - 1e-6), ("Add", 1e-30)]
)
def test_what_changes_little_stays(operator: str, constant: float) -> None:
    assert folded(operator, np.array(constant)) == ["Relu", operator]


@pytest.mark.parametrize(("operator", "constant"), [("Sub", 0), ("Div", 1)])
def test_a_neutral_constant_on_the_wrong_side_stays(operator: str, constant: float) -> None:
    assert folded(operator, np.array(constant), left=True) == ["Relu", operator]


def test_a_constant_that_adds_axes_stays() -> None:
    assert folded("Add", np.zeros((1, 1, 1))) == ["Relu", "Add"]
    assert folded("Add", np.zeros((2, 3))) == ["Relu", "Add"]


def test_what_nothing_reads_goes() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Exp", ["x"], ["unread"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [node.op_type for node in FoldConstants()(model).model.graph] == ["Relu"]
