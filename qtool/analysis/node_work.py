"""Counts the multiply-adds of a whole graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qtool.analysis.multiply_adds import multiplies, multiply_adds
from qtool.graph.tensor_sizes import TensorSize


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWork:
    """The work of one node that multiplies.

    Attributes:
        node: its name.
        operator: its type.
        multiply_adds: how many it does in one run; None where shapes are unknown.
        output_shape: the shape of its first output; None where it is unknown.
    """

    node: str
    operator: str
    multiply_adds: int | None
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of one run.

    Attributes:
        nodes: every node that multiplies, in the order of the graph; those of branches and loop bodies come once.
        other_nodes: how many nodes do something else, which is not counted.
    """

    nodes: tuple[NodeWork, ...]
    other_nodes: int

    @property
    def total(self) -> int:
        """The multiply-adds of the nodes whose shapes are known."""
        return sum(node.multiply_adds or 0 for node in self.nodes)

    @property
    def unknown_nodes(self) -> int:
        """How many nodes multiply, one cannot say how often."""
        return sum(node.multiply_adds is None for node in self.nodes)

    def by_operator(self) -> dict[str, int]:
        """Returns the multiply-adds by type of node, the most first."""
        sums: dict[str, int] = {}
        for node in self.nodes:
            sums[node.operator] = sums.get(node.operator, 0) + (node.multiply_adds or 0)
        return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))


def work_of(model: ir.Model, sizes: Mapping[str, TensorSize]) -> Work:
    """Counts what the nodes of ``model`` multiply, on tensors of these sizes."""

    def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
        size = None if value is None else sizes.get(value.name or "")
        return None if size is None else size.shape

    nodes = list(model.graph.all_nodes())
    counted = [node for node in nodes if multiplies(node)]
    return Work(
        nodes=tuple(
            NodeWork(
                node=node.name or node.outputs[0].name or "",
                operator=node.op_type,
                multiply_adds=multiply_adds(node, shape_of),
                output_shape=shape_of(node.outputs[0]),
            )
            for node in counted
        ),
        other_nodes=len(nodes) - len(counted),
    )
