"""A product whose Relu or Clip cannot become part of its Q still runs on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from qtool.backends.onnxruntime_cpu.coverage import integer_coverage
from qtool.backends.targets import PRESETS
from qtool.calib.grid import Grid
from qtool.runtime.graphs import open_graph

Prepared = Callable[..., ir.Model]
Quantized = Callable[..., ir.Model]
Arrays = Callable[..., npt.NDArray[np.float32]]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("layer", ["Gemm (x, w, b)", "MatMul (x, w)"])
@pytest.mark.parametrize("clamp", ["Relu (a)", "Clip (a, low, high)"])
def test_a_product_in_front_of_a_clamp_runs_on_integers_around_a_fixed_zero(
    prepared: Prepared, quantized: Quantized, random_array: Arrays, signed: bool, layer: str, clamp: str
) -> None:
    constants: dict[str, npt.NDArray[Any]] = {"w": random_array(6, 8), "w2": random_array(8, 4)}
    constants |= {"b": random_array(8)} if "b" in layer else {}
    constants |= {"low": np.float32(0), "high": np.float32(1)} if "Clip" in clamp else {}
    model = prepared(
        f"g (float[N,6] x) => (float[N,4] y) {{ a = {layer} c = {clamp} y = MatMul (c, w2) }}",
        **{name: np.asarray(array) for name, array in constants.items()},
    )
    feeds = [{"x": random_array(5, 6, seed=seed)} for seed in range(4)]
    grid = Grid(bits=8, signed=signed, symmetric=True)
    model = quantized(model, feeds, scheme=replace(PRESETS["x86"], activations=grid))
    rows = integer_coverage(model).nodes
    assert rows[0].operator == layer.partition(" ")[0]
    assert [row.reason for row in rows] == [None, None]


def test_a_product_whose_clamp_is_read_in_float_keeps_its_values(
    prepared: Prepared, quantized: Quantized, random_array: Arrays
) -> None:
    model = prepared(
        "g (float[N,6] x) => (float[N,8] y) { a = Gemm (x, w, b) y = Relu (a) }",
        w=random_array(6, 8),
        b=random_array(8),
    )
    grid = Grid(bits=8, signed=False, symmetric=True)
    model = quantized(model, [{"x": random_array(5, 6)}], scheme=replace(PRESETS["x86"], activations=grid))
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1
    assert integer_coverage(model).share == 1.0


_READERS = {
    "one operator in float": "y = Tanh (c)",
    "two operators in float": "t = Tanh (c) e = Exp (c) y = Concat <axis = -1> (t, e)",
    "a residual sum": "t = Tanh (x) s = Add (c, t) y = Softmax (s)",
    "an operator and the output": "y = Identity (c) z = Tanh (c)",
    "integers and floats": "y = MatMul (c, w2) z = Tanh (c)",
    "the output alone": "y = Identity (c)",
}
_CLAMPS = (
    "Relu (a)",
    "Clip (r, low, high)",
    "Relu (l)",
    "Clip (a, low, high)",
    "Clip (a, low, )",
    "Clip (a, one, high)",
    "Clip (a, minus, low)",
)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reader", list(_READERS))
@pytest.mark.parametrize("layer", ["Gemm (x, w, b)", "MatMul (x, w)"])
@pytest.mark.parametrize("clamp", _CLAMPS)
def test_a_product_in_front_of_a_clamp_runs_on_integers_whoever_reads_it(
    prepared: Prepared, quantized: Quantized, random_array: Arrays, symmetric: bool, reader: str, layer: str, clamp: str
) -> None:
    before = {"Clip (r, low, high)": "r = Relu (a)", "Relu (l)": "l = Clip (a, minus, high)"}.get(clamp, "")
    text = f"a = {layer} {before} c = {clamp} {_READERS[reader]}"
    constants: dict[str, npt.NDArray[Any]] = {"w": random_array(6, 6), "w2": random_array(6, 4), "b": random_array(6)}
    numbers = {"low": 0, "high": 1, "one": 0.5, "minus": -1}
    constants |= {name: np.asarray(number, np.float32) for name, number in numbers.items()}
    used = {word.strip("(),") for word in text.split()}
    outputs = "float[N,k] y" + (", float[N,6] z" if " z = " in text else "")
    model = prepared(
        f"g (float[N,6] x) => ({outputs}) {{ {text} }}",
        **{name: array for name, array in constants.items() if name in used},
    )
    feeds = [{"x": random_array(5, 6, seed=seed)} for seed in range(4)]
    with open_graph(model) as session:
        expected = session.run(feeds[0])
    grid = Grid(bits=8, signed=False, symmetric=symmetric)
    model = quantized(model, feeds, scheme=replace(PRESETS["x86"], activations=grid))
    rows = [row for row in integer_coverage(model).nodes if row.operator in ("Gemm", "MatMul")]
    assert rows
    assert [row.reason for row in rows] == [None] * len(rows)
    with open_graph(model) as session:
        result = session.run(feeds[0])
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, atol=0.1)
