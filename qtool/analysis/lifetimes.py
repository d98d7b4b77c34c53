"""Determines which tensors are in memory while each node runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.constants import is_constant
from qtool.graph.node_reads import graphs_in, read_by
from qtool.graph.tensor_sizes import TensorSize

# Operators that only reshape the memory of their first input.
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
# Compute each value from values at the same place, so that they can write where they read.
_ELEMENTWISE = frozenset(
    {
        *("Abs", "Add", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal"),
        *("Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Tanh"),
        *("BatchNormalization", "QuickGelu", "Dropout", "ThresholdedRelu"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Says when one tensor is in memory.

    Attributes:
        tensor: its name.
        size: its type and shape; None where unknown.
        made_by: the node that makes it; None for an input of the graph.
        made_at: the place of that node in the order of the graph; 0 for inputs, which are there from the start.
        last_used_at: the place of the last node that reads it; that of the last node for outputs of the graph.
        last_used_by: that node; None for unused tensors, and for outputs of the graph.
        takes_over: the tensor whose memory it could have; None where it needs its own.
    """

    tensor: str
    size: TensorSize | None
    made_by: str | None
    made_at: int
    last_used_at: int
    last_used_by: str | None
    takes_over: str | None

    @property
    def nbytes(self) -> int:
        """How many bytes it takes; 0 where its size is unknown."""
        return 0 if self.size is None else self.size.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Describes how much memory the activations of one run take, in the order of the graph's nodes.

    Attributes:
        nodes: names of the nodes, in order.
        lifetimes: every tensor that is no constant, in the order in which they are made.
        bytes_at: the bytes of all that is alive, at each node; what graphs inside a node hold at most included.
        reused_bytes_at: the same where nodes reuse the memory of tensors without further readers.
        unknown: names of tensors whose size is unknown; they count as nothing.
    """

    nodes: tuple[str, ...]
    lifetimes: tuple[Lifetime, ...]
    bytes_at: tuple[int, ...]
    reused_bytes_at: tuple[int, ...]
    unknown: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at any node."""
        return max(self.bytes_at, default=0)

    @property
    def peak_at(self) -> int:
        """The place of the first node with that much."""
        return self.bytes_at.index(self.peak_bytes) if self.bytes_at else 0

    @property
    def reused_peak_bytes(self) -> int:
        """The most that is alive where nodes write in place."""
        return max(self.reused_bytes_at, default=0)

    def alive_at(self, place: int) -> tuple[Lifetime, ...]:
        """Returns what is in memory while the node at ``place`` runs, the largest first."""
        alive = [entry for entry in self.lifetimes if entry.made_at <= place <= entry.last_used_at]
        return tuple(sorted(alive, key=lambda entry: (-entry.nbytes, entry.tensor)))


def memory_use(graph: ir.Graph, sizes: Mapping[str, TensorSize]) -> MemoryUse:
    """Follows every activation of ``graph`` from the node that makes it to the last one that reads it.

    Inputs of the graph are alive from the start to their last reader, outputs until the end. Constants are not counted,
    nor is what is computed from constants alone, which runtimes do once. Takes linear time.
    """
    nodes = list(graph)
    spans = _spans(graph, nodes)
    inner = [_inner_peak(node, sizes) for node in nodes]
    owners = _memory_owners(nodes, spans, sizes)
    nbytes = {value: _nbytes(value, sizes) for value in spans}
    shared: dict[ir.Value, list[int]] = {}
    for value, owner in owners.items():
        first, last = spans[value]
        ends = shared.setdefault(owner, [first, last])
        ends[0], ends[1] = min(ends[0], first), max(ends[1], last)
    names = [node.name or node.op_type for node in nodes]
    return MemoryUse(
        nodes=tuple(names),
        lifetimes=tuple(_lifetime(value, span, names, owners, sizes) for value, span in spans.items()),
        bytes_at=_summed([(*span, nbytes[value]) for value, span in spans.items()], inner),
        reused_bytes_at=_summed([(first, last, nbytes[owner]) for owner, (first, last) in shared.items()], inner),
        unknown=tuple(value.name or "" for value in spans if value.name not in sizes),
    )


def _spans(graph: ir.Graph, nodes: Sequence[ir.Node]) -> dict[ir.Value, tuple[int, int]]:
    """Returns the places of the first and the last node at which each activation is in memory."""
    spans = {value: (0, 0) for value in graph.inputs if not value.is_initializer()}
    constants: set[ir.Value] = set()
    for place, node in enumerate(nodes):
        read = list(read_by(node))
        for value in read:
            if value in spans:
                spans[value] = (spans[value][0], place)
        if node.op_type == "Constant" or (read and all(is_constant(value) or value in constants for value in read)):
            constants.update(node.outputs)
        else:
            spans.update((value, (place, place)) for value in node.outputs if value.name)
    end = max(len(nodes) - 1, 0)
    return spans | {value: (spans[value][0], end) for value in graph.outputs if value in spans}


def _memory_owners(
    nodes: Sequence[ir.Node], spans: Mapping[ir.Value, tuple[int, int]], sizes: Mapping[str, TensorSize]
) -> dict[ir.Value, ir.Value]:
    """Returns for every activation the one in whose memory it can be: itself, or an earlier one."""
    owners = {value: value for value in spans}
    for node in nodes:
        source = node.inputs[0] if node.op_type in _VIEWS and node.inputs else None
        if source is not None and source in spans and node.outputs[0] in spans:
            owners[node.outputs[0]] = owners[source]
    last: dict[ir.Value, int] = {}
    for value, owner in owners.items():
        last[owner] = max(last.get(owner, 0), spans[value][1])
    overwritten: dict[ir.Value, ir.Value] = {}
    for place, node in enumerate(nodes):
        if node.op_type not in _ELEMENTWISE or node.outputs[0] not in spans:
            continue
        made = node.outputs[0]
        for source in node.inputs:
            if source is None or source not in spans:
                continue
            owner = _found(overwritten, owners[source])
            # The caller owns the inputs.
            is_free = last[owner] == place and not owner.is_graph_input() and made is owners[made]
            if is_free and made is not owner and _nbytes(owner, sizes) == _nbytes(made, sizes) > 0:
                overwritten[made] = owner
                last[owner] = last[made]
                break
    return {value: _found(overwritten, owner) for value, owner in owners.items()}


def _found(overwritten: dict[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    end = value
    while end in overwritten:
        end = overwritten[end]
    while value is not end:
        following = overwritten[value]
        overwritten[value] = end
        value = following
    return end


def _lifetime(
    value: ir.Value,
    span: tuple[int, int],
    names: Sequence[str],
    owners: Mapping[ir.Value, ir.Value],
    sizes: Mapping[str, TensorSize],
) -> Lifetime:
    is_read = bool(value.uses()) and not value.is_graph_output()
    return Lifetime(
        tensor=value.name or "",
        size=sizes.get(value.name or ""),
        made_by=None if value.is_graph_input() else names[span[0]],
        made_at=span[0],
        last_used_at=span[1],
        last_used_by=names[span[1]] if is_read and names else None,
        takes_over=None if owners[value] is value else owners[value].name,
    )


def _summed(spans: Sequence[tuple[int, int, int]], inner: Sequence[int]) -> tuple[int, ...]:
    changes = [0] * (len(inner) + 1)
    for first, last, nbytes in spans:
        changes[first] += nbytes
        changes[min(last + 1, len(inner))] -= nbytes
    alive, sums = 0, []
    for place, extra in enumerate(inner):
        alive += changes[place]
        sums.append(alive + extra)
    return tuple(sums)


def _inner_peak(node: ir.Node, sizes: Mapping[str, TensorSize]) -> int:
    """Returns what the graphs inside a node hold at most; only one of them runs at a time."""
    return max((memory_use(graph, sizes).peak_bytes for graph in graphs_in(node)), default=0)


def _nbytes(value: ir.Value, sizes: Mapping[str, TensorSize]) -> int:
    size = sizes.get(value.name or "")
    return 0 if size is None else size.nbytes
