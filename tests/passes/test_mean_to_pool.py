"""Means over all positions become pools; other means stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from qtool.passes.quantization.mean_to_pool import MeanToGlobalAveragePool
from tests.graphs_read import operators_of

Parsed = Callable[..., onnx.ModelProto]
Applied = Callable[..., ir.Model]


@pytest.mark.parametrize("axes", ["2,3", "3,2", "-1,-2", "2,-1"])
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_a_mean_over_rows_and_columns_becomes_a_pool(parsed: Parsed, applied: Applied, axes: str, opset: int) -> None:
    numbers = np.array([int(axis) for axis in axes.split(",")], np.int64)
    # Axes are an attribute before opset 18 and an input since.
    attribute, argument = (f"<axes = [{axes}]>", "") if opset < 18 else ("", ", axes")
    tensors: dict[str, npt.NDArray[Any]] = {} if opset < 18 else {"axes": numbers}
    model = parsed(
        f"""g (float[N,3,4,5] x) => (float[N,3,1,1] kept, float[N,3] dropped) {{
            kept = ReduceMean {attribute} (x{argument})
            dropped = ReduceMean {attribute.replace(">", ", keepdims = 0>") or "<keepdims = 0>"} (x{argument})
        }}""",
        opset=opset,
        **tensors,
    )
    assert operators_of(applied(model, MeanToGlobalAveragePool())) == [
        "GlobalAveragePool",
        "GlobalAveragePool",
        "Squeeze",
    ]


@pytest.mark.parametrize("shape", ["N,3,5", "N,3,4,5,6"])
def test_one_and_three_dimensions_become_pools_too(parsed: Parsed, applied: Applied, shape: str) -> None:
    rank = shape.count(",") + 1
    axes = ",".join(str(axis) for axis in range(2, rank))
    model = parsed(f"g (float[{shape}] x) => (float[N,3] y) {{ y = ReduceMean <axes = [{axes}], keepdims = 0> (x) }}")
    assert operators_of(applied(model, MeanToGlobalAveragePool())) == ["GlobalAveragePool", "Squeeze"]


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ("N,3,4,5", "<axes = [2]>"),
        ("N,3,4,5", "<axes = [1,2,3]>"),
        ("N,3,4,5", "<axes = [1]>"),
        ("N,3,4,5", ""),
        ("N,3", "<axes = [1]>"),
        ("N,3,5", "<axes = [1]>"),
    ],
)
def test_other_means_are_left_alone(parsed: Parsed, applied: Applied, shape: str, attributes: str) -> None:
    model = parsed(
        f"g (float[{shape}] x) => (float[A] y) {{ m = ReduceMean {attributes} (x) y = Reshape (m, flat) }}",
        flat=np.array([-1], np.int64),
    )
    assert operators_of(applied(model, MeanToGlobalAveragePool())) == ["ReduceMean", "Reshape"]


def test_double_precision_is_left_alone(parsed: Parsed, applied: Applied) -> None:
    model = parsed("g (double[N,3,4,5] x) => (double[N,3,1,1] y) { y = ReduceMean <axes = [2,3]> (x) }")
    assert operators_of(applied(model, MeanToGlobalAveragePool())) == ["ReduceMean"]
