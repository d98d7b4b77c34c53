"""Activations of 16 bits: what they compute, under which parameters, and what is said of where they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qtool.backends.qnn.rules import RULES
from qtool.backends.violations import check
from qtool.formats.onnx.onnx_file import OnnxFile
from tests.number_types.conftest import samples, write_network

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(params=[17, 21], ids=["opset-17", "opset-21"])
def model(request: Any, tmp_path: Path) -> Path:
    """A convolutional network whose gates are a Sigmoid and a Tanh, as net.onnx beside data.npz."""
    version = 8 if request.param < 21 else 10
    return write_network(tmp_path, opset=request.param, ir_version=version)


def _quantized(run: Any, model: Path, kind: str, *options: object) -> Path:
    output = model.with_name(f"{kind}.onnx")
    given = ("--calib-data", model.with_name("data.npz"), "--batch-size", 1, "--effort", "fast", "--target", "qnn")
    result = run("quantize", model, *given, "--activation-type", kind, *options, "-o", output, "--force", "--json")
    assert result.code == 0, result.err
    assert result.json["scheme"].startswith(kind)
    return output


def _exact(path: Path, inputs: Array) -> Array:
    """Runs a graph in onnxruntime as it stands, node by node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": sample[np.newaxis]})[0] for sample in inputs])


def _noise(path: Path, model: Path) -> float:
    inputs = samples(6, seed=5)
    expected = _exact(model, inputs)
    return float(np.square(expected - _exact(path, inputs)).sum() / np.square(expected).sum())


@pytest.mark.parametrize("kind", ["u16", "s16"])
def test_sixteen_bits_are_nearer_to_float_than_eight(run: Any, model: Path, kind: str) -> None:
    # What is left is the noise of 8-bit weights.
    assert _noise(_quantized(run, model, kind), model) < 0.3 * _noise(_quantized(run, model, "u8"), model)


@pytest.mark.parametrize("kind", ["u16", "s16"])
def test_q_and_dq_are_the_standards_or_onnxruntimes_by_opset(run: Any, model: Path, kind: str) -> None:
    proto = onnx.load(_quantized(run, model, kind))
    opset = next(entry.version for entry in proto.opset_import if entry.domain == "")
    wide = "" if opset >= 21 else "com.microsoft"
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    dtypes = {"u16": onnx.TensorProto.UINT16, "s16": onnx.TensorProto.INT16}
    quantizers = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert (node.domain, stored[node.input[2]].data_type) == (wide, dtypes[kind])
    onnx.checker.check_model(proto)


def test_the_standards_form_computes_what_the_reference_does(run: Any, model: Path) -> None:
    path = _quantized(run, model, "u16")
    proto = onnx.load(path)
    if any(node.domain for node in proto.graph.node):
        pytest.skip("the reference implementation has no operators of onnxruntime's")
    sample = samples(1, seed=9)
    wanted = ReferenceEvaluator(proto).run(None, {"x": sample})[0]
    np.testing.assert_allclose(_exact(path, sample), wanted, atol=1e-4)


@pytest.mark.parametrize(("kind", "tanh"), [("u16", 32768), ("s16", 0)])
def test_sigmoid_and_tanh_have_the_parameters_that_qnn_takes(run: Any, model: Path, kind: str, tanh: int) -> None:
    proto = onnx.load(_quantized(run, model, kind))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = {output: node.op_type for node in proto.graph.node for output in node.output}
    found = {
        makers[node.input[0]]: (float(stored[node.input[1]]), int(stored[node.input[2]]))
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in makers
    }
    assert found["Sigmoid"] == (2.0 ** -(16 if kind == "u16" else 15), 0)
    assert found["Tanh"] == (2.0**-15, tanh)


def test_qnns_rules_allow_u16_and_name_s16(run: Any, model: Path) -> None:
    allowed, named = (check(OnnxFile().read(_quantized(run, model, kind)), RULES) for kind in ("u16", "s16"))
    assert not allowed
    assert {violation.rule for violation in named} == {"activation types"}
    assert "--activation-type u16" in named[0].fix


def test_verify_counts_none_of_it_as_integers_on_this_processor(run: Any, model: Path) -> None:
    path = _quantized(run, model, "u16")
    counted = run("verify", path, "--json").json
    assert counted["integer_nodes"] == 0
    assert counted["quantizable_nodes"] >= 7
    reasons = {miss["reason"] for miss in counted["misses"]}
    assert reasons == {"its integers have 16 bits, for NPUs: here it computes in float between Q and DQ"}


def test_dequantizing_takes_both_forms_back(run: Any, model: Path) -> None:
    path = _quantized(run, model, "u16")
    result = run("dequantize", path, "-o", model.with_name("back.onnx"), "--json")
    assert result.code == 0, result.err
    left = {node.op_type for node in onnx.load(model.with_name("back.onnx")).graph.node}
    assert not left & {"QuantizeLinear", "DequantizeLinear"}
    assert _noise(model.with_name("back.onnx"), model) < 1e-3


@pytest.mark.parametrize("target", ["x86-vnni", "arm64", "tensorrt", "openvino"])
def test_targets_without_kernels_for_it_refuse_it(run: Any, model: Path, target: str) -> None:
    given = ("--calib-data", model.with_name("data.npz"), "--target", target, "--activation-type", "u16")
    result = run("quantize", model, *given)
    assert result.code == 2
    said = " ".join(result.err.split())
    assert "no integer kernels for u16 activations" in said
    assert "--target qnn" in said
