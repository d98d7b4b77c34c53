"""Weights and activations in 8-bit floats, against ml_dtypes and the reference implementation of ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtool.calib.affine import Range, dequantize, params_from_range, quantize
from qtool.calib.errors import CalibError
from qtool.calib.grid import Float8, Grid
from tests.number_types.conftest import samples, write_network

Array = np.ndarray[Any, np.dtype[Any]]
_DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
_TYPES = {"e4m3": TensorProto.FLOAT8E4M3FN, "e5m2": TensorProto.FLOAT8E5M2}
_LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}


@pytest.fixture(params=[13, 21], ids=["opset-13", "opset-21"])
def model(request: Any, tmp_path: Path) -> Path:
    version = 7 if request.param < 19 else 10
    return write_network(tmp_path, opset=request.param, ir_version=version)


def _arguments(model: Path, *options: object) -> list[object]:
    return ["quantize", model, "--calib-data", model.with_name("data.npz"), "--target", "tensorrt", *options]


def _quantized(run: Any, model: Path, kind: str, *options: object) -> Path:
    output = model.with_name(f"{kind}.onnx")
    result = run(*_arguments(model, "--activation-type", kind, *options), "-o", output, "--force", "--json")
    assert result.code == 0, result.err
    assert result.json["scheme"] == f"{kind} activations, {kind} per-channel weights"
    return output


def _stored(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_values_become_the_nearest_floats_ties_to_even_and_saturate(kind: str) -> None:
    grid = Grid(float8=Float8(kind))
    params = params_from_range(Range(-3.0, 7.0), grid)
    assert float(params.scale) == pytest.approx(7.0 / _LARGEST[kind])
    every = np.arange(256, dtype=np.uint8).view(_DTYPES[kind]).astype(np.float64)
    every = np.unique(every[np.isfinite(every)])
    generator = np.random.default_rng(0)
    # Among others the middles between neighbours, and what lies beyond the ends.
    values = np.concatenate(
        [generator.normal(0, 3, 500), (every[1:] + every[:-1]) / 2 * float(params.scale), [1e9, -1e9]]
    )
    values = values.astype(np.float32)
    steps = (values / params.scale).astype(np.float64)
    distance = np.abs(every[:, np.newaxis] - np.clip(steps, -_LARGEST[kind], _LARGEST[kind]))
    found = quantize(values, params)
    assert found.dtype == _DTYPES[kind]
    chosen = np.abs(found.astype(np.float64) - np.clip(steps, -_LARGEST[kind], _LARGEST[kind]))
    np.testing.assert_array_equal(chosen, distance.min(axis=0))
    even = [int(value) & 1 for value in found.view(np.uint8)]
    ties = (distance == distance.min(axis=0)).sum(axis=0) > 1
    assert ties.any()
    assert not np.asarray(even)[ties].any()
    np.testing.assert_array_equal(dequantize(found, params), found.astype(np.float32) * params.scale)


def test_a_float_grid_has_no_zero_point() -> None:
    with pytest.raises(CalibError, match="around zero"):
        Grid(float8=Float8.E4M3, symmetric=False)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_scales_take_the_largest_magnitude_to_the_largest_float(run: Any, model: Path, kind: str) -> None:
    stored, floats = _stored(_quantized(run, model, kind)), _stored(model)
    for name in ("w1", "w2", "w3"):
        weight = floats[name]
        others = tuple(range(1, weight.ndim))
        scale = (np.abs(weight).max(axis=others) / _LARGEST[kind]).astype(np.float32)
        np.testing.assert_allclose(stored[f"{name}_scale"], scale, rtol=1e-6)
        spread = stored[f"{name}_scale"].reshape(-1, *[1] * len(others))
        expected = np.clip(weight / spread, -_LARGEST[kind], _LARGEST[kind]).astype(_DTYPES[kind])
        np.testing.assert_array_equal(stored[f"{name}_quantized"].astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize(("kind", "least_db"), [("e4m3", 24.0), ("e5m2", 16.0)])
def test_the_graph_computes_what_the_reference_does(run: Any, model: Path, kind: str, least_db: float) -> None:
    path = _quantized(run, model, kind)
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    kinds = {tensor.data_type for tensor in proto.graph.initializer if tensor.name.endswith("_zero_point")}
    assert kinds == {_TYPES[kind]}
    assert all(node.domain == "" for node in proto.graph.node)
    sample = samples(1, seed=8)
    wanted = ReferenceEvaluator(proto).run(None, {"x": sample})[0]
    # Optimized, it drops a Relu before Q, as if zero were the lowest float.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found, floats = (
        onnxruntime.InferenceSession(one, options, providers=["CPUExecutionProvider"]).run(None, {"x": sample})[0]
        for one in (path, model)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    assert 10 * np.log10(np.square(floats).sum() / np.square(floats - found).sum()) > least_db


def test_tensorrts_rules_allow_e4m3_alone(run: Any, model: Path) -> None:
    assert run("verify", _quantized(run, model, "e4m3"), "--target", "tensorrt").code == 0
    refused = run("verify", _quantized(run, model, "e5m2"), "--target", "tensorrt")
    assert refused.code == 1
    said = " ".join(refused.err.split())
    assert "FLOAT8E5M2" in said
    assert "--activation-type e4m3" in said


def test_verify_explain_inspect_diff_and_dequantize_know_it(run: Any, model: Path) -> None:
    path = _quantized(run, model, "e4m3")
    counted = run("verify", path, "--json").json
    assert (counted["integer_nodes"], counted["quantizable_nodes"]) == (0, 3)
    assert all("8-bit floats" in miss["reason"] for miss in counted["misses"])
    told = run("explain", path, "/d", "--json").json
    weight = next(tensor for tensor in told["tensors"] if tensor["tensor"] == "w2")
    assert weight["scheme"] == "float8_e4m3fn, per channel on axis 0 (12)"
    # Three bits of mantissa: steps of 1/8 to 1/16 of a value.
    assert 28 < weight["error"]["rounding_db"] < 35
    assert run("inspect", path, "--json").json["graph"]["quantization"]["quantized_layers"] == 3
    changes = {(one["kind"], one["name"]): one for one in run("diff", model, path, "--json").json["changes"]}
    assert 0.01 < changes["weights", "w2"]["size"] < 0.05
    assert run("dequantize", path, "-o", model.with_name("back.onnx")).code == 0
    assert not {node.op_type for node in onnx.load(model.with_name("back.onnx")).graph.node} & {
        "QuantizeLinear",
        "DequantizeLinear",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "x86", "--activation-type", "e4m3"), "no kernels for 8-bit floats"),
        (("--weight-type", "e4m3", "--activation-type", "s8"), "no kernel multiplies 8-bit floats with integers"),
        (("--weight-type", "e4m3", "--weights-asymmetric"), "no zero point"),
        (("--activation-type", "e4m3", "--gptq"), "--gptq has no effect"),
        (("--activation-type", "e4m3", "--method", "entropy"), "--method entropy has no effect"),
        (("--activation-type", "e4m3", "--min-sqnr", "30"), "--min-sqnr has no effect"),
    ],
)
def test_what_has_no_meaning_is_refused(run: Any, model: Path, options: tuple[str, ...], said: str) -> None:
    result = run(*_arguments(model, *options))
    assert result.code == 2
    assert said in " ".join(result.err.split())
