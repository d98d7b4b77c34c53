"""``qtool verify``: what really runs on integers, and why the rest does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest


def test_a_quantized_model_runs_on_integers(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    outcome = run("verify", "net.int8.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["integer_nodes"] == outcome.json["quantizable_nodes"] == 7
    assert {row["operator"]: row["integer"] for row in outcome.json["operators"]} == {
        "Conv": 3,
        "Add": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    assert "7 of 7 quantizable nodes" in run("verify", "net.int8.onnx").out


def test_a_float_model_has_its_reasons(run: Any, model: Path) -> None:
    outcome = run("verify", model, "--json")
    assert outcome.code == 0
    assert outcome.json["integer_nodes"] == 0
    reasons = {miss["node"]: miss["reason"] for miss in outcome.json["misses"]}
    assert reasons["/c1/Conv"] == "its input 'image' comes from the model's input"


def test_a_coverage_gate_exits_with_one(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--exclude", "/c2/Conv").code == 0
    assert run("verify", "net.int8.onnx", "--min-coverage", "0.5").code == 0
    outcome = run("verify", "net.int8.onnx", "--min-coverage", "95%")
    assert outcome.code == 1
    assert "of the quantizable nodes run on integers" in outcome.err
    assert "1 of 3 Conv do not" in outcome.err
    assert "/c2/Conv" in outcome.out


@pytest.mark.parametrize("share", ["ninety", "95", "-1", "nan"])
def test_a_share_that_is_none_is_refused(run: Any, model: Path, share: str) -> None:
    outcome = run("verify", model, "--min-coverage", share)
    assert outcome.code == 2
    assert f"--min-coverage must be between 0 and 1, not '{share}'" in outcome.err


def _with_conv_as_output(model: onnx.ModelProto) -> None:
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    value = onnx.helper.make_tensor_value_info(convolution.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(value)


def _with_float_bias(model: onnx.ModelProto) -> None:
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(16, np.float32), "float_bias"))
    convolution.input[2] = "float_bias"


def _with_float_reader(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu" and "r3" in node.name)
    model.graph.node.append(onnx.helper.make_node("Tanh", [relu.output[0]], ["t"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, None))


def _with_float_weight(model: onnx.ModelProto) -> None:
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((10, 16), np.float32), "float_weight"))
    gemm.input[1] = "float_weight"


@pytest.mark.parametrize(
    ("change", "operator", "reason", "fix"),
    [
        (_with_conv_as_output, "Conv", "is an output of the model", "remove it from the model's outputs"),
        (_with_float_reader, "Add", "is read in float by Tanh", "--exclude '/s/Add'"),
        (_with_float_weight, "Gemm", "its weights 'float_weight' are float", "--max-float 0"),
    ],
)
def test_each_miss_names_its_cause_and_its_fix(
    run: Any, model: Path, data: Path, change: Any, operator: str, reason: str, fix: str
) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    changed = onnx.load("net.int8.onnx")
    change(changed)
    onnx.save(changed, "changed.onnx")
    outcome = run("verify", "changed.onnx", "--json")
    assert outcome.code == 0, outcome.err
    misses = [miss for miss in outcome.json["misses"] if miss["operator"] == operator]
    assert any(reason in miss["reason"] and fix in miss["fix"] for miss in misses), outcome.json["misses"]


def test_the_fix_of_a_miss_mends_it(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--exclude", "/c2/Conv").code == 0
    misses = {miss["node"]: miss["fix"] for miss in run("verify", "net.int8.onnx", "--json").json["misses"]}
    assert misses.keys() == {"/c2/Conv"}
    assert "drop the --include or --exclude" in misses["/c2/Conv"]
    assert run("quantize", model, "--calib-data", data, "--force").code == 0
    assert run("verify", "net.int8.onnx", "--json").json["misses"] == []


def test_a_model_without_layers_is_an_error(run: Any, save_model: Any) -> None:
    path = save_model("plain.onnx", "plain (float[n,8] x) => (float[n,8] out) { out = Tanh (x) }")
    outcome = run("verify", path)
    assert outcome.code == 2
    assert "no node that could run on integers" in outcome.err


def test_weights_without_a_graph_are_an_error(run: Any, tmp_path: Path) -> None:
    import torch

    torch.save({"w": torch.ones(2)}, tmp_path / "net.pth")
    outcome = run("verify", "net.pth")
    assert outcome.code == 2
    assert "not an ONNX graph" in outcome.err
    assert "qtool convert" in outcome.err


def _integer_operators() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Returns layers in the form of operators that are integers themselves, and one that is float."""
    node = onnx.helper.make_node
    q = ["s", "z"]
    nodes = [
        node("QuantizeLinear", ["x", *q], ["xq"]),
        node("QLinearConv", ["xq", *q, "w", "s", "zw", *q], ["a"], "conv"),
        node("QLinearAdd", ["a", *q, "a", *q, *q], ["b"], "sum", domain="com.microsoft"),
        node("Flatten", ["b"], ["c"], "flat"),
        node("QLinearMatMul", ["c", *q, "v", "s", "zw", *q], ["d"], "product"),
        node("QGemm", ["d", *q, "u", "s", "zw", "", *q], ["e"], "gemm", domain="com.microsoft"),
        node("DequantizeLinear", ["e", *q], ["f"]),
        node("MatMul", ["f", "t"], ["y"], "float"),
        node("DynamicQuantizeMatMul", ["f", "u", "s", "zw"], ["o"], "dynamic", domain="com.microsoft"),
    ]
    rng = np.random.default_rng(5)
    tensors = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "zw": np.array(0, np.int8),
        "w": rng.integers(-50, 50, (4, 3, 3, 3)).astype(np.int8),
        "v": rng.integers(-50, 50, (144, 8)).astype(np.int8),
        "u": rng.integers(-50, 50, (8, 8)).astype(np.int8),
        "t": rng.normal(size=(8, 8)).astype(np.float32),
    }
    return nodes, tensors


@pytest.mark.parametrize("with_float", [False, True])
def test_operators_that_are_integers_themselves_count(run: Any, tmp_path: Path, with_float: bool) -> None:
    nodes, tensors = _integer_operators()
    nodes = [node for node in nodes if with_float or node.name != "float"]
    outputs = [name for name in ("y", "o") if with_float or name != "y"]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [value(name, onnx.TensorProto.FLOAT, [1, 8]) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items() if with_float or name != "t"],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "integers.onnx")
    outcome = run("verify", "integers.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["integer_nodes"] == 5
    assert outcome.json["quantizable_nodes"] == 5 + with_float
    assert {row["operator"] for row in outcome.json["operators"] if row["integer"]} == {
        "QLinearConv",
        "QLinearAdd",
        "QLinearMatMul",
        "QGemm",
        "DynamicQuantizeMatMul",
    }
    assert [miss["node"] for miss in outcome.json["misses"]] == ["float"] * with_float
