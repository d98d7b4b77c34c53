"""Numbers that exporters store with axes of length 1 mean what they mean without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qtool.graph.constants import clip_bounds
from qtool.passes.optimization.remove_no_ops import RemoveNoOps
from qtool.passes.quantization.fold_affine import FoldAffine
from qtool.passes.quantization.fold_into_next import FoldIntoNext

Save = Callable[..., Path]

_GRAPH = """
g (float[n,3,8,8] image) => (float[n,5] scores) {
    a = Conv <pads = [1,1,1,1]> (image, w1, b1)
    b = Clip (a, zero, six)
    c = Pad (b, pads, minus)
    d = Conv (c, w2)
    e = Clip (d, minus, )
    shifted = Add (e, three)
    gate = Clip (shifted, zero, six)
    product = Mul (e, gate)
    swish = Div (product, six)
    f = GlobalAveragePool (swish)
    h = Flatten (f)
    i = Pow (h, one)
    scores = Gemm (i, w3, three)
}
"""
_NUMBERS = {"zero": 0, "six": 6, "minus": -1, "three": 3, "one": 1}


def _tensors(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    numbers = {name: np.full(shape, number, np.float32) for name, number in _NUMBERS.items()}
    return {
        **numbers,
        "w1": rng.normal(0, 0.4, (8, 3, 3, 3)).astype(np.float32),
        "b1": rng.normal(0, 0.4, 8).astype(np.float32),
        "w2": rng.normal(0, 0.2, (8, 8, 3, 3)).astype(np.float32),
        "w3": rng.normal(0, 0.4, (8, 5)).astype(np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }


def _images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (24, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "{}.onnx", "--calib-data", "c.npz", "--target", "x86-avx2", "--effort", "fast", "-o", "{}.o.onnx"],
        ["quantize", "{}.onnx", "--calib-data", "c.npz", "--target", "qnn", "--effort", "fast", "-o", "{}.o.onnx"],
        ["optimize", "{}.onnx", "--data", "c.npz", "-o", "{}.o.onnx"],
        ["convert", "{}.onnx", "--fp16", "-o", "{}.o.onnx"],
    ],
)
def test_a_result_is_the_same_for_numbers_with_one_axis(
    run: Any, save: Save, tmp_path: Path, command: list[str]
) -> None:
    np.savez(tmp_path / "c.npz", image=_images(1))
    outputs = []
    for name, shape in (("plain", ()), ("vector", (1,))):
        save(f"{name}.onnx", _GRAPH, **_tensors(shape))
        outcome = run(*(part.format(name) for part in command))
        assert outcome.code == 0, outcome.err
        session = onnxruntime.InferenceSession(f"{name}.o.onnx", providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"image": _images(2)})[0])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)


def test_calibrate_and_sensitivity_take_numbers_with_one_axis(run: Any, save: Save, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", image=_images(1))
    save("vector.onnx", _GRAPH, **_tensors((1,)))
    for command in (["calibrate", "vector.onnx", "-o", "stats.npz"], ["sensitivity", "vector.onnx"]):
        outcome = run(*command, "--calib-data", "c.npz", "--target", "x86-avx2")
        assert outcome.code == 0, outcome.err


@given(st.lists(st.just(1), max_size=4), st.floats(-10, 0, width=32), st.floats(0, 10, width=32))
def test_bounds_of_any_rank_are_read(axes: list[int], low: float, high: float) -> None:
    bounds = [
        ir.Value(name=name, const_value=ir.tensor(np.full(axes, number, np.float32)))
        for name, number in (("low", low), ("high", high))
    ]
    node = ir.node("Clip", [ir.Value(name="x"), *bounds])
    ir.Graph([node.inputs[0]], node.outputs, nodes=[node], initializers=bounds)
    assert clip_bounds(node) == (low, high)


@given(
    rank=st.integers(0, 4),
    operator=st.sampled_from(["Mul", "Add", "Max", "Pow"]),
    layer=st.sampled_from(["Gemm", "MatMul"]),
)
def test_a_number_with_more_axes_than_the_tensor_keeps_them(rank: int, operator: str, layer: str) -> None:
    number = np.full((1,) * rank, {"Pow": 1.0, "Max": -np.inf}.get(operator, 0.5), np.float32)
    nodes = [helper.make_node(operator, ["x", "c"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    if layer == "Gemm" and rank <= 2:
        nodes[1] = helper.make_node("Gemm", ["a", "w", "c"], ["y"])
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["n", 3])],
        [helper.make_tensor_value_info("y", 1, [None] * max(rank, 2))],
        [numpy_helper.from_array(number, "c"), numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    model = ir.from_proto(proto)
    for graph_pass in (RemoveNoOps(), FoldAffine(), FoldIntoNext()):
        model = graph_pass(model).model
    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-6)
