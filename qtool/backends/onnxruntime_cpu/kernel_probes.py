"""Models of single operators, in float and on integers, to time kernels with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

_OPSET, _IR_VERSION = 17, 8
_SCALE = np.float32(0.02)
_ZERO_POINT = np.uint8(128)


class Form(Enum):
    """The arithmetic of an operator."""

    FLOATS = auto()
    SIGNED = auto()
    UNSIGNED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One operator and its inputs.

    Attributes:
        operator: its type.
        shape: of its first input, a float32 input of the model.
        weight: the shape of its stored second input; None where it has none.
        inputs: how many times it reads the first input.
        attributes: of the node.
        between: whether it follows a Conv that keeps the shape, and so reads the layout of a Conv's output.
    """

    operator: str
    shape: tuple[int, ...]
    weight: tuple[int, ...] | None = None
    inputs: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    between: bool = False

    def feed(self) -> dict[str, npt.NDArray[np.float32]]:
        """Returns an input to run it on."""
        return {"x": np.random.default_rng(0).normal(0, 1, self.shape).astype(np.float32)}

    def model(self, form: Form) -> bytes:
        """Returns the serialized model."""
        stored: dict[str, npt.NDArray[Any]] = {}
        nodes: list[NodeProto] = []
        source = "x" if form is Form.FLOATS else _pair(nodes, stored, "x", "read")
        if self.between:
            channels = self.shape[1]
            weight = _weight("Conv", (channels, channels, 1, 1), form, nodes, stored, "before")
            nodes.append(helper.make_node("Conv", [source, weight], ["before"], name="before"))
            source = "before" if form is Form.FLOATS else _pair(nodes, stored, "before", "between")
        inputs = [source] * self.inputs
        if self.weight is not None:
            inputs.append(_weight(self.operator, self.weight, form, nodes, stored, "own"))
        nodes.append(helper.make_node(self.operator, inputs, ["result"], name="probe", **self.attributes))
        result = "result" if form is Form.FLOATS else _pair(nodes, stored, "result", "made")
        return _serialized(nodes, stored, self.shape, result)


def chain(operator: str, length: int) -> bytes:
    """Returns a serialized model that applies an operator repeatedly to a tensor of shape (1, 8) and itself."""
    names = ["x", *(f"x{number}" for number in range(1, length)), "result"]
    nodes = [helper.make_node(operator, [before, before], [after]) for before, after in pairwise(names)]
    return _serialized(nodes, {}, (1, 8), "result")


def _weight(
    operator: str,
    shape: tuple[int, ...],
    form: Form,
    nodes: list[NodeProto],
    stored: dict[str, npt.NDArray[Any]],
    name: str,
) -> str:
    """Stores a weight, dequantized for integer arithmetic, and returns its name."""
    weight = np.random.default_rng(1).integers(-63, 64, shape).astype(np.int8)
    if form is Form.FLOATS:
        stored[f"{name}_weight"] = weight.astype(np.float32) * _SCALE
        return f"{name}_weight"
    axis = 0 if operator == "Conv" else len(shape) - 1
    shift, kind = (128, np.uint8) if form is Form.UNSIGNED else (0, np.int8)
    stored[f"{name}_integers"] = (weight.astype(np.int16) + shift).astype(kind)
    stored[f"{name}_scale"] = np.full(shape[axis], _SCALE, np.float32)
    stored[f"{name}_zero_point"] = np.full(shape[axis], shift, kind)
    inputs = [f"{name}_integers", f"{name}_scale", f"{name}_zero_point"]
    nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_weight"], axis=axis))
    return f"{name}_weight"


def _pair(nodes: list[NodeProto], stored: dict[str, npt.NDArray[Any]], source: str, name: str) -> str:
    """Adds QuantizeLinear and DequantizeLinear after ``source``, and returns their output."""
    stored[f"{name}_scale"], stored[f"{name}_zero_point"] = np.asarray(_SCALE), np.asarray(_ZERO_POINT)
    parameters = [f"{name}_scale", f"{name}_zero_point"]
    nodes.append(helper.make_node("QuantizeLinear", [source, *parameters], [f"{name}_integers"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}_integers", *parameters], [f"{name}_floats"]))
    return f"{name}_floats"


def _serialized(
    nodes: list[NodeProto], stored: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...], result: str
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    opset = helper.make_opsetid("", _OPSET)
    message: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION).SerializeToString()
    return message
