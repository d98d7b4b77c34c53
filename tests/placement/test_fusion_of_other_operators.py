"""Pins what onnxruntime's CPU provider makes of operators without weights between Q and DQ.

Each test opens one small graph and reads the operators off the graph that onnxruntime rewrote. When one of these
fails with a new onnxruntime, the table in ``qtool/backends/qdq_placement/operators.py`` has to change, not the test
alone. Patterns of which versions make different things are in ``test_fusion_by_version.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

_U8, _S8 = np.dtype(np.uint8), np.dtype(np.int8)
# A graph that is built node by node; see the fixture.
Pattern = Any


@pytest.mark.parametrize("dtype", [_U8, _S8])
@pytest.mark.parametrize(("operator", "kernel"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul")])
def test_sums_and_products_of_two_tensors_run_on_integers(
    pattern: Pattern, tmp_path: Path, operator: str, kernel: str, dtype: np.dtype[Any]
) -> None:
    left = pattern.pair(pattern.input(1, 4, 7), zero_point=3, dtype=dtype)
    right = pattern.pair(pattern.input(1, 4, 7), scale=0.02, zero_point=7, dtype=dtype)
    pattern.output(pattern.pair(pattern.node(operator, left, right), scale=0.3, zero_point=1, dtype=dtype))
    assert pattern.kernels(tmp_path) == {kernel: 1}


@pytest.mark.parametrize(("operator", "kernel"), [("Add", "QLinearAdd"), ("Mul", "QLinearMul")])
def test_a_quantized_constant_operand_runs_on_integers(
    pattern: Pattern, tmp_path: Path, operator: str, kernel: str
) -> None:
    x = pattern.pair(pattern.input(1, 4, 7))
    constant = pattern.weight(4, 1, dtype=_U8, zero_point=128)
    pattern.output(pattern.pair(pattern.node(operator, x, constant), scale=0.3))
    assert pattern.kernels(tmp_path) == {kernel: 1}


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_a_float_constant_operand_stays_float(pattern: Pattern, tmp_path: Path, operator: str) -> None:
    x = pattern.pair(pattern.input(1, 4, 7))
    constant = pattern.constant(np.full((4, 1), 0.5, np.float32))
    pattern.output(pattern.pair(pattern.node(operator, x, constant), scale=0.3))
    assert pattern.kernels(tmp_path) == {operator: 1}


@pytest.mark.parametrize("dtype", [_U8, _S8])
@pytest.mark.parametrize(
    ("operator", "kernel", "attributes"),
    [
        ("Sigmoid", "QLinearSigmoid", {}),
        ("LeakyRelu", "QLinearLeakyRelu", {"alpha": 0.1}),
        ("AveragePool", "QLinearAveragePool", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", "QLinearGlobalAveragePool", {}),
    ],
)
def test_unary_operators_run_on_integers_under_their_own_scale(
    pattern: Pattern, tmp_path: Path, operator: str, kernel: str, attributes: dict[str, Any], dtype: np.dtype[Any]
) -> None:
    x = pattern.pair(pattern.input(1, 4, 6, 6), zero_point=5, dtype=dtype)
    pattern.output(pattern.pair(pattern.node(operator, x, **attributes), scale=0.004, zero_point=0, dtype=dtype))
    assert pattern.kernels(tmp_path) == {kernel: 1}


def test_silu_runs_on_integers_with_pairs_around_both_its_parts(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 6))
    gate = pattern.pair(pattern.node("Sigmoid", x), scale=1 / 255, zero_point=0)
    pattern.output(pattern.pair(pattern.node("Mul", x, gate), scale=0.02, zero_point=20))
    assert pattern.kernels(tmp_path) == {"QLinearSigmoid": 1, "QLinearMul": 1}


def test_concat_of_quantized_tensors_runs_on_integers(pattern: Pattern, tmp_path: Path) -> None:
    left = pattern.pair(pattern.input(1, 4, 7), zero_point=3)
    right = pattern.pair(pattern.input(1, 2, 7), scale=0.02, zero_point=7)
    pattern.output(pattern.pair(pattern.node("Concat", left, right, axis=1), scale=0.07))
    assert pattern.kernels(tmp_path) == {"QLinearConcat": 1}


def test_a_choice_between_quantized_tensors_runs_on_integers(pattern: Pattern, tmp_path: Path) -> None:
    choice = pattern.constant(np.eye(7, dtype=np.bool_)[:4])
    chosen = pattern.pair(pattern.input(1, 4, 7), zero_point=3)
    other = pattern.weight(1, dtype=_U8, zero_point=128)
    pattern.output(pattern.pair(pattern.node("Where", choice, chosen, other), scale=0.07))
    assert pattern.kernels(tmp_path) == {"QLinearWhere": 1}


def _moving(operator: str, pattern: Pattern, x: str) -> str:
    """Applies an operator that only moves values to ``x``, of shape (1, 4, 6, 6)."""

    def integers(*values: int) -> str:
        return pattern.constant(np.array(values, np.int64))

    empty = ""
    extra: dict[str, list[str]] = {
        "Reshape": [integers(1, -1)],
        "Squeeze": [integers(0)],
        "Unsqueeze": [integers(0)],
        "Slice": [integers(1), integers(3), integers(2)],
        "Gather": [integers(2, 0)],
        "GatherElements": [pattern.constant(np.ones((1, 2, 6, 6), np.int64))] if operator == "GatherElements" else [],
        "Expand": [integers(3, 4, 6, 6)],
        "Tile": [integers(1, 1, 2, 1)],
        "Resize": [empty, pattern.constant(np.array([1, 1, 2, 2], np.float32))] if operator == "Resize" else [],
    }
    attributes: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
        "Transpose": {"perm": [0, 2, 3, 1]},
        "Gather": {"axis": 1},
        "GatherElements": {"axis": 1},
        "ReduceMax": {"axes": [2, 3]},
        "ReduceMin": {"axes": [2], "keepdims": 0},
        "Resize": {"mode": "nearest"},
    }
    return pattern.node(operator, x, *extra.get(operator, []), **attributes.get(operator, {}))


@pytest.mark.parametrize(
    "operator",
    [
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Gather",
        "GatherElements",
        "ReduceMax",
        "ReduceMin",
        "Expand",
        "Tile",
        "Resize",
    ],
)
def test_integers_pass_through_what_only_moves_values(pattern: Pattern, tmp_path: Path, operator: str) -> None:
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    pattern.output(pattern.pair(_moving(operator, pattern, x)))
    # One Q on the way in and one DQ on the way out: nothing is dequantized in between.
    assert pattern.optimized(tmp_path) == {"QuantizeLinear": 1, "DequantizeLinear": 1, operator: 1}


def test_integers_pass_through_split(pattern: Pattern, tmp_path: Path) -> None:
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    for part in pattern.nodes_of("Split", x, outputs=2, axis=1):
        pattern.output(pattern.pair(part))
    optimized = pattern.optimized(tmp_path)
    assert optimized == {"QuantizeLinear": 1, "Split": 1, "DequantizeLinear": 2}


@pytest.mark.parametrize("operator", ["MaxPool", "Reshape", "Transpose"])
def test_moving_values_between_different_scales_stays_float(pattern: Pattern, tmp_path: Path, operator: str) -> None:
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    pattern.output(pattern.pair(_moving(operator, pattern, x), scale=0.03))
    optimized = pattern.optimized(tmp_path)
    assert optimized == {"QuantizeLinear": 2, "DequantizeLinear": 2, operator: 1}
