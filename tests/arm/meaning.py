"""Runs a graph with Q and DQ as the specification says, every value in float64 and every node by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

_SINGLE, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def _along(parameter: npt.NDArray[Any], rank: int, axis: int) -> npt.NDArray[np.float64]:
    """Returns scales or zero points in the shape in which they meet a tensor of that rank."""
    if parameter.size == 1:
        return parameter.reshape(()).astype(np.float64)
    shape = [1] * rank
    shape[axis] = parameter.size
    return parameter.reshape(shape).astype(np.float64)


class QuantizeLinear(OpRun):  # type: ignore[misc]
    """https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, in float64."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **others: Any) -> tuple[Any]:
        zero = np.zeros((), np.uint8) if zero is None else zero
        bounds = np.iinfo(zero.dtype)
        steps = np.rint(x / _along(scale, x.ndim, axis)) + _along(zero, x.ndim, axis)
        return (np.clip(steps, bounds.min, bounds.max).astype(zero.dtype),)


class DequantizeLinear(OpRun):  # type: ignore[misc]
    """https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html, in float64."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, zero: Any = None, axis: int = 1, **others: Any) -> tuple[Any]:
        zero = np.zeros((), x.dtype) if zero is None else zero
        return ((x.astype(np.float64) - _along(zero, x.ndim, axis)) * _along(scale, x.ndim, axis),)


def meaning(path: Path, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Returns what a model gives out if nothing is rounded but what Q rounds."""
    model = onnx.load(path)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == _SINGLE:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _SINGLE:
                attribute.i = _DOUBLE
            if attribute.HasField("t") and attribute.t.data_type == _SINGLE:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
    wide = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in feed.items()}
    evaluator = ReferenceEvaluator(model, new_ops=[QuantizeLinear, DequantizeLinear])
    return dict(zip(evaluator.output_names, evaluator.run(None, wide), strict=True))
