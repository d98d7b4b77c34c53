"""Writes LSTM as DynamicQuantizeLSTM, which quantizes inputs and states as it runs, and takes it back.

Its weights are the transposed ones of each direction: (directions, inputs, 4 · hidden) and (directions, hidden,
4 · hidden); scales and zero points are (directions,) or (directions, 4 · hidden)
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.DynamicQuantizeLSTM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names
from qtool.graph.weight_records import Rearranged, record_steps

DOMAIN = "com.microsoft"
OPERATOR = "DynamicQuantizeLSTM"
WEIGHTS = (1, 2)
# Of each weight: its scale and its zero point among the inputs.
_PARAMETERS = {1: (8, 9), 2: (10, 11)}
ZERO_POINTS = (9, 11)
_FLOAT_INPUTS = 8
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentWeight:
    """A weight of an LSTM as integers.

    Attributes:
        integers: int8 or uint8, (directions, inputs, 4 · hidden).
        scale: float32, (directions,) or (directions, 4 · hidden).
        zero_point: of the integers' type, in the shape of ``scale``.
    """

    integers: Array
    scale: Array
    zero_point: Array

    def floats(self) -> npt.NDArray[np.float32]:
        """Returns the dequantized values, transposed as LSTM stores them: (directions, 4 · hidden, inputs)."""
        scale, zero = self.spread(self.scale), self.spread(self.zero_point)
        floats = (self.integers.astype(np.float32) - zero.astype(np.float32)) * scale
        return np.ascontiguousarray(floats.transpose(0, 2, 1))

    def spread(self, parameter: Array) -> Array:
        """Shapes a scale or a zero point so that it broadcasts over the integers."""
        return parameter.reshape(len(self.integers), 1, -1)


def is_recurrent(node: ir.Node) -> bool:
    """Returns whether a node is an LSTM with integer weights."""
    return node.domain == DOMAIN and node.op_type == OPERATOR


def recurrent_weight(node: ir.Node, index: int) -> RecurrentWeight | None:
    """Returns one of ``WEIGHTS`` of a DynamicQuantizeLSTM; None where it is computed, or shapes do not agree."""
    scale_at, zero_at = _PARAMETERS[index]
    if len(node.inputs) <= zero_at:
        return None
    integers, scale, zero = (constant_array(node.inputs[place]) for place in (index, scale_at, zero_at))
    if integers is None or scale is None or zero is None or integers.ndim != len(_PARAMETERS) + 1:
        return None
    shapes = ((len(integers),), (len(integers), integers.shape[2]))
    if scale.shape not in shapes or zero.shape not in shapes:
        return None
    return RecurrentWeight(integers=integers, scale=scale, zero_point=zero)


def insert_recurrent(model: ir.Model, layers: Mapping[str, Sequence[RecurrentWeight]]) -> None:
    """Replaces LSTM nodes of ``model`` in place.

    Args:
        model: the float model.
        layers: the two weights by the node's name.
    """
    if not layers:
        return
    names = Names(model.graph)
    nodes = {node.name or "": node for node in model.graph}
    for name, weights in layers.items():
        node = nodes[name]
        inputs = [*node.inputs, *[None] * (_FLOAT_INPUTS - len(node.inputs))]
        parameters: list[ir.Value | None] = []
        for index, weight in zip(WEIGHTS, weights, strict=True):
            value = node.inputs[index]
            if value is None:
                raise AssertionError(node)
            stored = add_constant(model.graph, f"{value.name}_quantized", weight.integers, names=names)
            record_steps(stored, value, Rearranged(shape=_swapped(weight.integers), order=(0, 2, 1)))
            inputs[index] = stored
            parameters.append(add_constant(model.graph, f"{value.name}_scale", weight.scale, names=names))
            parameters.append(add_constant(model.graph, f"{value.name}_zero_point", weight.zero_point, names=names))
        _replace(model.graph, node, OPERATOR, DOMAIN, [*inputs, *parameters], [node.inputs[index] for index in WEIGHTS])
    model.opset_imports.setdefault(DOMAIN, 1)


class RemoveRecurrent(ir.passes.InPlacePass):
    """Replaces each DynamicQuantizeLSTM by LSTM with the dequantized weights."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces every node whose weights are stored; others are left."""
        names, modified = Names(model.graph), False
        floats: dict[tuple[ir.Value | None, ...], ir.Value] = {}
        for node in [node for node in model.graph if is_recurrent(node)]:
            weights = [recurrent_weight(node, index) for index in WEIGHTS]
            inputs = list(node.inputs[:_FLOAT_INPUTS])
            for index, weight in zip(WEIGHTS, weights, strict=True):
                value = node.inputs[index]
                if weight is None or value is None:
                    break
                key = (value, *(node.inputs[place] for place in _PARAMETERS[index]))
                if key not in floats:
                    stem = (value.name or "weight").removesuffix("_quantized")
                    floats[key] = add_constant(model.graph, stem, weight.floats(), names=names)
                    record_steps(floats[key], value, Rearranged(shape=weight.integers.shape, order=(0, 2, 1)))
                inputs[index] = floats[key]
            if None in weights:
                continue
            while inputs and inputs[-1] is None:
                inputs.pop()
            _replace(model.graph, node, "LSTM", "", inputs, [node.inputs[index] for index in (1, 2, 8, 9, 10, 11)])
            modified = True
        return ir.passes.PassResult(model, modified)


def _swapped(integers: Array) -> tuple[int, ...]:
    directions, inputs, gates = integers.shape
    return directions, gates, inputs


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    operator: str,
    domain: str,
    inputs: Sequence[ir.Value | None],
    dropped: Sequence[ir.Value | None],
) -> None:
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]
    new = ir.Node(domain, operator, inputs, attributes, num_outputs=len(node.outputs), name=node.name)
    new.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], list(node.outputs), new.outputs)
    for value in dropped:
        if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)
