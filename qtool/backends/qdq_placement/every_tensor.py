"""QDQ placement around every operator, for accelerators that run only integers.

An NPU runs whole groups of DQ, operator and Q; float nodes between two of them run on the CPU. So each float tensor
that a known operator reads or computes is quantized, up to the inputs and outputs of the model. The operators are those
that onnxruntime's QNN provider supports
(https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, Supported ONNX operators).
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qtool.backends.qdq_placement.layers import agreed_weight, reason_to_skip_layer, weight_granularity
from qtool.backends.qdq_placement.operators import FLOAT_TYPES, OPERATORS, Kind
from qtool.calib.granularity import Granularity, PerTensor
from qtool.calib.grid import Grid
from qtool.graph.constants import clip_bounds, constant_array, is_constant, sole_consumer
from qtool.plan import ActivationPlan, BiasPlan, Plan, Skipped, WeightPlan
from qtool.schemes import Scheme
from qtool.selection import NodeSelection

# Further operators than those of the CPU provider, and which of their inputs are quantized; None for all of them.
_OTHERS: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        ("Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Log", "LogSoftmax"),
        (0,),
    ),
    **dict.fromkeys(("Neg", "Round", "Sign", "Sin", "Softmax", "Sqrt", "Tanh", "Pad", "SpaceToDepth"), (0,)),
    **dict.fromkeys(("GlobalMaxPool", "ReduceMean", "ReduceSum"), (0,)),
    **dict.fromkeys(("Sub", "Div", "Max", "Min", "Pow", "PRelu"), None),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization"), (0, 1)),
}
# Their third input is added to the product of the first two, as a layer's bias is.
_NORMALIZATIONS = ("LayerNormalization", "InstanceNormalization")


def place(
    graph: ir.Graph, scheme: Scheme, selection: NodeSelection, unfit: Mapping[str, str], kept_float: Mapping[str, str]
) -> Plan:
    """Returns the plan for ``graph``, whose nodes all have names.

    ``unfit`` gives the reasons of tensors that must stay float, ``kept_float`` those of nodes.
    """
    placement = _Placement(graph, scheme)
    placement.choose(selection, unfit, kept_float)
    return Plan(
        activations=placement.activations(),
        weights=placement.weights(),
        biases=placement.biases() if scheme.integer_biases else {},
        integer_nodes={_name(node): node.op_type for node in placement.integer},
        skipped=tuple(placement.skipped),
        channel_axes=placement.channel_axes(),
    )


class _Placement:
    """Chooses nodes, and derives the plan."""

    def __init__(self, graph: ir.Graph, scheme: Scheme) -> None:
        self.graph = graph
        self.scheme = scheme
        self.integer: dict[ir.Node, None] = {}
        self.skipped: list[Skipped] = []

    def choose(self, selection: NodeSelection, unfit: Mapping[str, str], kept_float: Mapping[str, str]) -> None:
        """Fills ``integer``, and ``skipped`` with every other node that computes floats."""
        for node in ir.traversal.RecursiveGraphIterator(self.graph):
            if not any(output.dtype in FLOAT_TYPES for output in node.outputs):
                continue
            reason = "it is inside a branch or a loop" if node.graph is not self.graph else None
            reason = reason or kept_float.get(_name(node)) or selection.reason_to_skip(node)
            reason = reason or self._reason_by_form(node) or _reason_by_values(node, unfit)
            if reason is None:
                self.integer[node] = None
            else:
                self.skipped.append(Skipped(node=_name(node), operator=node.op_type, reason=reason))

    def _reason_by_form(self, node: ir.Node) -> str | None:
        if node.domain != "" or (node.op_type not in OPERATORS and node.op_type not in _OTHERS):
            return f"{self.scheme.machine} is not known to run {node.op_type} on integers"
        if _kind(node) is Kind.LAYER:
            return reason_to_skip_layer(node)
        data = _data(node)
        if all(is_constant(value) for value in data):
            return "it reads constants only"
        for value in (*data, *node.outputs):
            if value.dtype != ir.DataType.FLOAT:
                return f"'{value.name}' is {value.dtype}, not float32" if value.dtype else "its types are not known"
        if node.op_type in _NORMALIZATIONS and not all(is_constant(value) for value in node.inputs[1:]):
            return "its scale or bias is computed at run time"
        return None

    def activations(self) -> dict[str, ActivationPlan]:
        """Plans every tensor that one of the nodes reads or computes, except for those that a clamp replaces."""
        found: dict[ir.Value, None] = {}
        for node in self.integer:
            for value in (*_data(node), *node.outputs):
                if not is_constant(value) and not self._is_clamped(value) and (value.uses() or value.is_graph_output()):
                    found[value] = None
        return {value.name or "": self._activation(value) for value in found}

    def weights(self) -> dict[str, WeightPlan]:
        """Plans every constant that one of the nodes reads as data."""
        wishes: dict[str, list[tuple[str, Grid, Granularity]]] = {}
        for node in self.integer:
            for index in _positions(node):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is None or not is_constant(value):
                    continue
                grid: Grid = self.scheme.activations
                granularity: Granularity = PerTensor()
                if _kind(node) is Kind.LAYER and index == 1:
                    grid, granularity = (
                        self.scheme.weights,
                        weight_granularity(node, per_channel=self.scheme.per_channel),
                    )
                wishes.setdefault(value.name or "", []).append((_name(node), grid, granularity))
        return {tensor: agreed_weight(tensor, wanted, self.scheme) for tensor, wanted in wishes.items()}

    def biases(self) -> dict[str, BiasPlan]:
        """Plans the bias of every layer and normalization that has one."""
        plans = {}
        for node in self.integer:
            if len(node.inputs) < 3 or not (_kind(node) is Kind.LAYER or node.op_type in _NORMALIZATIONS):
                continue
            activation, weight, bias = node.inputs[:3]
            if activation is not None and weight is not None and bias is not None:
                plans[_name(node)] = BiasPlan(
                    tensor=bias.name or "",
                    node=_name(node),
                    activation=activation.name or "",
                    weight=weight.name or "",
                )
        return plans

    def channel_axes(self) -> dict[str, int]:
        """Returns, for every tensor that meets the weights of a layer, the axis that they multiply."""
        axes: dict[str, int] = {}
        for node in self.integer:
            if _kind(node) is Kind.LAYER and is_constant(node.inputs[1]):
                source = node.inputs[0]
                if source is not None and not is_constant(source):
                    axes.setdefault(source.name or "", 1 if node.op_type == "Conv" else -1)
        return axes

    def _activation(self, value: ir.Value) -> ActivationPlan:
        readers = frozenset(
            _name(use.node) for use in value.uses() if use.node in self.integer and use.idx in _positions(use.node)
        )
        return ActivationPlan(
            tensor=value.name or "",
            grid=self.scheme.activations,
            source=self._source(value).name or "",
            readers=None if value.producer() in self.integer else readers,
        )

    def _source(self, value: ir.Value) -> ir.Value:
        """Goes back through nodes that only move values to their source."""
        while (
            (producer := value.producer()) is not None and producer in self.integer and _kind(producer) is Kind.MOVING
        ):
            source = producer.inputs[0]
            if source is None:
                break
            value = source
        return value

    def _is_clamped(self, value: ir.Value) -> bool:
        """Returns whether only a Relu or Clip that the Q after it makes redundant reads a value."""
        producer, reader = value.producer(), sole_consumer(value)
        if self.scheme.activations.symmetric or producer is None or reader is None or reader not in self.integer:
            return False
        if producer not in self.integer or _kind(producer) is Kind.MOVING or reader.inputs[0] is not value:
            return False
        if reader.op_type == "Relu":
            return True
        if reader.op_type != "Clip" or any(constant_array(bound) is None for bound in reader.inputs[1:] if bound):
            return False
        low, high = clip_bounds(reader)
        return low <= 0.0 <= high


def _kind(node: ir.Node) -> Kind | None:
    operator = OPERATORS.get(node.op_type)
    # Cubic interpolation overshoots.
    mode = node.attributes.get("mode") if node.op_type == "Resize" else None
    return None if operator is None or (mode is not None and mode.as_string() == "cubic") else operator.kind


def _positions(node: ir.Node) -> tuple[int, ...]:
    """Returns which inputs of a known operator are quantized."""
    operator = OPERATORS.get(node.op_type)
    positions = _OTHERS.get(node.op_type) if operator is None else operator.data_inputs
    return tuple(range(len(node.inputs))) if positions is None else positions


def _data(node: ir.Node) -> list[ir.Value]:
    inputs = (node.inputs[index] for index in _positions(node) if index < len(node.inputs))
    return [value for value in inputs if value is not None]


def _reason_by_values(node: ir.Node, unfit: Mapping[str, str]) -> str | None:
    for value in (*_data(node), *node.outputs):
        if (value.name or "") in unfit:
            return f"'{value.name}' {unfit[value.name or '']}"
    return None


def _name(node: ir.Node) -> str:
    return node.name or ""
