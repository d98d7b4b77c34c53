"""``qtool dequantize``: the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from qtool.runtime.session import Session
from tests.graphs_read import initializers_of


def test_the_weights_are_the_dequantized_ones(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    outcome = run("dequantize", "net.int8.onnx", "--json")
    assert outcome.code == 0, outcome.err
    path = Path(outcome.json["output"])
    assert path.name == "net.float.onnx"
    graph = onnx.load(path).graph
    assert not [node for node in graph.node if "Quantize" in node.op_type or "Dequantize" in node.op_type]
    quantized, floats = initializers_of(Path("net.int8.onnx")), initializers_of(path)
    for name in ("w1", "w2", "w3", "w4"):
        scale = quantized[f"{name}_scale"].reshape(-1, *[1] * (floats[name].ndim - 1))
        expected = quantized[f"{name}_quantized"].astype(np.float32) * scale
        np.testing.assert_array_equal(floats[name], expected)
        assert floats[name].dtype == np.float32


def test_the_float_model_is_close_to_the_original(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    assert run("dequantize", "net.int8.onnx", "-o", "back.onnx").code == 0
    images = np.load(data)["image"]
    reference = Session(model).run({"image": images})["logits"]
    result = Session(Path("back.onnx")).run({"image": images})["logits"]
    assert np.abs(result - reference).max() < 0.05 * np.abs(reference).max()
    assert [value.name for value in onnx.load("back.onnx").graph.output] == ["logits"]


def test_what_kept_a_layer_float_goes_too(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data, "--exclude", "/c2/Conv").code == 0
    assert [node.op_type for node in onnx.load("net.int8.onnx").graph.node].count("Sum") == 1
    assert run("dequantize", "net.int8.onnx").code == 0
    assert "Sum" not in [node.op_type for node in onnx.load("net.float.onnx").graph.node]


@pytest.mark.slow
def test_it_can_be_quantized_again(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    assert run("dequantize", "net.int8.onnx").code == 0
    again = run("quantize", "net.float.onnx", "--calib-data", data, "--json")
    assert again.code == 0, again.err
    assert again.json["coverage"]["integer_nodes"] == 7


def test_a_clamp_that_only_the_grid_had_is_written_out(run: Any, tmp_path: Path) -> None:
    # A quantizer that dropped the ReLU: the zero point of the grid behind the Conv is its lowest integer.
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z128"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z128"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "zw"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z0"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z0"], ["y"]),
    ]
    weight = np.full((2, 2, 1, 1), -20, np.int8)
    weight[1] = 20
    graph = helper.make_graph(
        nodes,
        "dropped",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [
            numpy_helper.from_array(np.float32(0.05), "s"),
            numpy_helper.from_array(np.uint8(128), "z128"),
            numpy_helper.from_array(np.uint8(0), "z0"),
            numpy_helper.from_array(np.int8(0), "zw"),
            numpy_helper.from_array(weight, "wq"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "dropped.onnx")
    assert run("dequantize", "dropped.onnx", "-o", "back.onnx").code == 0
    images = np.random.default_rng(0).uniform(-3, 3, (1, 2, 4, 4)).astype(np.float32)
    result = Session(Path("back.onnx")).run({"x": images})["y"]
    kernel = weight.astype(np.float32) * np.float32(0.05)
    expected = np.maximum(np.einsum("oi,nihw->nohw", kernel[:, :, 0, 0], images), 0)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert [node.op_type for node in onnx.load("back.onnx").graph.node] == ["Conv", "Relu"]


def test_a_float_model_is_an_error(run: Any, model: Path) -> None:
    outcome = run("dequantize", model)
    assert outcome.code == 2
    assert "net.onnx is not quantized" in outcome.err


def test_integer_operators_are_an_error(run: Any, tmp_path: Path) -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    graph = helper.make_graph(
        [node],
        "integers",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("q", onnx.TensorProto.UINT8, [4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "integers.onnx")
    outcome = run("dequantize", "integers.onnx")
    assert outcome.code == 2
    assert "holds a DynamicQuantizeLinear in a form that cannot be dequantized" in outcome.err


def test_an_existing_output_is_kept(run: Any, model: Path, data: Path) -> None:
    assert run("quantize", model, "--calib-data", data).code == 0
    Path("net.float.onnx").write_bytes(b"precious")
    outcome = run("dequantize", "net.int8.onnx")
    assert outcome.code == 2
    assert Path("net.float.onnx").read_bytes() == b"precious"
    same = run("dequantize", "net.int8.onnx", "-o", "net.int8.onnx", "--force")
    assert same.code == 2
    assert "the output is the input" in same.err


def test_outputs_have_types_where_inner_tensors_have_none(run: Any, save: Any) -> None:
    path = save(
        "q.onnx",
        """g (float[n,3,6,6] x) => (float[n,4,4,4] y, float[n,4,4,4] z) {
            xq = QuantizeLinear (x, s, zero)  xd = DequantizeLinear (xq, s, zero)
            wd = DequantizeLinear (w, s, zw)
            a = Conv (xd, wd)
            aq = QuantizeLinear (a, s, zero)
            y = DequantizeLinear (aq, s, zero)
            r = Relu (a)
            rq = QuantizeLinear (r, s, lowest)
            z = DequantizeLinear (rq, s, lowest)
        }""",
        s=np.array(0.05, np.float32),
        zero=np.array(128, np.uint8),
        lowest=np.array(0, np.uint8),
        zw=np.array(0, np.int8),
        w=np.random.default_rng(1).integers(-40, 40, (4, 3, 3, 3)).astype(np.int8),
    )
    assert not onnx.load(path).graph.value_info
    outcome = run("dequantize", path, "-o", "float.onnx")
    assert outcome.code == 0, outcome.err
    onnx.checker.check_model("float.onnx", full_check=True)
    kept = {value.name: value.type.tensor_type for value in onnx.load("float.onnx").graph.output}
    assert {name: kind.elem_type for name, kind in kept.items()} == dict.fromkeys("yz", onnx.TensorProto.FLOAT)
    assert [dim.dim_param or dim.dim_value for dim in kept["y"].shape.dim] == ["n", 4, 4, 4]
