"""Measures how much faster onnxruntime's CPU provider multiplies integers than floats on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qtool.runtime.session import Session

_ROWS, _COLUMNS = 128, 768
_ROUNDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductSpeed:
    """How fast one product of two matrices is.

    Attributes:
        float_seconds: in float32, the median of a few runs.
        integer_seconds: of u8 by s8.
    """

    float_seconds: float
    integer_seconds: float

    @property
    def speedup(self) -> float:
        """How many times faster the integers are."""
        return self.float_seconds / self.integer_seconds


def providers() -> tuple[str, ...]:
    """Returns the execution providers that the installed onnxruntime has; qtool uses the CPU's."""
    return tuple(ort.get_available_providers())


def product_speed(*, threads: int = 0) -> ProductSpeed:
    """Times a product of (128, 768) by (768, 768) in turns, in float and with integers.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run it.
    """
    feed = {"x": np.random.default_rng(0).normal(0, 1, (_ROWS, _COLUMNS)).astype(np.float32)}
    sessions = [Session(_product(integers).SerializeToString(), threads=threads) for integers in (False, True)]
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):
        for session, seen in zip(sessions, times, strict=True):
            started = time.perf_counter()
            session.run(feed)
            seen.append(time.perf_counter() - started)
    plain, integer = (statistics.median(seen[1:]) for seen in times)
    return ProductSpeed(float_seconds=plain, integer_seconds=integer)


def _product(integers: bool) -> ModelProto:
    generator = np.random.default_rng(1)
    weight = generator.integers(-127, 128, (_COLUMNS, _COLUMNS)).astype(np.int8)
    stored: dict[str, Any] = {
        "w": weight,
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "sw": np.float32(0.01),
        "zw": np.int8(0),
        "sy": np.float32(0.5),
    }
    if not integers:
        stored = {"wd": weight.astype(np.float32) * np.float32(0.01)}
    ends = {
        True: (
            [
                helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
                helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
                helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"]),
            ],
            [
                helper.make_node("QuantizeLinear", ["m", "sy", "z"], ["mq"]),
                helper.make_node("DequantizeLinear", ["mq", "sy", "z"], ["y"]),
            ],
        ),
        False: ([], []),
    }[integers]
    product = helper.make_node("MatMul", ["xd" if integers else "x", "wd"], ["m" if integers else "y"])
    graph = helper.make_graph(
        [*ends[0], product, *ends[1]],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [_ROWS, _COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_ROWS, _COLUMNS])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
