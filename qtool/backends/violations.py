"""Rules of a runtime that is not here, checked on the graph alone.

A backend keeps its rules in a mapping by name: a new one is a function and a line there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute, is_constant

# Layers with weights, which are their second input.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_WEIGHT, _BIAS = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule finds wrong with one node.

    Attributes:
        node: the node.
        problem: what is wrong, in words.
        fix: what makes it right.
    """

    node: ir.Node
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A node that a runtime does not take as it is.

    Attributes:
        rule: the name of the rule among those of the backend.
        node: the node's name.
        operator: its type.
        problem: what is wrong, in words.
        fix: what makes it right.
    """

    rule: str
    node: str
    operator: str
    problem: str
    fix: str


Rule: TypeAlias = Callable[[ir.Model], Iterator[Finding]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A QuantizeLinear or DequantizeLinear.

    Attributes:
        node: the node.
        dtype: of its integers; None where it is not known.
        scale: its scales; None where they are computed at run time.
        zero_point: its zero points; None where it has none, or they are computed.
        data: what it reads.
        axis: along which scales differ, counted from the first axis where the rank is known; None for one scale.
    """

    node: ir.Node
    dtype: ir.DataType | None
    scale: npt.NDArray[Any] | None
    zero_point: npt.NDArray[Any] | None
    data: ir.Value
    axis: int | None

    @property
    def dequantizes(self) -> bool:
        """Whether it is a DequantizeLinear."""
        return self.node.op_type == "DequantizeLinear"

    @property
    def readers(self) -> tuple[tuple[ir.Node, int], ...]:
        """The nodes that read its result, each with the place of that input."""
        return tuple((use.node, use.idx) for use in self.node.outputs[0].uses())

    @property
    def is_weight(self) -> bool:
        """Whether it gives constants to a layer as its weight."""
        return is_constant(self.data) and any(
            reader.op_type in WEIGHTED and place == _WEIGHT for reader, place in self.readers
        )

    @property
    def is_bias(self) -> bool:
        """Whether it gives constants to a layer as its bias."""
        return is_constant(self.data) and any(
            reader.op_type in WEIGHTED and place == _BIAS for reader, place in self.readers
        )


def check(model: ir.Model, rules: Mapping[str, Rule]) -> tuple[Violation, ...]:
    """Returns what the rules find, rule by rule, in graph order."""
    return tuple(
        Violation(
            rule=name,
            node=finding.node.name or "",
            operator=finding.node.op_type,
            problem=finding.problem,
            fix=finding.fix,
        )
        for name, rule in rules.items()
        for finding in rule(model)
    )


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the nodes of the graph and of the graphs inside, in order."""
    yield from ir.traversal.RecursiveGraphIterator(model.graph)


def conversions(model: ir.Model) -> Iterator[Conversion]:
    """Yields every QuantizeLinear and DequantizeLinear, onnxruntime's of other domains too."""
    for node in all_nodes(model):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 2:
            continue
        data, scale = node.inputs[:2]
        if data is None or scale is None:
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        yield Conversion(
            node=node,
            dtype=_stored_type(node, data, zero),
            scale=constant_array(scale),
            zero_point=constant_array(zero),
            data=data,
            axis=_axis(node, data, scale),
        )


def weighted_layers(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the standard's layers with weights that are constants or come from a DequantizeLinear."""
    for node in all_nodes(model):
        if node.domain == "" and node.op_type in WEIGHTED and len(node.inputs) > _WEIGHT:
            yield node


def comes_from_dequantize(value: ir.Value | None) -> bool:
    """Returns whether a DequantizeLinear gives the value."""
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def channel_axis(layer: ir.Node) -> int | None:
    """Returns the axis of output channels in a layer's weight; None where its rank is not known, or it is no layer."""
    if layer.domain != "" or layer.op_type not in WEIGHTED:
        return None
    weight = layer.inputs[_WEIGHT]
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose":
        return 1
    if layer.op_type == "Gemm":
        return 0 if integer_attribute(layer, "transB", 0) else 1
    return None if weight is None or weight.shape is None else len(weight.shape) - 1


def _stored_type(node: ir.Node, data: ir.Value, zero: ir.Value | None) -> ir.DataType | None:
    if node.op_type == "DequantizeLinear":
        return data.dtype or (None if zero is None else zero.dtype)
    if zero is not None:
        return zero.dtype
    asked = integer_attribute(node, "output_dtype", 0)
    # Without either, QuantizeLinear makes u8.
    return ir.DataType(asked) if asked else ir.DataType.UINT8


def _axis(node: ir.Node, data: ir.Value, scale: ir.Value) -> int | None:
    lengths = None if scale.shape is None else [dim for dim in scale.shape if isinstance(dim, int)]
    if not lengths or (len(lengths) == 1 and lengths[0] == 1):
        return None
    axis = integer_attribute(node, "axis", 1)
    return axis + len(data.shape) if axis < 0 and data.shape is not None else axis
