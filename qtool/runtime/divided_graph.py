"""Divides a graph into ranges of nodes that run one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import onnx_ir as ir

from qtool.graph.node_reads import read_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A range of nodes.

    Attributes:
        nodes: the nodes, in order.
        weights: the initializers that they read.
        taken: their inputs from the graph's inputs and from earlier parts.
        given: their outputs that later parts or the graph's outputs need.
        spent: tensors that no later part reads.
    """

    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]
    taken: tuple[ir.Value, ...]
    given: tuple[ir.Value, ...]
    spent: tuple[str, ...]


def divided(model: ir.Model, groups: Sequence[Sequence[ir.Node]]) -> list[Part]:
    """Returns the parts of a graph, whose nodes ``groups`` holds in order."""
    reads = [{value for node in group for value in read_by(node)} for group in groups]
    makes = [{value for node in group for value in node.outputs} for group in groups]
    last_use = {value: place for place, values in enumerate(reads) for value in values}
    ends = set(model.graph.outputs)
    weights = {value for value in model.graph.initializers.values() if not value.is_graph_input()}
    return [
        Part(
            nodes=tuple(group),
            weights=_ordered(reads[place] & weights),
            taken=_ordered(reads[place] - makes[place] - weights),
            given=_ordered(value for value in makes[place] if value in ends or last_use.get(value, place) > place),
            spent=tuple(
                value.name or "" for value in reads[place] - ends - weights if value.name and last_use[value] == place
            ),
        )
        for place, group in enumerate(groups)
    ]


def part_of(whole: ir.Model, part: Part, fed: Sequence[ir.Value] = ()) -> ir.Model:
    """Returns a view of a part of ``whole`` as a model, to which the weights ``fed`` are inputs.

    It shares nodes and values with ``whole``: copies of very many take longer than to open them.
    """
    view = ir.GraphView(
        (*part.taken, *fed),
        part.given,
        nodes=part.nodes,
        initializers=[value for value in part.weights if value not in fed],
        opset_imports=whole.graph.opset_imports,
        name="part",
    )
    # The interface says that models may be of views, the types do not.
    model = ir.Model(cast(ir.Graph, view), ir_version=whole.ir_version, functions=tuple(whole.functions.values()))
    model.metadata_props.update(whole.metadata_props)
    return model


def _ordered(values: Iterable[ir.Value]) -> tuple[ir.Value, ...]:
    return tuple(sorted(values, key=lambda value: value.name or ""))
