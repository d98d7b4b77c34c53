"""Operators that are integer arithmetic themselves, written in float between integers: onnxruntime gives the same."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.qdq.integer_operators_to_qdq import SpellOutIntegers

MICROSOFT = "com.microsoft"
U8, S8 = np.uint8, np.int8


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-90, 90, shape).astype(S8)


def scales(count: int) -> np.ndarray:
    return np.linspace(0.004, 0.011, count).astype(np.float32)


X = {"xs": np.float32(0.02137), "xz": U8(117)}
Y = {"ys": np.float32(0.02711), "yz": U8(131)}
CONV = {
    **X,
    **Y,
    "w": weights((6, 3, 3, 3)),
    "ws": scales(6),
    "wz": np.zeros(6, S8),
    "b": np.arange(-300, 300, 100).astype(np.int32),
}
ONE = {"ws": np.float32(0.01), "wz": S8(3)}
GRID = ["ys", "yz"]
# The operator, its inputs, what is stored, the shape of x, attributes and the type of y.
FORMS: dict[str, tuple[str, list[str], dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "conv by channel": (
        "QLinearConv",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID, "b"],
        CONV,
        (2, 3, 8, 8),
        {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    ),
    "conv by tensor": (
        "QLinearConv",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID],
        CONV | ONE,
        (2, 3, 8, 8),
        {},
    ),
    "product by column": (
        "QLinearMatMul",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID],
        {**X, **Y, "w": weights((8, 5)), "ws": scales(5), "wz": np.zeros(5, S8)},
        (2, 4, 8),
        {},
    ),
    "product by tensor": (
        "QLinearMatMul",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID],
        {**X, **Y, "w": weights((8, 5)), **ONE},
        (4, 8),
        {},
    ),
    "gemm by column": (
        "QGemm",
        ["x", "xs", "xz", "w", "ws", "wz", "b", *GRID],
        {**X, **Y, "w": weights((5, 8)), "ws": scales(5), "wz": np.zeros(5, S8), "b": CONV["b"][:5]},
        (4, 8),
        {"transB": 1, "alpha": 0.5},
    ),
    "gemm to float": (
        "QGemm",
        ["x", "xs", "xz", "w", "ws", "wz", "b"],
        {**X, "w": weights((8, 5)), **ONE, "b": CONV["b"][:5]},
        (4, 8),
        {},
    ),
    "sum": (
        "QLinearAdd",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID],
        {**X, **Y, "w": weights((8,)).astype(U8), "ws": np.float32(0.01), "wz": U8(9)},
        (4, 8),
        {},
    ),
    "factor": (
        "QLinearMul",
        ["x", "xs", "xz", "w", "ws", "wz", *GRID],
        {**X, **Y, "w": weights((8,)).astype(U8), "ws": np.float32(0.01), "wz": U8(9)},
        (4, 8),
        {},
    ),
    "mean": ("QLinearGlobalAveragePool", ["x", "xs", "xz", *GRID], {**X, **Y}, (4, 8, 5, 5), {"channels_last": 0}),
    "pool": ("QLinearAveragePool", ["x", "xs", "xz", *GRID], {**X, **Y}, (2, 3, 6, 6), {"kernel_shape": [2, 2]}),
    "sigmoid": (
        "QLinearSigmoid",
        ["x", "xs", "xz", *GRID],
        {**X, "ys": np.float32(1 / 256), "yz": U8(0)},
        (2, 9),
        {},
    ),
    "leak": ("QLinearLeakyRelu", ["x", "xs", "xz", *GRID], {**X, **Y}, (2, 9), {"alpha": 0.2}),
}


def model(form: str) -> onnx.ModelProto:
    op_type, inputs, stored, shape, attributes = FORMS[form]
    domain = "" if op_type in ("QLinearConv", "QLinearMatMul") else MICROSOFT
    kind = TensorProto.UINT8 if "ys" in inputs else TensorProto.FLOAT
    node = helper.make_node(op_type, inputs, ["y"], name="layer", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(stored[name]), name) for name in inputs if name in stored],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_float_form_gives_the_same_integers(form: str) -> None:
    before = model(form)
    x = np.random.default_rng(4).integers(60, 190, FORMS[form][3]).astype(U8)
    expected = run(before, x)
    graph = ir.from_proto(before)
    assert SpellOutIntegers()(graph).modified
    after = ir.to_proto(graph)
    kinds = [node.op_type for node in after.graph.node]
    assert not any(kind.startswith(("QLinear", "QGemm")) for kind in kinds)
    found = run(after, x)
    assert found.dtype == expected.dtype
    if found.dtype == np.float32:
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        # Each rounds ties of its own.
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        assert np.mean(found != expected) < 0.05
        assert len(np.unique(expected)) >= 8


def test_other_layouts_and_scales_of_batches_stay() -> None:
    form = model("mean")
    form.graph.node[0].attribute[0].i = 1
    assert not SpellOutIntegers()(ir.from_proto(form)).modified
