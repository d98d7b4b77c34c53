"""Moves Transpose nodes towards the outputs until they cancel each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from qtool.graph.names import Names
from qtool.graph.node_reads import read_by
from qtool.passes.layout.permutations import Perm, between, identity, is_identity, then
from qtool.passes.layout.rewrites import BROADCASTING, RULES, Rewrite, broadcasting_rewrite

# From this opset on Softmax, LogSoftmax and Hardmax work along one axis.
_SINGLE_AXIS_OPSET = 13
_SINGLE_AXIS = ("Softmax", "LogSoftmax", "Hardmax")


@dataclass(frozen=True, slots=True)
class _Kept:
    """A tensor stored as ``value``, from which Transpose with ``perm`` would make the original.

    ``moved`` is one of the Transpose nodes that this comes from.
    """

    value: ir.Value
    perm: Perm | None
    moved: ir.Node | None = None


@dataclass(slots=True)
class _Plan:
    """The plan of all nodes.

    Attributes:
        kept: the tensors that are stored with permuted axes.
        rewrites: the nodes that change.
        moved: the Transpose nodes that are not needed where they are, each with another one of its group, or itself;
            a group are those that have met.
        needed: the Transpose that are needed instead, by what they read and how they turn it, with one of the group
            that each of them comes from.
    """

    kept: dict[ir.Value, _Kept] = field(default_factory=dict)
    rewrites: dict[ir.Node, Rewrite] = field(default_factory=dict)
    moved: dict[ir.Node, ir.Node] = field(default_factory=dict)
    needed: dict[tuple[ir.Value, Perm], ir.Node] = field(default_factory=dict)

    def of(self, value: ir.Value) -> _Kept:
        """Returns how a tensor is stored."""
        return self.kept.get(value) or _Kept(value, None)

    def leader(self, node: ir.Node) -> ir.Node:
        """Returns the node that represents the group of a moved one."""
        while self.moved[node] is not node:
            self.moved[node] = self.moved[self.moved[node]]
            node = self.moved[node]
        return node

    def meet(self, nodes: Iterable[ir.Node | None]) -> ir.Node | None:
        """Makes one group of those of ``nodes``; returns one of it."""
        first = None
        for node in nodes:
            if node is not None and first is not None:
                self.moved[self.leader(node)] = self.leader(first)
            first = first or node
        return first

    def need(self, value: ir.Value, wanted: Perm | None, group: ir.Node | None) -> None:
        """Records the Transpose of ``value`` that a node of that group needs."""
        kept = self.of(value)
        turn = _turn(kept, wanted)
        if turn is None:
            return
        met = self.meet((self.needed.get((kept.value, turn)), kept.moved, group))
        if met is not None:
            self.needed[kept.value, turn] = met


def cancel_transposes(graph: ir.Graph, opset: int) -> bool:
    """Rewrites the nodes between inverse Transpose nodes, where fewer of these are left; returns whether it did.

    Nodes inside branches and loops are not changed. Takes linear time.
    """
    blocked = _captured(graph)
    plan = _planned(graph, opset, blocked, stay=set())
    stay = _not_worth_it(plan)
    if stay:
        plan = _planned(graph, opset, blocked, stay=stay)
    if not plan.moved or len(plan.needed) >= len(plan.moved):
        return False
    _apply(graph, plan)
    return True


def move_transposes(graph: ir.Graph, opset: int, moved: Set[ir.Node]) -> None:
    """Moves only these Transpose nodes towards the outputs as far as possible."""
    stay = {node for node in graph if node.op_type == "Transpose" and node not in moved}
    _apply(graph, _planned(graph, opset, _captured(graph), stay))


def _captured(graph: ir.Graph) -> set[ir.Value]:
    """Returns the values of this graph that subgraphs read."""
    found: set[ir.Value] = set()
    for node in graph:
        found.update(set(read_by(node)) - set(node.inputs))
    return found


def _planned(graph: ir.Graph, opset: int, blocked: Set[ir.Value], stay: Set[ir.Node]) -> _Plan:
    plan = _Plan()
    for node in graph:
        source, perm = node.inputs[0] if node.inputs else None, transpose_perm(node)
        is_free = node not in stay and node.outputs[0] not in blocked
        if perm is not None and source is not None and is_free:
            before = plan.of(source)
            plan.moved[node] = node
            group = plan.meet((node, before.moved))
            plan.kept[node.outputs[0]] = _Kept(before.value, then(before.perm or identity(len(perm)), perm), group)
            continue
        rewrite = None if any(value in blocked for value in node.outputs) else _rewrite(node, opset, plan)
        wanted: Mapping[int, Perm] = {} if rewrite is None else rewrite.wanted
        group = None
        if rewrite is not None:
            read = [value for value in node.inputs if value is not None]
            group = plan.meet(plan.of(value).moved for value in read)
            plan.rewrites[node] = rewrite
        for place, value in enumerate(node.inputs):
            if value is not None:
                plan.need(value, wanted.get(place), group)
        if rewrite is not None:
            made = zip(node.outputs, rewrite.made, strict=True)
            plan.kept |= {output: _Kept(output, kept, group) for output, kept in made}
    for value in graph.outputs:
        plan.need(value, None, None)
    return plan


def _rewrite(node: ir.Node, opset: int, plan: _Plan) -> Rewrite | None:
    if node.domain or (node.op_type in _SINGLE_AXIS and opset < _SINGLE_AXIS_OPSET):
        return None
    kept = [None if value is None else plan.of(value) for value in node.inputs]
    if all(one is None or one.perm is None or is_identity(one.perm) for one in kept):
        return None
    if node.op_type in BROADCASTING:
        return broadcasting_rewrite(node, [None if one is None else _perm_of(one) for one in kept])
    rule = RULES.get(node.op_type)
    first = kept[0]
    if rule is None or first is None:
        return None
    if node.op_type == "Concat":
        perms = {None if one is None else one.perm for one in kept}
        return None if len(perms) != 1 or first.perm is None else rule(node, first.perm)
    return None if first.perm is None or is_identity(first.perm) else rule(node, first.perm)


def _perm_of(kept: _Kept) -> Perm | None:
    if kept.perm is not None:
        return kept.perm
    return None if kept.value.shape is None else identity(len(kept.value.shape))


def _turn(kept: _Kept, wanted: Perm | None) -> Perm | None:
    """Returns the Transpose that is needed; None where there is none."""
    if kept.perm is None and wanted is None:
        return None
    rank = len(kept.perm or wanted or ())
    turn = between(kept.perm or identity(rank), wanted or identity(rank))
    return None if is_identity(turn) else turn


def transpose_perm(node: ir.Node) -> Perm | None:
    """Returns the permutation of a Transpose; None for another node, or where its rank is unknown."""
    if node.op_type != "Transpose" or node.domain:
        return None
    if "perm" in node.attributes:
        return tuple(node.attributes["perm"].as_ints())
    source = node.inputs[0]
    return None if source is None or source.shape is None else tuple(reversed(range(len(source.shape))))


def _not_worth_it(plan: _Plan) -> set[ir.Node]:
    """Returns the Transpose nodes of groups whose removal would not reduce their number."""
    balance = Counter(plan.leader(node) for node in plan.needed.values())
    balance.subtract(plan.leader(node) for node in plan.moved)
    return {node for node in plan.moved if balance[plan.leader(node)] >= 0}


def _apply(graph: ir.Graph, plan: _Plan) -> None:
    names = Names(graph)
    made: dict[tuple[ir.Value, Perm], ir.Value] = {}
    outputs = list(graph.outputs)
    for node in list(graph):
        if node in plan.moved:
            continue
        rewrite = plan.rewrites.get(node)
        wanted: Mapping[int, Perm] = {} if rewrite is None else rewrite.wanted
        for place, value in enumerate(node.inputs):
            if value is not None and (value in plan.kept or place in wanted):
                node.replace_input_with(place, _as_wanted(graph, names, plan, made, value, wanted.get(place), node))
        if rewrite is not None:
            for value, perm in zip(node.outputs, rewrite.made, strict=True):
                if value.shape is not None and not is_identity(perm):
                    value.shape = ir.Shape([value.shape[axis] for axis in _inverse(perm)])
            if rewrite.change is not None:
                rewrite.change(graph, names)
    for value in outputs:
        if _turn(plan.of(value), None) is not None or (value in plan.kept and plan.kept[value].value is not value):
            _give_back(graph, names, plan, made, value)
    for node in reversed(plan.moved):
        graph.remove(node, safe=True)


def _inverse(perm: Perm) -> Perm:
    return between(identity(len(perm)), perm)


def _as_wanted(
    graph: ir.Graph,
    names: Names,
    plan: _Plan,
    made: dict[tuple[ir.Value, Perm], ir.Value],
    value: ir.Value,
    wanted: Perm | None,
    reader: ir.Node,
) -> ir.Value:
    kept = plan.of(value)
    turn = _turn(kept, wanted)
    if turn is None:
        return kept.value
    if (kept.value, turn) not in made:
        node = _transpose(kept.value, turn, names.for_both(f"{kept.value.name}_transposed"))
        graph.insert_before(reader, node)
        made[kept.value, turn] = node.outputs[0]
    return made[kept.value, turn]


def _transpose(source: ir.Value, turn: Perm, name: str) -> ir.Node:
    node = ir.node("Transpose", [source], attributes={"perm": turn}, name=name)
    output = node.outputs[0]
    output.name, output.type = name, source.type
    if source.shape is not None:
        output.shape = ir.Shape([source.shape[axis] for axis in turn])
    return node


def _give_back(
    graph: ir.Graph, names: Names, plan: _Plan, made: dict[tuple[ir.Value, Perm], ir.Value], value: ir.Value
) -> None:
    """Makes the graph return the original tensor under the name of ``value``."""
    kept = plan.of(value)
    turn = _turn(kept, None)
    name = value.name or ""
    value.name = names.free(f"{name}_stored")
    place = list(graph.outputs).index(value)
    known = kept.value if turn is None else made.get((kept.value, turn))
    if turn is not None and known is not None and not known.is_graph_output():
        known.name = name
        graph.outputs[place] = known
        return
    if turn is not None and known is None:
        node = _transpose(kept.value, turn, name)
        node.name = names.for_node(name)
        made[kept.value, turn] = node.outputs[0]
    else:
        node = ir.node("Identity", [known], name=names.for_node(name))
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, value.shape
    graph.append(node)
    graph.outputs[place] = node.outputs[0]
