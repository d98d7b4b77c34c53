"""Tells where a tensor comes from and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.node_reads import read_by
from qtool.graph.tensor_sizes import TensorSize


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInFlow:
    """A node that makes or reads a tensor.

    Attributes:
        node: its name.
        operator: its type.
        place: its place in the order of the graph.
        position: which of its outputs or inputs the tensor is; None for an input of a graph inside the node.
        reads: the tensors that it reads.
        makes: the tensors that it makes.
    """

    node: str
    operator: str
    place: int
    position: int | None
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFlow:
    """Everything the graph tells about one tensor.

    Attributes:
        tensor: its name.
        role: ``input``, ``constant`` or ``computed``.
        is_output: whether the graph returns it.
        size: its type and shape; None where unknown.
        producer: the node that makes it; None for inputs and constants.
        readers: the nodes that read it, in order.
    """

    tensor: str
    role: str
    is_output: bool
    size: TensorSize | None
    producer: NodeInFlow | None
    readers: tuple[NodeInFlow, ...]


def tensor_flow(graph: ir.Graph, value: ir.Value, sizes: Mapping[str, TensorSize]) -> TensorFlow:
    """Describes ``value``, which belongs to ``graph`` itself."""
    made_by = value.producer()
    producer, readers = None, []
    for place, node in enumerate(graph):
        if node is made_by:
            producer = _in_flow(node, place, value.index())
        if any(read is value for read in read_by(node)):
            positions = [position for position, read in enumerate(node.inputs) if read is value]
            readers += [_in_flow(node, place, position) for position in positions or (None,)]
    role = "computed"
    if made_by is None:
        role = "input" if value.is_graph_input() else "constant"
    return TensorFlow(
        tensor=value.name or "",
        role=role,
        is_output=value.is_graph_output(),
        size=sizes.get(value.name or ""),
        producer=producer,
        readers=tuple(readers),
    )


def _in_flow(node: ir.Node, place: int, position: int | None) -> NodeInFlow:
    return NodeInFlow(
        node=node.name or "",
        operator=f"{node.domain}::{node.op_type}" if node.domain else node.op_type,
        place=place,
        position=position,
        reads=tuple(dict.fromkeys(value.name or "" for value in read_by(node))),
        makes=tuple(value.name or "" for value in node.outputs),
    )
