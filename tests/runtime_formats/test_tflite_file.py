"""What litert-torch writes computes the same in LiteRT, with the integers of the source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

pytest.importorskip("litert_torch", reason="needs the extra tflite", exc_type=ImportError)
litert = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra tflite", exc_type=ImportError)

pytestmark = pytest.mark.slow


def _in_onnxruntime(path: str, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def _in_litert(path: str, images: np.ndarray) -> np.ndarray:
    interpreter = litert.Interpreter(model_path=path)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = taken["quantization"]
    found = []
    for image in images:
        fed = image if not scale else np.clip(np.rint(image / np.float32(scale)) + zero, -128, 127)
        interpreter.set_tensor(taken["index"], fed[None].astype(taken["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"]))
    assert given["dtype"] == np.float32
    return np.concatenate(found)


def _weights(path: str) -> dict[bytes, tuple[float, ...]]:
    """The integers of every convolution's weight, channels last, with their scales."""
    interpreter = litert.Interpreter(model_path=path, experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    found = {}
    for operator in interpreter._get_ops_details():
        if operator["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            index = int(operator["inputs"][1])
            details = interpreter._get_tensor_details(index, 0)
            scales = details["quantization_parameters"]["scales"]
            found[np.sort(interpreter.get_tensor(index).reshape(-1)).tobytes()] = tuple(sorted(scales.tolist()))
    return found


def test_a_float_model_keeps_its_outputs(run: Any, folder: Path, images: np.ndarray) -> None:
    result = run("float.onnx", "--to", "tflite", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["format"], report["output"], report["integer_layers"]) == ("tflite", "float.tflite", None)
    assert report["inputs"] == ["image (1, 3, 12, 12)"]
    np.testing.assert_allclose(
        _in_litert("float.tflite", images), _in_onnxruntime("float.onnx", images), rtol=1e-4, atol=1e-5
    )


def test_the_integers_and_scales_of_weights_are_those_of_the_source(run: Any, folder: Path, images: np.ndarray) -> None:
    result = run("int8.onnx", "--to", "tflite", "--calib-data", "images.npz", "--json")
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["integer_layers"]
    assert layers["integer"] >= 2
    expected = _in_onnxruntime("int8.onnx", images)
    assert np.abs(_in_litert("int8.tflite", images) - expected).max() < 0.05 * np.abs(expected).max()
    model = onnx.load("int8.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = {
        np.sort(constants[node.input[0]].reshape(-1)).tobytes(): tuple(sorted(constants[node.input[1]].tolist()))
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
        if constants[node.input[0]].ndim == 4
    }
    written = _weights("int8.tflite")
    assert set(written) == set(stored)
    for integers, scales in written.items():
        np.testing.assert_allclose(scales, stored[integers], rtol=1e-6)


def test_lengths_can_be_given_and_must_be_where_they_are_not_known(run: Any, folder: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[n, 4, length] x) => (float[n, m, 4] y, float[n, 1, length] a)
    { y = Transpose<perm = [0, 2, 1]>(x)  axes = Constant<value_ints = [1]>()  a = ReduceMax(x, axes) }"""
    onnx.save(parser.parse_model(text), "free.onnx")
    refused = run("free.onnx", "--to", "tflite")
    assert refused.exit_code == 2
    assert "--input-shape x=1,4,length" in refused.stderr
    result = run("free.onnx", "--to", "tflite", "--input-shape", "x=2,4,6")
    assert result.exit_code == 0, result.output
    found = litert.Interpreter(model_path="free.tflite").get_signature_runner()
    data = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    outputs = found(x=data)
    np.testing.assert_array_equal(outputs["y"], data.transpose(0, 2, 1))
    np.testing.assert_array_equal(outputs["a"], data.max(1, keepdims=True))


def test_the_same_request_gives_the_same_bytes(run: Any, folder: Path) -> None:
    written = []
    for _ in range(2):
        assert run("int8.onnx", "--to", "tflite", "-o", "model.tflite", "--force").exit_code == 0
        written.append((folder / "model.tflite").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ("y = LSTM<hidden_size = 2>(x, w, w)", "LSTM"),
        ("y = com.example.Unheard(x)", "Unheard"),
    ],
)
def test_an_unsupported_operator_is_named_and_nothing_is_written(run: Any, folder: Path, node: str, named: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]>
    net (float[1, 8, 2] x, float[1, 8, 2] w) => (float[1, 1, 8, 2] y) {{ {node} }}"""
    onnx.save(parser.parse_model(text), "odd.onnx")
    before = sorted(path.name for path in folder.iterdir())
    result = run("odd.onnx", "--to", "tflite")
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.output
    assert sorted(path.name for path in folder.iterdir()) == before
