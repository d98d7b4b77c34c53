"""Pattern matching: finds nodes that together compute a known function, in any order of their operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import constant_array

_COMMUTATIVE = frozenset({"Add", "Mul"})
# Exporters round constants to their type, and write some with fewer digits; small integers and halves are exact.
_RELATIVE_ERROR = 1e-5
_HALF_PRECISION_ERROR = 5e-4


@dataclass(frozen=True, slots=True)
class Tensor:
    """Matches any value; the same one wherever the name occurs."""

    name: str


@dataclass(frozen=True, slots=True)
class Number:
    """Matches a constant of one element: this one, or with a name, any."""

    value: float | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Matches any constant."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """Matches the output of a node.

    Attributes:
        op_type: its operator, of the standard.
        inputs: its first inputs; a node with more of them matches only with ``more``.
        more: whether it may have more inputs, such as axes.
        accepts: a further condition on the node.
        name: the name of the node in the match.
    """

    op_type: str
    inputs: tuple[Pattern, ...]
    more: bool = False
    accepts: Callable[[ir.Node], bool] | None = None
    name: str | None = None


Pattern: TypeAlias = Tensor | Number | Stored | Op


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A match of a pattern.

    Attributes:
        values: the values by name.
        nodes: the nodes, the last one first.
        named: those that have a name in the pattern.
    """

    values: Mapping[str, ir.Value] = field(default_factory=dict)
    nodes: tuple[ir.Node, ...] = ()
    named: Mapping[str, ir.Node] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """Returns the constant of one element under ``name``."""
        array = constant_array(self.values[name])
        if array is None:
            raise AssertionError(f"'{name}' is not a constant in the pattern")
        return float(array.reshape(()))

    @property
    def is_closed(self) -> bool:
        """Whether nothing but the last node's output is read by others, so that all of it can be replaced."""
        last, inner = self.nodes[0], set(self.nodes)
        return all(
            not output.is_graph_output() and all(use.node in inner for use in output.uses())
            for node in self.nodes
            if node is not last
            for output in node.outputs
        )


def first_match(patterns: Sequence[Op], node: ir.Node) -> Match | None:
    """Returns where the first of ``patterns`` fits that ends in ``node`` and shares no inner value with others."""
    for pattern in patterns:
        for match in _node(pattern, node, Match()):
            if match.is_closed:
                return match
    return None


def operators_in(pattern: Op) -> frozenset[str]:
    """Returns the operators that a graph needs for the pattern to be in it."""
    inner = [operators_in(value) for value in pattern.inputs if isinstance(value, Op)]
    return frozenset({pattern.op_type}).union(*inner)


def _node(pattern: Op, node: ir.Node, match: Match) -> Iterator[Match]:
    if node.op_type != pattern.op_type or node.domain != "":
        return
    wanted = len(pattern.inputs)
    if len(node.inputs) < wanted or (len(node.inputs) > wanted and not pattern.more):
        return
    if pattern.accepts is not None and not pattern.accepts(node):
        return
    if match.nodes and node.graph is not match.nodes[0].graph:
        return
    nodes = match.nodes if node in match.nodes else (*match.nodes, node)
    named = match.named if pattern.name is None else {**match.named, pattern.name: node}
    begun = Match(values=match.values, nodes=nodes, named=named)
    orders = (pattern.inputs, pattern.inputs[::-1]) if pattern.op_type in _COMMUTATIVE else (pattern.inputs,)
    for order in orders:
        yield from _values(order, node.inputs[:wanted], begun)


def _values(patterns: Sequence[Pattern], values: Sequence[ir.Value | None], match: Match) -> Iterator[Match]:
    if not patterns:
        yield match
        return
    for found in _value(patterns[0], values[0], match):
        yield from _values(patterns[1:], values[1:], found)


def _value(pattern: Pattern, value: ir.Value | None, match: Match) -> Iterator[Match]:
    if value is None:
        return
    if isinstance(pattern, Op):
        producer = value.producer()
        if producer is not None and len(producer.outputs) == 1:
            yield from _node(pattern, producer, match)
    elif isinstance(pattern, Number):
        if _is_number(pattern, value):
            yield _bound(match, pattern.name, value)
    elif isinstance(pattern, Stored):
        if constant_array(value) is not None:
            yield _bound(match, pattern.name, value)
    elif match.values.get(pattern.name, value) is value:
        yield _bound(match, pattern.name, value)


def _bound(match: Match, name: str | None, value: ir.Value) -> Match:
    if name is None or name in match.values:
        return match
    return Match(values={**match.values, name: value}, nodes=match.nodes, named=match.named)


def _is_number(pattern: Number, value: ir.Value) -> bool:
    array = constant_array(value)
    if array is None or array.size != 1 or array.dtype.kind not in "fiu":
        return False
    if pattern.value is None:
        return True
    number, error = float(array.reshape(())), _RELATIVE_ERROR if array.itemsize > 2 else _HALF_PRECISION_ERROR
    if pattern.value * 2 == round(pattern.value * 2):
        return number == pattern.value
    return bool(np.isclose(number, pattern.value, rtol=error, atol=0))
