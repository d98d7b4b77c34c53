"""Builds every operator of the table between Q and DQ, and holds `verify` against onnxruntime's optimized graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from qtool.backends.onnxruntime_cpu.coverage import float_coverage, integer_coverage
from qtool.backends.qdq_placement.operators import OPERATORS, Kind

Pattern = Any


def _layer(operator: str, pattern: Pattern) -> str:
    if operator == "Conv":
        return pattern.node("Conv", pattern.pair(pattern.input(1, 4, 6, 6)), pattern.weight(4, 4, 3, 3, axis=0))
    return pattern.node(operator, pattern.pair(pattern.input(2, 4)), pattern.weight(4, 3, axis=1))


def _elementwise(operator: str, pattern: Pattern) -> str:
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    others = [pattern.pair(pattern.input(1, 4, 6, 6))] if operator in ("Add", "Mul", "Concat", "Where") else []
    if operator == "Where":
        return str(pattern.node("Where", pattern.constant(np.eye(6, dtype=np.bool_)), x, *others))
    attributes = {"Concat": {"axis": 1}, "AveragePool": {"kernel_shape": [2, 2]}}
    return pattern.node(operator, x, *others, **attributes.get(operator, {}))


def _moving(operator: str, pattern: Pattern) -> str:
    def integers(*values: int) -> str:
        return str(pattern.constant(np.array(values, np.int64)))

    x = pattern.pair(pattern.input(1, 4, 6, 6))
    extra: dict[str, Callable[[], list[str]]] = {
        "Reshape": lambda: [integers(1, -1)],
        "Squeeze": lambda: [integers(0)],
        "Unsqueeze": lambda: [integers(0)],
        "Slice": lambda: [integers(1), integers(3), integers(2)],
        "Gather": lambda: [integers(2, 0)],
        "GatherElements": lambda: [pattern.constant(np.ones((1, 2, 6, 6), np.int64))],
        "Expand": lambda: [integers(3, 4, 6, 6)],
        "Tile": lambda: [integers(1, 1, 2, 1)],
        "Resize": lambda: ["", pattern.constant(np.array([1, 1, 2, 2], np.float32))],
    }
    attributes: dict[str, dict[str, Any]] = {
        "MaxPool": {"kernel_shape": [2, 2]},
        "Transpose": {"perm": [0, 2, 3, 1]},
        "Gather": {"axis": 1},
        "GatherElements": {"axis": 1},
        "ReduceMax": {"axes": [2, 3]},
        "ReduceMin": {"axes": [2], "keepdims": 0},
        "Resize": {"mode": "nearest"},
        "DepthToSpace": {"blocksize": 2},
        "Split": {"axis": 1},
    }
    inputs = [x, *extra.get(operator, list)()]
    names = pattern.nodes_of(operator, *inputs, outputs=2 if operator == "Split" else 1, **attributes.get(operator, {}))
    for name in names[1:]:
        pattern.output(pattern.pair(name))
    return str(names[0])


_BUILDERS = {Kind.LAYER: _layer, Kind.ELEMENTWISE: _elementwise, Kind.MOVING: _moving}
_KERNELS = {
    "Conv": "QLinearConv",
    "Gemm": "QGemm",
    "MatMul": "QLinearMatMul",
    "Add": "QLinearAdd",
    "Mul": "QLinearMul",
    "Concat": "QLinearConcat",
    "Where": "QLinearWhere",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
}


@pytest.mark.parametrize("operator", [name for name, row in OPERATORS.items() if row.kind is not Kind.CLAMPING])
def test_every_operator_of_the_table_is_found_where_onnxruntime_put_it(
    pattern: Pattern, tmp_path: Path, operator: str, runtime: tuple[int, ...]
) -> None:
    pattern.output(pattern.pair(_BUILDERS[OPERATORS[operator].kind](operator, pattern)))
    optimized = pattern.optimized(tmp_path)
    (found,) = integer_coverage(ir.from_proto(_proto(pattern))).nodes
    if operator == "DepthToSpace" and runtime < (1, 22):
        assert (found.kernel, found.fix) == (None, "install onnxruntime 1.22 or newer")
        return
    assert (found.operator, found.reason, found.fix) == (operator, None, None)
    if operator in _KERNELS:
        assert found.kernel == _KERNELS[operator]
        assert optimized[_KERNELS[operator]] == 1
    else:
        assert found.kernel in (f"{operator} on integers", "removed")
        assert optimized["QuantizeLinear"] == 1


@pytest.mark.parametrize(("quantized", "kernel"), [(True, "Unsqueeze on integers"), (False, None)])
def test_what_moves_the_values_of_a_matrix_product_reads_integers_where_that_gives_some(
    pattern: Pattern, quantized: bool, kernel: str | None
) -> None:
    x, weight = pattern.pair(pattern.input(2, 4)), pattern.weight(4, 3, axis=1)
    product = pattern.node("Gemm", x, weight)
    axis = pattern.constant(np.array([1], np.int64))
    # Between two scales, the integers would have to change as well.
    moved = pattern.node("Unsqueeze", pattern.pair(product, scale=0.05 if quantized else 0.07), axis)
    pattern.output(pattern.pair(moved))
    kernels = {row.operator: row.kernel for row in integer_coverage(ir.from_proto(_proto(pattern))).nodes}
    assert kernels == {"Gemm": "QGemm", "Unsqueeze": kernel}


@pytest.mark.parametrize("operator", [name for name, row in OPERATORS.items() if row.kind is not Kind.CLAMPING])
def test_without_a_pair_in_front_every_operator_stays_float_and_says_so(
    pattern: Pattern, tmp_path: Path, operator: str
) -> None:
    pattern.pair = lambda tensor: tensor
    pattern.output(_BUILDERS[OPERATORS[operator].kind](operator, pattern))
    found = integer_coverage(ir.from_proto(_proto(pattern))).nodes
    # Operators without weights are not counted where nothing was quantized: nobody wanted integers there.
    assert len(found) == (OPERATORS[operator].kind is Kind.LAYER)
    for node in found:
        assert node.kernel is None
        assert node.reason is not None
        assert "comes from the model's input" in node.reason
        assert node.fix is not None
        assert "--exclude" in node.fix
    assert not any(name.startswith("QLinear") for name in pattern.optimized(tmp_path))


def _proto(pattern: Pattern) -> Any:
    import onnx

    return onnx.load_model_from_string(pattern.model())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_a_bias_off_the_scale_of_its_products_is_named(
    pattern: Pattern, runtime: tuple[int, ...], per_channel: bool, factor: float
) -> None:
    x = pattern.pair(pattern.input(1, 4, 6, 6))
    bias = pattern.bias(4, input_scale=0.05 * factor, per_channel=per_channel)
    pattern.output(
        pattern.pair(pattern.node("Conv", x, pattern.weight(4, 4, 3, 3, axis=0 if per_channel else None), bias))
    )
    (found,) = integer_coverage(ir.from_proto(_proto(pattern))).nodes
    # Older ones take such a bias for what it is not.
    if factor == 1.0 or runtime < (1, 27):
        assert found.kernel == "QLinearConv"
    else:
        assert found.reason == "its bias does not have the scale of its products"


def test_the_coverage_of_a_float_graph_takes_no_opening() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,4] y) { a = MatMul (x, w) y = Relu (a) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.float32), "w"))
    model = ir.from_proto(proto)
    assert float_coverage(model) == integer_coverage(model)
    (found,) = float_coverage(model).nodes
    assert (found.operator, found.kernel) == ("MatMul", None)
    assert found.reason
