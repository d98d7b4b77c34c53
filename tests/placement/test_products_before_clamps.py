"""A product whose Relu or Clip cannot become part of its Q still runs on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from calib.grid import Grid
from qtool.runtime.coverage import integer_coverage
from qtool.schemes import PRESETS

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
