"""Graphs in a form whose products are u8 by u8 give out what 64-bit integers do, on every processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qtool.backends.onnxruntime_cpu.exact_sums import exact_form, with_exact_sums
from qtool.backends.onnxruntime_cpu.integer_sums import sums_saturate
from qtool.backends.targets import PRESETS
from qtool.runtime.graphs import open_graph

# Powers of two keep every product of scales exact in float32, so that nothing is rounded before the last step.
_SCALE_OUT = 2.0**9


def _model(operator: str, shape: tuple[int, ...], weight: np.ndarray, zero: int, dtype: Any, **attributes: Any) -> Any:
    """A layer between Q and DQ with scales of 1, whose inputs are integers already."""
    axis = 0 if operator == "Conv" else weight.ndim - 1
    count = weight.shape[axis]
    stored = {
        "one": np.float32(1.0),
        "zero": np.asarray(zero, dtype),
        "w": weight,
        "w_scale": np.ones(count, np.float32),
        "w_zero": np.zeros(count, np.int8),
        "y_scale": np.float32(_SCALE_OUT),
        "y_zero": np.asarray(128 if dtype == np.uint8 else 0, dtype),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"], name="xq"),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"], name="xd"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], name="wd", axis=axis),
        helper.make_node(operator, ["xd", "wd"], ["r"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["r", "y_scale", "y_zero"], ["rq"], name="rq"),
        helper.make_node("DequantizeLinear", ["rq", "y_scale", "y_zero"], ["y"], name="yd"),
    ]
    return _ir(nodes, shape, stored)


def _ir(nodes: list[Any], shape: tuple[int, ...], stored: dict[str, Any]) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model: ir.Model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    return model


def _run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with open_graph(model, threads=1) as session:
        (found,) = session.run({"x": x.astype(np.float32)}).values()
    return found


def _closed(sums: np.ndarray) -> np.ndarray:
    """Quantizes and dequantizes sums as the specification says: to even, cut off at the ends of 8 bits around 0."""
    return np.clip(np.rint(sums.astype(np.float64) / _SCALE_OUT), -128, 127) * _SCALE_OUT


def _conv(x: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray:
    """A convolution without padding, written out in int64."""
    n, _, height, width = x.shape
    outputs, inner, rows, columns = weight.shape
    found = np.zeros((n, outputs, height - rows + 1, width - columns + 1), np.int64)
    for output in range(outputs):
        first = output // (outputs // group) * inner
        for place in np.ndindex(found.shape[2:]):
            window = x[:, first : first + inner, place[0] : place[0] + rows, place[1] : place[1] + columns]
            found[:, output, place[0], place[1]] = (window * weight[output].astype(np.int64)).sum(axis=(1, 2, 3))
    return found


_CONVS = {"dense": (4, 6, 1), "pointwise": (4, 6, 1), "depthwise": (4, 4, 4), "grouped": (4, 8, 2), "odd": (3, 5, 1)}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("kind", _CONVS)
@settings(max_examples=12)
@given(data=st.data())
def test_convolutions_equal_64_bit_integers(kind: str, dtype: Any, data: st.DataObject) -> None:
    channels, outputs, group = _CONVS[kind]
    side = 1 if kind == "pointwise" else 3
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Extremes, as they overflow 16 bits.
    weight = generator.choice([-127, -64, 0, 127, 127], (outputs, channels // group, side, side)).astype(np.int8)
    low = 0 if dtype == np.uint8 else -128
    x = generator.choice([low, low + 255, low + 255], (2, channels, 5, 5)).astype(np.int64)
    zero = 3 if dtype == np.uint8 else -5
    model = _model("Conv", x.shape, weight, zero, dtype, group=group)
    found = _run(with_exact_sums(model), x - zero)
    assert np.array_equal(found, _closed(_conv(x - zero, weight, group)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@settings(max_examples=12)
@given(data=st.data())
def test_products_of_matrices_equal_64_bit_integers(operator: str, dtype: Any, data: st.DataObject) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    inner = data.draw(st.integers(1, 40))
    weight = generator.choice([-127, 0, 127, 127], (inner, 7)).astype(np.int8)
    low = 0 if dtype == np.uint8 else -128
    x = generator.choice([low, low + 255], (5, inner)).astype(np.int64)
    model = _model(operator, x.shape, weight, 0, dtype)
    found = _run(with_exact_sums(model), x)
    assert np.array_equal(found, _closed(x @ weight.astype(np.int64)))


@pytest.mark.parametrize("zero_point", [None, np.zeros((), np.int8), np.zeros(7, np.int8)])
def test_dynamic_layers_equal_64_bit_integers(zero_point: np.ndarray | None) -> None:
    generator = np.random.default_rng(0)
    weight = generator.choice([-127, 127, 127], (32, 7)).astype(np.int8)
    stored: dict[str, Any] = {"w": weight, "scale": np.float32(1.0)}
    inputs = ["q", "w", "qz"]
    if zero_point is not None:
        stored["wz"] = zero_point
        inputs.append("wz")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"], name="q"),
        helper.make_node("MatMulInteger", inputs, ["sums"], name="product"),
        helper.make_node("Cast", ["sums"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "qs"], ["y"], name="y"),
    ]
    x = generator.choice([0, 255], (6, 32)).astype(np.int64)
    x[0, 0] = 255  # so that a step is 1
    found = _run(with_exact_sums(_ir(nodes, x.shape, stored)), x)
    assert np.array_equal(found, (x @ weight.astype(np.int64)).astype(np.float32))


def test_a_model_is_left_as_it_is_and_both_forms_agree_where_sums_have_32_bits() -> None:
    weight = np.full((2, 4), 127, np.int8)
    x = np.full((3, 2), 255, np.int64)
    model = _model("MatMul", x.shape, weight, 0, np.uint8)
    before = ir.to_proto(model).SerializeToString()
    exact = _run(with_exact_sums(model), x)
    assert ir.to_proto(model).SerializeToString() == before
    # Where they have 16, the plain form gives out half as much.
    assert np.array_equal(_run(model, x), exact) is not sums_saturate()


def test_only_schemes_that_may_overflow_here_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forms: Callable[[str], bool] = lambda name: exact_form(PRESETS[name]) is with_exact_sums  # noqa: E731
    monkeypatch.setattr("qtool.backends.onnxruntime_cpu.exact_sums.sums_saturate", lambda: True)
    assert [name for name in PRESETS if forms(name)] == ["x86-vnni", "arm64", "tensorrt", "qnn", "openvino"]
    monkeypatch.setattr("qtool.backends.onnxruntime_cpu.exact_sums.sums_saturate", lambda: False)
    assert not any(forms(name) for name in PRESETS)
