"""Builds a model for each part of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.node_reads import read_by
from qtool.splitting.free_nodes import free_nodes, with_free
from qtool.splitting.groups import Group, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part.

    Attributes:
        nodes: its nodes, in the order of the graph, copies of free ones included.
        takes: its inputs: inputs of the graph and outputs of earlier parts.
        gives: its outputs that later parts, or the graph's outputs, need.
        constants: the stored tensors that it reads.
        kind: integers or floats; None where parts are not divided by that.
    """

    nodes: tuple[ir.Node, ...]
    takes: tuple[ir.Value, ...]
    gives: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    kind: Kind | None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs."""
        return tuple(value.name or "" for value in self.takes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""
        return tuple(value.name or "" for value in self.gives)


def parts_of(graph: ir.Graph, groups: Sequence[Group]) -> tuple[Part, ...]:
    """Determines the inputs and outputs of each group; tensors that skip a part are passed on by the caller."""
    free = free_nodes(graph)
    whole = [with_free(group.nodes, free) for group in groups]
    reads = [{value for node in nodes for value in read_by(node)} for nodes in whole]
    made = [{value for node in group.nodes for value in node.outputs} for group in groups]
    outputs = set(graph.outputs)
    needed_later = [outputs] * len(groups)
    for number in range(len(groups) - 1, 0, -1):
        needed_later[number - 1] = needed_later[number] | reads[number]
    places = {value: place for place, value in enumerate(_values(graph))}
    parts = []
    for number, (group, nodes) in enumerate(zip(groups, whole, strict=True)):
        own = {value for node in nodes for value in node.outputs}
        gives = made[number] & needed_later[number]
        if number == len(groups) - 1:
            # Outputs of the graph that are constants or depend on constants alone.
            gives |= {value for value in outputs if is_constant(value) or value.producer() in free}
            nodes = with_free([*nodes, *(node for value in gives if (node := value.producer()) is not None)], free)
            own = {value for node in nodes for value in node.outputs}
        read = {value for node in nodes for value in read_by(node)}
        constants = {value for value in (*read, *gives) if is_constant(value)}
        parts.append(
            Part(
                nodes=tuple(node for node in graph if node in nodes),
                takes=_ordered(read - own - constants, places),
                gives=_ordered(gives, places),
                constants=_ordered(constants, places),
                kind=group.kind,
            )
        )
    return tuple(parts)


def part_model(model: ir.Model, part: Part) -> ir.Model:
    """Returns a part as a separate model, which shares only the stored tensors with ``model``."""
    view = ir.GraphView(
        part.takes,
        part.gives,
        nodes=part.nodes,
        initializers=part.constants,
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    return ir.Model(
        view.clone(),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=tuple(model.functions.values()),
    )


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _ordered(values: Set[ir.Value], places: dict[ir.Value, int]) -> tuple[ir.Value, ...]:
    return tuple(sorted(values, key=lambda value: places.get(value, -1)))
