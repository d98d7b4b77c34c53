"""Finds the integer regions of an optimized graph, and the conversions at their borders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.tensor_sizes import TensorSize

Direction: TypeAlias = Literal["to integers", "to float"]

# Prefixes of the types of onnxruntime's integer kernels.
_KERNELS = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_MORE_KERNELS = ("ConvInteger",)
# Kernels with dynamic quantization of their activations.
_CONVERTING_KERNELS = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_DIRECTIONS: Mapping[str, Direction] = {
    "QuantizeLinear": "to integers",
    "DynamicQuantizeLinear": "to integers",
    "DequantizeLinear": "to float",
}
# The input of QGemm that holds the output scale.
_QGEMM_OUTPUT_SCALE = 7
# Operators that read integers and return another type.
_LOOKING = frozenset({"ArgMax", "ArgMin", "Cast", "NonZero", "Shape", "Size"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """A conversion between integers and floats.

    Attributes:
        node: the node that converts; an integer kernel where it converts by itself.
        direction: to integers or to float.
        tensor: the float tensor that it reads or writes.
        elements: how many values it converts per run; None where the shape is unknown.
        behind: the producer of its input; None for an input of the graph.
        before: the readers of its output.
    """

    node: str
    direction: Direction
    tensor: str
    elements: int | None
    behind: str | None
    before: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerRegion:
    """Nodes connected by integer tensors.

    Attributes:
        nodes: their names, in the order of the graph.
        operators: how many of each type there are.
        multiply_adds: their multiply-adds, as far as known.
    """

    nodes: tuple[str, ...]
    operators: Mapping[str, int]
    multiply_adds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """The integer and float parts of a graph, as onnxruntime runs it.

    Attributes:
        regions: the integer parts, the one with the most multiply-adds first.
        borders: the conversions, in the order of the graph.
        float_operators: how many nodes of each type run on floats.
        multiply_adds: of all nodes, as far as known.
    """

    regions: tuple[IntegerRegion, ...]
    borders: tuple[Border, ...]
    float_operators: Mapping[str, int]
    multiply_adds: int

    @property
    def integer_nodes(self) -> int:
        """How many nodes run on integers."""
        return sum(len(region.nodes) for region in self.regions)

    @property
    def integer_multiply_adds(self) -> int:
        """Their multiply-adds."""
        return sum(region.multiply_adds for region in self.regions)

    @property
    def converted_elements(self) -> int:
        """How many values all conversions convert, as far as known."""
        return sum(border.elements or 0 for border in self.borders)


def partition_of(
    graph: ir.Graph, sizes: Mapping[str, TensorSize], lengths: Mapping[str, int], work: Mapping[str, int]
) -> Partition:
    """Divides a graph that onnxruntime has optimized.

    Args:
        graph: the optimized graph.
        sizes: of the tensors of the graph before optimization; most keep their names.
        lengths: of free dimensions, by name.
        work: multiply-adds by name of node before optimization; fused kernels keep the name of one node.
    """
    nodes = list(graph)
    integer, values = _integer_nodes(nodes)
    borders = [node for node in nodes if _is_border(node) or node.op_type.startswith(_CONVERTING_KERNELS)]
    float_operators: dict[str, int] = {}
    for node in nodes:
        if node not in integer and not _is_border(node):
            float_operators[node.op_type] = float_operators.get(node.op_type, 0) + 1
    groups = _groups([node for node in nodes if node in integer], values)
    regions = [_region(group, work) for group in groups]
    return Partition(
        regions=tuple(sorted(regions, key=lambda region: (-region.multiply_adds, -len(region.nodes)))),
        borders=tuple(_border(node, sizes, lengths) for node in borders),
        float_operators=dict(sorted(float_operators.items(), key=lambda item: (-item[1], item[0]))),
        multiply_adds=sum(work.get(node.name or "", 0) for node in nodes),
    )


def _integer_nodes(nodes: Iterable[ir.Node]) -> tuple[set[ir.Node], set[ir.Value]]:
    """Returns the integer kernels, the nodes that move integers, and the tensors that hold integers."""
    integer: set[ir.Node] = set()
    values: set[ir.Value] = set()
    for node in nodes:
        if _is_border(node):
            values.update(node.outputs[:1] if _DIRECTIONS[node.op_type] == "to integers" else ())
        elif node.op_type.startswith(_KERNELS) or node.op_type in _MORE_KERNELS:
            integer.add(node)
            values.update(node.outputs if _returns_integers(node) else ())
        elif node.op_type not in _LOOKING and any(value in values for value in node.inputs):
            integer.add(node)
            values.update(node.outputs)
    return integer, values


def _returns_integers(node: ir.Node) -> bool:
    """Returns whether a kernel's output is 8-bit integers; others convert their sums to floats themselves."""
    if node.op_type == "QGemm":
        return len(node.inputs) > _QGEMM_OUTPUT_SCALE and node.inputs[_QGEMM_OUTPUT_SCALE] is not None
    return node.op_type.startswith("QLinear")


def _is_border(node: ir.Node) -> bool:
    return node.op_type in _DIRECTIONS and not is_constant(node.inputs[0])


def _groups(nodes: Sequence[ir.Node], values: Set[ir.Value]) -> list[list[ir.Node]]:
    """Joins nodes that make or read the same integer tensor."""
    leaders = {node: node for node in nodes}

    def leader(node: ir.Node) -> ir.Node:
        while leaders[node] is not node:
            leaders[node] = leaders[leaders[node]]
            node = leaders[node]
        return node

    first: dict[ir.Value, ir.Node] = {}
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value in values:
                leaders[leader(node)] = leader(first.setdefault(value, node))
    groups: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        groups.setdefault(leader(node), []).append(node)
    return list(groups.values())


def _region(nodes: Sequence[ir.Node], work: Mapping[str, int]) -> IntegerRegion:
    operators: dict[str, int] = {}
    for node in nodes:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return IntegerRegion(
        nodes=tuple(node.name or "" for node in nodes),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        multiply_adds=sum(work.get(node.name or "", 0) for node in nodes),
    )


def _border(node: ir.Node, sizes: Mapping[str, TensorSize], lengths: Mapping[str, int]) -> Border:
    direction = _DIRECTIONS.get(node.op_type, "to integers")
    source = node.inputs[0]
    value = node.outputs[0] if direction == "to float" or source is None else source
    producer = None if source is None else source.producer()
    # A kernel that converts its own input is on the other side.
    readers = [use.node for output in node.outputs for use in output.uses()] if _is_border(node) else [node]
    return Border(
        node=node.name or "",
        direction=direction,
        tensor=value.name or "",
        elements=_elements((value, node.outputs[0], source), sizes, lengths),
        behind=None if producer is None else producer.name,
        before=tuple(dict.fromkeys(reader.name or "" for reader in readers)),
    )


def _elements(
    values: Iterable[ir.Value | None], sizes: Mapping[str, TensorSize], lengths: Mapping[str, int]
) -> int | None:
    """Returns the number of elements of the first of ``values`` with a known size; all have the same shape."""
    for value in values:
        if value is None:
            continue
        size = sizes.get(value.name or "")
        if size is not None:
            return size.elements
        dims = [dim if isinstance(dim, int) else lengths.get(dim.value or "") for dim in value.shape or ()]
        known = [dim for dim in dims if dim is not None]
        if value.shape is not None and len(known) == len(dims):
            return math.prod(known)
    return None
