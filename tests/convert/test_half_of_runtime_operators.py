"""Graphs with operators of onnxruntime's own become half around them, and load."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

WIDTH = 16
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.3).astype(np.float32)


def save(nodes: list[Any], inputs: list[Any], output: list[Any], **weights: np.ndarray) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "m.onnx")


def of_runtime(op_type: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op_type, inputs, outputs, domain="com.microsoft", name=outputs[0], **attributes)


def embeddings() -> dict[str, np.ndarray]:
    """A layer of attention as onnxruntime's optimizer leaves it: one output of the embeddings is of integers."""
    nodes = [
        of_runtime("EmbedLayerNormalization", ["ids", "", "words", "places", "", "g", "b", "mask"], ["e", "index"]),
        of_runtime("Attention", ["e", "wqkv", "bqkv", "index"], ["a"], num_heads=2),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="last"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.INT32, ["n", "l"]) for name in ("ids", "mask")]
    vectors = {"g": np.ones(WIDTH, np.float32), "b": floats(WIDTH), "bqkv": floats(3 * WIDTH)}
    tables = {"words": floats(20, WIDTH), "places": floats(12, WIDTH), "wqkv": floats(WIDTH, 3 * WIDTH)}
    save(nodes, ends, ["n", "l", 5], **vectors, **tables, w=floats(WIDTH, 5))
    ids = RANDOM.integers(0, 20, (3, 6)).astype(np.int32)
    return {"ids": ids, "mask": np.ones((3, 6), np.int32)}


def without_a_domain() -> dict[str, np.ndarray]:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("SimplifiedLayerNormalization", ["a", "g"], ["s"], axis=-1, epsilon=1e-5, name="norm"),
        helper.make_node("MatMul", ["s", "w"], ["y"], name="last"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    save(nodes, inputs, ["n", WIDTH], w=floats(WIDTH, WIDTH), g=np.ones(WIDTH, np.float32))
    return {"x": floats(3, WIDTH)}


@pytest.mark.parametrize("option", ["--fp16", "--bf16"])
@pytest.mark.parametrize("model", [embeddings, without_a_domain])
def test_what_they_make_keeps_its_type(run: Any, folder: Path, model: Any, option: str) -> None:
    feeds = model()
    result = run("m.onnx", option, "-o", "half.onnx", "--json")
    assert result.exit_code == 0, result.output
    halves = {one.data_type for one in onnx.load("half.onnx").graph.initializer}
    assert halves & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    assert "last" not in [one["node"] for one in json.loads(result.stdout)["kept_float"]]
    if option == "--bf16":  # onnxruntime's CPU has no kernels for it
        return
    before, after = (
        ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for name in ("m.onnx", "half.onnx")
    )
    np.testing.assert_allclose(after, before, atol=5e-3 * np.abs(before).max())


@pytest.mark.parametrize("opset", [16, 18])
def test_operators_that_no_standard_lists_keep_their_form(run: Any, folder: Path, opset: int) -> None:
    feeds = without_a_domain()
    result = run("m.onnx", "--opset", str(opset), "-o", "moved.onnx")
    assert result.exit_code == 0, result.output
    before, after = (
        ort.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for name in ("m.onnx", "moved.onnx")
    )
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_a_graph_that_is_half_already_says_so(run: Any, folder: Path) -> None:
    without_a_domain()
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
    result = run("m.onnx", "--fp16", "-o", "half.onnx")
    assert result.exit_code == 2
    assert "computes in float16 already" in result.stderr


def test_what_onnxruntime_saved_for_one_processor_is_explained(run: Any, folder: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH, 8, 8])]
    save(nodes, inputs, ["n", WIDTH, 8, 8], w=floats(WIDTH, WIDTH, 3, 3))
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = "saved.onnx", 4
    ort.InferenceSession("m.onnx", options, providers=["CPUExecutionProvider"])
    saved = onnx.load("saved.onnx")
    if not any(node.domain == "com.microsoft.nchwc" for node in saved.graph.node):
        pytest.skip("this processor has no blocks of channels")
    result = run("saved.onnx", "--fp16", "-o", "half.onnx")
    assert result.exit_code == 2
    assert "NCHWc" in result.stderr
    assert "the original model" in " ".join(result.stderr.split())
