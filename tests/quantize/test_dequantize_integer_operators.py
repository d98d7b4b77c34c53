"""``qtool dequantize`` of what onnxruntime's own quantizer writes: integer operators instead of Q and DQ."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

INTEGERS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QuantizeLinear", "DequantizeLinear")


class Samples(CalibrationDataReader):
    def __init__(self, arrays: np.ndarray) -> None:
        self._left = iter([{"image": array[None]} for array in arrays])

    def get_next(self) -> Any:
        return next(self._left, None)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Writes a small residual network as ``net.onnx`` and returns images."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(2)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (72, 6), "w4": (6, 5), "b4": (5,)}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["a"], name="n_a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="n_r"),
        helper.make_node("Conv", ["r", "w2"], ["c"], name="n_c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "r"], ["s"], name="n_s"),
        helper.make_node("MaxPool", ["s"], ["m"], name="n_m", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["m"], ["v"], name="n_v", kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["v"], ["f"], name="n_f"),
        helper.make_node("MatMul", ["f", "w3"], ["p"], name="n_p"),
        helper.make_node("LeakyRelu", ["p"], ["l"], name="n_l", alpha=0.1),
        helper.make_node("Gemm", ["l", "w4", "b4"], ["logits"], name="n_g"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)
            for name, shape in shapes.items()
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    return random.normal(size=(24, 3, 8, 8)).astype(np.float32)


def outputs(path: str, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def decibels(reference: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))


def left(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type.startswith(INTEGERS)]


@pytest.mark.parametrize("per_channel", [False, True])
def test_static_integer_operators_become_float_layers(run: Any, network: np.ndarray, per_channel: bool) -> None:
    quantize_static(
        "net.onnx",
        "q.onnx",
        Samples(network),
        quant_format=QuantFormat.QOperator,
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )
    kinds = set(left("q.onnx"))
    assert {"QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm"} <= kinds
    outcome = run("dequantize", "q.onnx", "-o", "back.onnx", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["removed_nodes"] == len(left("q.onnx"))
    assert left("back.onnx") == []
    reference, integers, back = (outputs(path, network) for path in ("net.onnx", "q.onnx", "back.onnx"))
    # Activations are exact again; only the weights still are rounded.
    assert decibels(reference, back) > decibels(reference, integers)
    assert decibels(reference, back) > 25
    assert [value.name for value in onnx.load("back.onnx").graph.output] == ["logits"]


def test_dynamic_convolutions_become_float_ones(run: Any, network: np.ndarray) -> None:
    quantize_dynamic("net.onnx", "q.onnx", weight_type=QuantType.QUInt8)
    assert {"ConvInteger", "MatMulInteger"} <= set(left("q.onnx"))
    outcome = run("dequantize", "q.onnx", "-o", "back.onnx")
    assert outcome.code == 0, outcome.err
    assert left("back.onnx") == []
    assert {"Conv"} <= {node.op_type for node in onnx.load("back.onnx").graph.node}
    assert decibels(outputs("net.onnx", network), outputs("back.onnx", network)) > 25


def test_an_operator_in_a_form_that_stays_is_named(run: Any, network: np.ndarray) -> None:
    quantize_static("net.onnx", "q.onnx", Samples(network), quant_format=QuantFormat.QOperator, reduce_range=True)
    model = onnx.load("q.onnx")
    pool = next(node for node in model.graph.node if node.op_type == "QLinearAveragePool")
    pool.attribute.append(helper.make_attribute("channels_last", 1))
    onnx.save(model, "q.onnx")
    outcome = run("dequantize", "q.onnx", "-o", "back.onnx")
    assert outcome.code == 2
    said = " ".join(outcome.err.split())
    assert f"q.onnx holds '{pool.name}', a QLinearAveragePool in a form that cannot be dequantized" in said
    assert not Path("back.onnx").exists()
