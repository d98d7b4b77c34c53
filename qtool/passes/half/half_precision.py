"""Converts a float32 graph to float16 or bfloat16 where its operators support it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from qtool.graph.names import Names

HalfName = Literal["float16", "bfloat16"]
HALF_DTYPES: Mapping[HalfName, ir.DataType] = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}

# The domain of onnxruntime's convolutions in blocks of channels, at its highest level of optimization.
NCHWC_DOMAIN = "com.microsoft.nchwc"

# Returns the supported types of a tensor: (operator, opset, position, whether it is an input) -> type names.
TakenTypes = Callable[[str, int, int, bool], frozenset[str]]

# Operators that read only the shape of their inputs, or accept any type.
_TAKING_ANYTHING = frozenset({"Cast", "Shape", "Size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFloat32:
    """A node that stays float32.

    Attributes:
        node: its name.
        op_type: its operator.
        reason: the reason, in words.
    """

    node: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfPlan:
    """The nodes that compute in half precision.

    Attributes:
        dtype: the type of it.
        nodes: those nodes, of the graph itself.
        kept: the nodes that stay float32 though they compute on floats.
    """

    dtype: ir.DataType
    nodes: tuple[ir.Node, ...]
    kept: tuple[KeptFloat32, ...]


def float_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the nodes of the graph that make float32 values out of float32 values."""
    for node in model.graph:
        makes = any(_is_float(value) for value in node.outputs)
        takes = any(value is not None and _is_float(value) for value in node.inputs)
        if makes and takes and node.op_type not in _TAKING_ANYTHING:
            yield node


def plan_half(model: ir.Model, dtype: ir.DataType, *, taken: TakenTypes, blocked: Mapping[ir.Node, str]) -> HalfPlan:
    """Decides which nodes compute in ``dtype``: all float nodes that support it.

    Args:
        model: a graph without functions or Constant nodes, with the types of its values.
        dtype: FLOAT16 or BFLOAT16.
        taken: returns the types that an operator supports.
        blocked: nodes that must stay float32, and why.
    """
    nodes, kept = [], []
    for node in float_nodes(model):
        reason = blocked.get(node) or _obstacle(node, model.opset_imports.get("", 0), dtype, taken)
        if reason is None:
            nodes.append(node)
        else:
            kept.append(KeptFloat32(node=node.name or node.outputs[0].name or "", op_type=node.op_type, reason=reason))
    return HalfPlan(dtype=dtype, nodes=tuple(nodes), kept=tuple(kept))


def to_half(model: ir.Model, plan: HalfPlan, *, taken: TakenTypes, half_io: bool) -> None:
    """Changes ``model`` as planned: weights and values become half, with Casts where the two precisions meet.

    Args:
        model: the graph that was planned.
        plan: the decision.
        taken: the same function as for the plan.
        half_io: whether inputs and outputs become half too; otherwise they keep name and type.
    """
    _Rewriter(model, plan, taken).rewrite(half_io=half_io)


def compute_in_float(model: ir.Model, plan: HalfPlan) -> None:
    """Surrounds every node of the plan with Casts, so that it computes in float32 on values rounded to half.

    For a runtime without kernels for the type. Unlike half kernels, intermediate sums are not rounded.
    """
    names = Names(model.graph)
    for node in plan.nodes:
        for position, value in enumerate(node.inputs):
            if value is not None and value.dtype == plan.dtype:
                cast = _cast(value, ir.DataType.FLOAT, names)
                model.graph.insert_before(node, cast)
                node.replace_input_with(position, cast.outputs[0])
        for value in list(node.outputs):
            if value.dtype != plan.dtype:
                continue
            users, is_output = list(value.uses()), value.is_graph_output()
            cast = _cast(value, plan.dtype, names)
            value.type = ir.TensorType(ir.DataType.FLOAT)
            model.graph.insert_after(node, cast)
            for user, position in users:
                user.replace_input_with(position, cast.outputs[0])
            if is_output:
                _replace_output(model.graph, value, cast.outputs[0], names)


def _obstacle(node: ir.Node, opset: int, dtype: ir.DataType, taken: TakenTypes) -> str | None:
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return "holds graphs of its own"
    half = dtype.name.lower()
    if node.domain == NCHWC_DOMAIN:
        return "onnxruntime rewrote it for one processor (NCHWc)"
    if node.domain:
        return f"{node.domain} does not declare whether it supports {half}"
    for position, value in enumerate(node.outputs):
        if value.dtype == ir.DataType.FLOAT and half not in taken(node.op_type, opset, position, False):
            return f"opset {opset} does not let it output {half}"
    inputs = [position for position, value in enumerate(node.inputs) if value is not None and _is_float(value)]
    if not any(half in taken(node.op_type, opset, position, True) for position in inputs):
        return f"opset {opset} does not let it read {half}"
    return None


def _is_float(value: ir.Value) -> bool:
    # Sequences of tensors have an element type, too.
    return value.dtype == ir.DataType.FLOAT and isinstance(value.type, ir.TensorType)


class _Rewriter:
    """Rewrites one graph; every value gets at most one Cast in each direction."""

    def __init__(self, model: ir.Model, plan: HalfPlan, taken: TakenTypes) -> None:
        self._graph, self._plan, self._taken = model.graph, plan, taken
        self._opset = model.opset_imports.get("", 0)
        self._half_name = plan.dtype.name.lower()
        self._nodes = set(plan.nodes)
        self._names = Names(model.graph)
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def rewrite(self, *, half_io: bool) -> None:
        floats = [value for value in self._values() if _is_float(value)]
        half_readers = {value: self._half_readers(value) for value in floats}
        outputs = list(self._graph.outputs)
        for value in floats:
            if value.is_initializer():
                continue
            producer = value.producer()
            becomes_half = half_io if producer is None else producer in self._nodes
            self._settle(value, half_readers[value], becomes_half=becomes_half)
        for value in floats:
            if value.is_initializer() and half_readers[value]:
                self._convert_weights(value, half_readers[value])
        for value in outputs:
            wanted = self._plan.dtype if half_io else ir.DataType.FLOAT
            if value in half_readers and value.dtype != wanted:
                _replace_output(self._graph, value, self._cast_of(value, wanted), self._names)

    def _values(self) -> Iterator[ir.Value]:
        yield from self._graph.inputs
        yield from (value for value in self._graph.initializers.values() if not value.is_graph_input())
        for node in self._graph:
            yield from node.outputs

    def _half_readers(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        return [
            (node, position)
            for node, position in value.uses()
            if node in self._nodes and self._half_name in self._taken(node.op_type, self._opset, position, True)
        ]

    def _settle(self, value: ir.Value, half_readers: list[tuple[ir.Node, int]], *, becomes_half: bool) -> None:
        """Gives the value its type, and its readers of the other type a Cast of it."""
        readers = list(value.uses())
        if becomes_half:
            # A new type, as clones of the graph share the old one.
            value.type = ir.TensorType(self._plan.dtype)
            others = [
                (node, position)
                for node, position in readers
                if (node, position) not in half_readers and (node.domain or node.op_type not in _TAKING_ANYTHING)
            ]
            wanted = ir.DataType.FLOAT
        else:
            others, wanted = half_readers, self._plan.dtype
        for node, position in others:
            node.replace_input_with(position, self._cast_of(value, wanted))

    def _cast_of(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value, dtype)
        if key not in self._casts:
            cast = _cast(value, dtype, self._names)
            producer = value.producer()
            if producer is None:
                first = next(iter(self._graph), None)
                if first is None:
                    self._graph.append(cast)
                else:
                    self._graph.insert_before(first, cast)
            else:
                self._graph.insert_after(producer, cast)
            self._casts[key] = cast.outputs[0]
        return self._casts[key]

    def _convert_weights(self, value: ir.Value, half_readers: list[tuple[ir.Node, int]]) -> None:
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            for node, position in half_readers:
                node.replace_input_with(position, self._cast_of(value, self._plan.dtype))
            return
        if len(half_readers) == len(value.uses()) and not value.is_graph_output():
            value.const_value = _half_tensor(tensor, self._plan.dtype, value.name or "")
            value.type = ir.TensorType(self._plan.dtype)
            return
        name = self._names.free(f"{value.name}_{self._half_name}")
        half = ir.Value(name=name, const_value=_half_tensor(tensor, self._plan.dtype, name), shape=value.shape)
        half.dtype = self._plan.dtype
        self._graph.register_initializer(half)
        for node, position in half_readers:
            node.replace_input_with(position, half)


def _half_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """The rounded values, computed when they are written, one tensor at a time."""

    def rounded() -> ir.TensorProtocol:
        # Values out of range become zero or infinite; the plan excludes them.
        with np.errstate(over="ignore", under="ignore"):
            return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    return ir.LazyTensor(rounded, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)


def _cast(value: ir.Value, dtype: ir.DataType, names: Names) -> ir.Node:
    name = names.for_both(f"{value.name}_{'float32' if dtype == ir.DataType.FLOAT else dtype.name.lower()}")
    node = ir.node("Cast", [value], attributes={"to": ir.AttrInt64("to", dtype.value)}, name=name)
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, dtype, value.shape
    return node


def _replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value, names: Names) -> None:
    """Replaces the graph's output ``old`` by ``new``, with the same name."""
    name = old.name or ""
    old.name = names.free(f"{name}_inner")
    new.name = name
    graph.outputs[:] = [new if value is old else value for value in graph.outputs]
