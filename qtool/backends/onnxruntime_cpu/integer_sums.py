"""Tests whether the integer kernels of this processor saturate, by running two products that would show it.

Processor feature flags differ between systems and are wrong under emulation; what matters are onnxruntime's kernels.
Without VNNI its kernels for u8 by s8 add the products of two adjacent pairs in a saturating int16.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qtool.runtime.session import Session

_CHANNELS = 16
_LARGEST_ACTIVATION, _LARGEST_WEIGHT = 255, 127
_SCALE = 4000.0


@cache
def sums_saturate() -> bool:
    """Returns whether u8 by s8 products of onnxruntime's CPU provider saturate at 16 bits on this processor.

    Raises:
        RuntimeRefusedError: onnxruntime does not run at all.
    """
    return any(_differs(_CASES[name]()) for name in _CASES)


def _differs(model: ModelProto) -> bool:
    """Runs a sum of the largest products and compares it with the exact result."""
    (spec,) = model.graph.input
    shape = [dim.dim_value for dim in spec.type.tensor_type.shape.dim]
    session = Session(model.SerializeToString(), threads=1)
    (found,) = session.run({spec.name: np.full(shape, _LARGEST_ACTIVATION, np.uint8)}).values()
    expected = _CHANNELS * _LARGEST_ACTIVATION * _LARGEST_WEIGHT
    return bool((found != (expected if found.dtype == np.int32 else round(expected / _SCALE))).any())


def _product() -> ModelProto:
    weight = np.full((_CHANNELS, _CHANNELS), _LARGEST_WEIGHT, np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    return _model(node, [_CHANNELS, _CHANNELS], TensorProto.INT32, {"w": weight})


def _convolution() -> ModelProto:
    constants = {
        "w": np.full((_CHANNELS, _CHANNELS, 1, 1), _LARGEST_WEIGHT, np.int8),
        "one": np.float32(1.0),
        "zero": np.uint8(0),
        "w_zero": np.int8(0),
        "y_scale": np.float32(_SCALE),
    }
    inputs = ["x", "one", "zero", "w", "one", "w_zero", "y_scale", "zero"]
    node = helper.make_node("QLinearConv", inputs, ["y"])
    return _model(node, [1, _CHANNELS, 4, 4], TensorProto.UINT8, constants)


_CASES = {"product of matrices": _product, "convolution": _convolution}


def _model(node: NodeProto, shape: list[int], result: int, constants: Mapping[str, Any]) -> ModelProto:
    graph = helper.make_graph(
        [node],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", result, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
