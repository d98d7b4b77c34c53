import json
from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

BIG = 1e6


def write(folder: Path, nodes: list[Any], weights: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    path = folder / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def two_layers(folder: Path) -> Path:
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="middle"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="last"),
    ]
    return write(folder, nodes, {"v": random.standard_normal((4, 4)), "w": random.standard_normal((4, 4))})


def converted(run: Any, *arguments: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    result = run("m.onnx", *arguments, "-o", "half.onnx", "--json")
    assert result.exit_code == 0, result.output
    model = onnx.load("half.onnx")
    onnx.checker.check_model(model, full_check=True)
    return model, json.loads(result.stdout)


def outputs(path: str, x: np.ndarray) -> np.ndarray:
    value: np.ndarray = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return value


def types(model: onnx.ModelProto) -> dict[str, int]:
    return {one.name: one.data_type for one in model.graph.initializer}


def ends(model: onnx.ModelProto) -> set[int]:
    return {one.type.tensor_type.elem_type for one in (*model.graph.input, *model.graph.output)}


def test_weights_become_half_and_the_ends_stay_float(run: Any, two_layers: Path) -> None:
    model, report = converted(run, "--fp16")
    assert set(types(model).values()) == {TensorProto.FLOAT16}
    assert ends(model) == {TensorProto.FLOAT}
    assert Counter(node.op_type for node in model.graph.node)["Cast"] == 2
    assert not report["kept_float"]
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    expected = outputs("m.onnx", x)
    np.testing.assert_allclose(outputs("half.onnx", x), expected, atol=4e-3 * np.abs(expected).max())


def test_each_weight_is_the_nearest_half(run: Any, two_layers: Path) -> None:
    before = {one.name: numpy_helper.to_array(one) for one in onnx.load("m.onnx").graph.initializer}
    for option, dtype in (("--fp16", np.float16), ("--bf16", ml_dtypes.bfloat16)):
        model, _ = converted(run, option, "--force")
        for one in model.graph.initializer:
            half = numpy_helper.to_array(one)
            np.testing.assert_array_equal(half.astype(np.float32), before[one.name].astype(dtype).astype(np.float32))


def test_half_io_changes_the_ends_too(run: Any, two_layers: Path) -> None:
    model, _ = converted(run, "--fp16", "--half-io")
    assert ends(model) == {TensorProto.FLOAT16}
    assert not [node for node in model.graph.node if node.op_type == "Cast"]
    assert [one.name for one in model.graph.output] == ["y"]


def test_bfloat16_raises_the_opset_to_one_that_has_it_in_all_layers(run: Any, two_layers: Path) -> None:
    model, report = converted(run, "--bf16")
    assert report["opset"] == 22
    assert set(types(model).values()) == {TensorProto.BFLOAT16}
    assert max(output["relative"] for one in report["comparisons"] for output in one["outputs"]) < 2e-2


def test_layers_that_an_opset_lacks_in_bfloat16_stay_float(run: Any, folder: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["u"], name="up"),
        helper.make_node("Conv", ["u", "w"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Squeeze", ["r", "axes"], ["y"], name="down"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), folder / "m.onnx")
    model, report = converted(run, "--bf16", "--opset", "18")
    assert [one["node"] for one in report["kept_float"]] == ["conv"]
    assert "opset 18" in report["kept_float"][0]["reason"]
    assert types(model)["w"] == TensorProto.FLOAT


def test_a_weight_that_overflows_keeps_its_node_float(run: Any, folder: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], name="grow"),
        helper.make_node("Mul", ["a", "small"], ["b"], name="shrink"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="layer"),
    ]
    write(folder, nodes, {"big": np.full(4, BIG), "small": np.full(4, 1 / BIG), "w": np.eye(4)})
    model, report = converted(run, "--fp16")
    kept = {one["node"]: one["reason"] for one in report["kept_float"]}
    assert set(kept) == {"grow", "shrink"}
    assert "big reaches 1e+06" in kept["grow"]
    assert types(model) == {"big": TensorProto.FLOAT, "small": TensorProto.FLOAT, "w": TensorProto.FLOAT16}
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs("half.onnx", x), x, atol=4e-3)


def test_values_that_overflow_on_the_data_keep_their_nodes_float(run: Any, folder: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"], name="square"),
        helper.make_node("Mul", ["a", "small"], ["b"], name="shrink"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    write(folder, nodes, {"small": np.full(4, 1e-3)})
    np.savez("large.npz", x=np.full((4, 4), 300.0, np.float32))
    _, calm = converted(run, "--fp16")
    assert not calm["kept_float"]
    _, report = converted(run, "--fp16", "--calib-data", "large.npz", "--force")
    assert {one["node"] for one in report["kept_float"]} == {"square", "shrink"}
    assert "9e+04" in report["kept_float"][0]["reason"]


def test_a_small_constant_that_would_vanish_keeps_its_node_float(run: Any, folder: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("Add", ["a", "epsilon"], ["b"], name="add"),
        helper.make_node("Sqrt", ["b"], ["y"], name="root"),
    ]
    write(folder, nodes, {"epsilon": np.float32(1e-12)})
    _, report = converted(run, "--fp16")
    assert [(one["node"], one["operator"]) for one in report["kept_float"]] == [("add", "Add")]
    assert "is zero in" in report["kept_float"][0]["reason"]


def test_values_that_subgraphs_read_stay_float(run: Any, folder: Path) -> None:
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["t"])], "then", [], [value("t", TensorProto.FLOAT, ["batch", 4])]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["h"], ["e"])], "else", [], [value("e", TensorProto.FLOAT, ["batch", 4])]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("ReduceSum", ["h"], ["s"], name="sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], name="ask"),
        helper.make_node("If", ["c"], ["y"], name="choose", then_branch=then, else_branch=other),
    ]
    write(folder, nodes, {"w": np.eye(4), "zero": np.float32(0)})
    model, _ = converted(run, "--fp16")
    assert types(model)["w"] == TensorProto.FLOAT16
    for sign in (1, -1):
        x = np.full((2, 4), sign, np.float32)
        np.testing.assert_array_equal(outputs("half.onnx", x), -x if sign > 0 else np.abs(x))


def test_functions_are_inlined_first(run: Any, folder: Path) -> None:
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="own", name="call")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, functions=[twice], opset_imports=opsets, ir_version=8), folder / "m.onnx")
    model, report = converted(run, "--fp16")
    assert not report["kept_float"]
    assert "Add" in {node.op_type for node in model.graph.node}
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(outputs("half.onnx", x), 2 * x)


def test_weights_of_torch_become_half_at_once(run: Any, folder: Path) -> None:
    shape = ("--input-shape", "image=batch,3,16,16")
    result = run("weights.pth", "--model", "smallnet:make_net", *shape, "--fp16", "-o", "half.onnx", "--json")
    assert result.exit_code == 0, result.output
    model = onnx.load("half.onnx")
    assert TensorProto.FLOAT16 in types(model).values()
    assert ends(model) == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m.onnx", "--fp16", "--bf16"), "exclude each other"),
        (("m.onnx", "--half-io", "--opset", "18"), "--half-io has no effect without"),
        (("weights.pth", "--to", "safetensors", "--fp16"), "--fp16 or --bf16 has no effect"),
        (("m.onnx",), "--fp16 or --bf16"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    run: Any, two_layers: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_a_graph_without_layers_of_floats_is_refused(run: Any, folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Not", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.BOOL, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    result = run("m.onnx", "--fp16")
    assert result.exit_code == 2
    assert "nothing in the graph can compute in float16" in result.output
