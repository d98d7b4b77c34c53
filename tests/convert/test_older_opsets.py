"""Graphs go to opsets for which onnx's own converter has no rules, and what has no older form is named."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def save(path: Path, nodes: Sequence[NodeProto], opset: int, **weights: np.ndarray) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
def test_layers_that_only_took_fewer_types_before_go_down(run: Any, folder: Path, opset: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("ReduceMean", ["b", "axes"], ["c"], keepdims=1, noop_with_empty_axes=1),
        helper.make_node("Unsqueeze", ["c", "axes"], ["d"]),
        helper.make_node("Squeeze", ["d", "axes"], ["e"]),
        helper.make_node("Reshape", ["e", "shape"], ["f"], allowzero=1),
        helper.make_node("Sub", ["b", "f"], ["g"]),
        helper.make_node("Softmax", ["g"], ["h"], axis=-1),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["h", "two"], ["y"]),
    ]
    save(folder / "m.onnx", nodes, 20, w=W, axes=np.array([1], np.int64), shape=np.array([-1, 1], np.int64))
    result = run("m.onnx", "--opset", str(opset), "-o", "old.onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["opset"] == opset
    values = [
        ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
        for name in ("m.onnx", "old.onnx")
    ]
    np.testing.assert_allclose(values[1], values[0], atol=1e-6)


@pytest.mark.parametrize(
    ("node", "weights", "said"),
    [
        (
            helper.make_node("ReduceSum", ["a"], ["y"], noop_with_empty_axes=1),
            {},
            "needs its attribute noop",
        ),
        (helper.make_node("LayerNormalization", ["a", "s"], ["y"]), {"s": W[0]}, "which has no LayerNormalization"),
    ],
)
def test_an_operator_without_an_older_form_is_named(
    run: Any, folder: Path, node: NodeProto, weights: dict[str, np.ndarray], said: str
) -> None:
    node.name = "n"
    save(folder / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["a"]), node], 20, w=W, **weights)
    result = run("m.onnx", "--opset", "11", "-o", "old.onnx")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "or newer" in result.stderr


@pytest.mark.parametrize("option", ["--fp16", "--bf16"])
def test_small_weights_outside_of_the_model_and_old_files_become_half(run: Any, folder: Path, option: str) -> None:
    save(folder / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], 17, w=W)
    (folder / "sub").mkdir()
    whole = onnx.load("m.onnx")
    onnx.save(whole, "sub/m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert run("sub/m.onnx", option, "-o", "half.onnx").exit_code == 0
    whole = onnx.load("m.onnx")
    del whole.opset_import[:]
    whole.opset_import.add(version=7)
    whole.ir_version = 3
    whole.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4]))
    onnx.save(whole, "old.onnx")
    result = run("old.onnx", option, "-o", "half.onnx", "--force")
    assert result.exit_code == 0, result.output


def test_sparse_weights_are_refused_and_unknown_ranks_are_not(run: Any, folder: Path) -> None:
    save(folder / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], 17)
    model = onnx.load("m.onnx")
    values, places = numpy_helper.from_array(W[0], "w"), numpy_helper.from_array(np.arange(4), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    onnx.save(model, "sparse.onnx")
    assert "sparse tensors" in run("sparse.onnx", "--opset", "18").stderr
    save(folder / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], 17)
    model = onnx.load("m.onnx")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, "rank.onnx")
    result = run("rank.onnx", "--opset", "18", "-o", "out.onnx")
    assert result.exit_code == 0, result.output
