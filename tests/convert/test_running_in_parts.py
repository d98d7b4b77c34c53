"""Graphs whose weights are too many for memory run one part after the other, and compute the same."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.runtime.parts import Parts

WIDTH = 128
X = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)


def _weight(name: str) -> TensorProto:
    random = np.random.default_rng(len(name) + ord(name[-1]))
    return numpy_helper.from_array((random.standard_normal((WIDTH, WIDTH)) / 12).astype(np.float32), name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Products, a value that is used far below, a branch that reads values around it, and one weight used twice."""
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h1", "w2"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["h0"], ["t"])],
        "else",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["h1"]),
        helper.make_node("ReduceSum", ["h1"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["chosen", "w0"], ["h3"]),
        helper.make_node("Add", ["h3", "h0"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("y", "h1", "w1")],
        [*(_weight(f"w{number}") for number in range(3)), numpy_helper.from_array(np.float32(0), "zero")],
    )
    path = tmp_path / "m.onnx"
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(whole, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


@pytest.mark.parametrize("largest_part_bytes", [1, 2 * WIDTH * WIDTH * 4, 1 << 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_parts_compute_what_the_whole_does(model: Path, largest_part_bytes: int, sign: int) -> None:
    feed = {"x": sign * X}
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = dict(zip((one.name for one in session.get_outputs()), session.run(None, feed), strict=True))
    parts = Parts(OnnxFile().read(model), largest_part_bytes=largest_part_bytes)
    assert [(spec.name, spec.shape) for spec in parts.inputs] == [("x", ("batch", WIDTH))]
    for _ in range(2):
        result = parts.run(feed)
        assert list(result) == ["y", "h1", "w1"]
        for name, value in result.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-4)
    assert list(parts.run(feed, ["h1"])) == ["h1"]


def test_the_graph_may_change_after_it_was_divided(model: Path) -> None:
    graph = OnnxFile().read(model)
    parts = Parts(graph, largest_part_bytes=1)
    before = parts.run({"x": X})["y"]
    graph.graph.outputs.clear()
    for node in list(graph.graph):
        for position in range(len(node.inputs)):
            node.replace_input_with(position, None)
    np.testing.assert_array_equal(parts.run({"x": X})["y"], before)


MEASURED = """
import pathlib, re, sys
from typer.testing import CliRunner
from qtool.cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
assert result.exit_code == 0, result.output
print(1024 * int(re.search(r"VmHWM:\\s+([0-9]+) kB", pathlib.Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from the kernel")
@pytest.mark.parametrize("arguments", [("--opset", "18"), ("--fp16",), ("--bf16",)])
def test_three_gigabytes_are_converted_in_the_memory_of_a_few_layers(tmp_path: Path, arguments: Any) -> None:
    width, layers = 8192, 12
    layer_bytes = width * width * 4
    weights = []
    for number in range(layers):
        weights.append(TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[width, width]))
        weights[-1].data_location = TensorProto.EXTERNAL
        place = {"location": "large.data", "offset": number * layer_bytes, "length": layer_bytes}
        for key, value in place.items():
            weights[-1].external_data.add(key=key, value=str(value))
    values = [f"h{number}" for number in range(layers)]
    nodes = [
        helper.make_node("MatMul", [source, f"w{number}"], [values[number]])
        for number, source in enumerate(["x", *values[:-1]])
    ]
    nodes.append(helper.make_node("Add", [values[-1], "bias"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", "y")]
    bias = numpy_helper.from_array(np.ones(width, np.float32), "bias")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [*weights, bias])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "large.onnx"
    )
    with (tmp_path / "large.data").open("wb") as stream:  # zeros, which take no room on the disk
        stream.truncate(layers * layer_bytes)
    command = [sys.executable, "-c", MEASURED, "convert", "large.onnx", *arguments, "-o", "result.onnx"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(re.findall(r"\d+", result.stdout)[-1]) < layer_bytes + (1 << 30)
