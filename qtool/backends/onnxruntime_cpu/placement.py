"""QDQ placement for onnxruntime's CPU provider: quantizes nodes where integer kernels exist and save time.

Layers (Conv, Gemm, MatMul) gain from quantization; every other operator runs on integers only where that avoids a
conversion: an element-wise operator when most of its inputs are integers already and a later node reads integers, an
operator that moves values when its input or output is integers anyway. The result is the largest set of nodes for which
this holds simultaneously, found by removing nodes until nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.activation_lower_bounds import activation_lower_bound
from qtool.backends.onnxruntime_cpu.kernel_order import orders_of
from qtool.backends.qdq_placement.layers import OUTPUT_OF_MODEL, agreed_weight, reason_to_skip_layer, weight_granularity
from qtool.backends.qdq_placement.node_form import reason_to_skip_node, reason_without_kernel
from qtool.backends.qdq_placement.operators import FLOAT_TYPES, OPERATORS, Kind
from qtool.backends.qdq_placement.pools import has_channels_last
from qtool.calib.granularity import Granularity, PerTensor
from qtool.calib.grid import Grid
from qtool.graph.constants import clip_bounds, is_constant, sole_consumer
from qtool.plan import ActivationPlan, BiasPlan, Plan, Skipped, WeightPlan
from qtool.schemes import Scheme
from qtool.selection import NodeSelection


def place(
    graph: ir.Graph, scheme: Scheme, selection: NodeSelection, unfit: Mapping[str, str], kept_float: Mapping[str, str]
) -> Plan:
    """Returns the plan for ``graph``, whose nodes all have names.

    ``unfit`` gives the reasons of tensors that must stay float, ``kept_float`` those of nodes.
    """
    placement = _Placement(graph, scheme, unfit, kept_float)
    placement.choose(selection)
    return Plan(
        activations=placement.activations(),
        weights=placement.weights(),
        biases=placement.biases() if scheme.integer_biases else {},
        integer_nodes={_name(node): node.op_type for node in graph if node in placement.integer},
        skipped=placement.skipped(),
        channel_axes=placement.channel_axes(),
        lowest=placement.lowest(),
    )


class _Placement:
    """Finds the integer nodes of one graph and derives the plan."""

    def __init__(
        self, graph: ir.Graph, scheme: Scheme, unfit: Mapping[str, str], kept_float: Mapping[str, str]
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.unfit = unfit
        self.kept_float = kept_float
        self.integer: set[ir.Node] = set()
        self.reasons: dict[ir.Node, str] = {}

    # --- integer nodes

    def choose(self, selection: NodeSelection) -> None:
        """Fills ``integer`` with the largest consistent set, and ``reasons`` for the others."""
        for node in self.graph:
            operator = OPERATORS.get(node.op_type) if node.domain == "" else None
            if operator is None or operator.kind is Kind.CLAMPING:
                continue
            reason = (
                selection.reason_to_skip(node)
                or self.kept_float.get(_name(node))
                or self._reason_by_form(node, operator.kind)
                or self._reason_by_values(node)
            )
            if reason is None:
                self.integer.add(node)
            else:
                self.reasons[node] = reason
        changed = True
        while changed:
            changed = False
            for node in self.graph:
                if node in self.integer and (reason := self._reason_by_neighbours(node)) is not None:
                    self.integer.remove(node)
                    self.reasons[node] = reason
                    changed = True

    def _reason_by_form(self, node: ir.Node, kind: Kind) -> str | None:
        if kind is Kind.LAYER:
            reason = reason_to_skip_layer(node)
            if reason is None and node.op_type == "Conv" and not self._final(node.outputs[0]).uses():
                return OUTPUT_OF_MODEL
            return reason
        return reason_to_skip_node(node, kind, self._data_inputs(node))

    def _reason_by_values(self, node: ir.Node) -> str | None:
        for value in [*self._data_inputs(node), *(self._final(output) for output in node.outputs)]:
            reason = None if value is None else self.unfit.get(_value_name(value))
            if value is not None and reason is not None:
                return f"'{value.name}' {reason}"
        return None

    def _reason_by_neighbours(self, node: ir.Node) -> str | None:
        kind = OPERATORS[node.op_type].kind
        if kind is Kind.LAYER:
            return None
        finals = [self._final(output) for output in node.outputs]
        if node.op_type == "MaxPool" and not has_channels_last(node.inputs[0], self.integer):
            return "integer pooling is slow with channels first, and no integer Conv before it makes channels last"
        if kind is Kind.MOVING:
            if all(self._read_by_integers_only(final) for final in finals):
                return None
            if self._emits(node.inputs[0]) and any(self._read_by_integers(final) for final in finals):
                return None
            return "float nodes read what it moves"
        emitted = [self._emits(value) for value in self._data_inputs(node) if not is_constant(value)]
        if 2 * sum(emitted) < len(emitted):
            return "most of what it reads comes from float nodes"
        if not any(self._read_by_integers(final) for final in finals):
            return "no later node reads integers"
        return None

    # --- producers and readers of a value

    def _data_inputs(self, node: ir.Node) -> list[ir.Value | None]:
        positions = OPERATORS[node.op_type].data_inputs
        return list(node.inputs) if positions is None else [node.inputs[i] for i in positions if i < len(node.inputs)]

    def _reads_as_data(self, node: ir.Node, index: int) -> bool:
        positions = OPERATORS[node.op_type].data_inputs
        return positions is None or index in positions

    def _final(self, value: ir.Value) -> ir.Value:
        """Follows a value through the clamping operators that its Q will absorb."""
        producer = value.producer()
        if producer is not None and producer in self.integer and OPERATORS[producer.op_type].kind is Kind.MOVING:
            return value  # its Q must have the parameters of its input, which do not include the clamp
        while (reader := sole_consumer(value)) is not None and self._absorbed(reader) and reader.inputs[0] is value:
            value = reader.outputs[0]
        return value

    def _head(self, value: ir.Value) -> ir.Value:
        """Goes back through absorbed clamping operators to the producer of the value."""
        while (producer := value.producer()) is not None and self._absorbed(producer):
            source = producer.inputs[0]
            if source is None or sole_consumer(source) is not producer:
                break
            value = source
        return value

    def _absorbed(self, node: ir.Node) -> bool:
        if node.domain != "" or node.graph is not self.graph or self.scheme.activations.symmetric:
            return False
        if node.op_type == "Relu":
            return True
        if node.op_type != "Clip":
            return False
        bounds = [value for value in node.inputs[1:] if value is not None]
        if not all(is_constant(value) for value in bounds):
            return False
        low, high = clip_bounds(node)
        return low <= 0.0 <= high

    def _emits(self, value: ir.Value | None) -> bool:
        """Returns whether a value is an integer output of its node."""
        if value is None:
            return False
        head = self._head(value)
        producer = head.producer()
        if producer is None or producer not in self.integer:
            return False
        operator = OPERATORS[producer.op_type]
        if operator.kind is Kind.MOVING:
            return self._emits(producer.inputs[0])
        if operator.needs_integer_output:
            return True
        final = self._final(head)
        if self._meets_clamp(head) or self._meets_clamp(final):
            return True
        if not self._read_by_integers_only(final):
            return False
        # The bias after a MatMul is added before rounding, which is more accurate than after it.
        return producer.op_type != "MatMul" or all(
            OPERATORS[use.node.op_type].kind is not Kind.ELEMENTWISE for use in final.uses()
        )

    def _meets_clamp(self, value: ir.Value) -> bool:
        """Returns whether onnxruntime would search behind the clamp after a product for the product's own Q.

        It does where the clamp has one reader. Where that is not a Q, or a Q does not make the clamp redundant, it
        leaves the product in float.
        """
        reader = sole_consumer(value)
        if reader is None or reader.domain != "" or reader.op_type not in ("Relu", "Clip"):
            return False
        clamped = reader.outputs[0]
        return reader.inputs[0] is value and (self._read_by_integers(clamped) or sole_consumer(clamped) is not None)

    def _read_by_integers(self, value: ir.Value) -> bool:
        return any(use.node in self.integer and self._reads_as_data(use.node, use.idx) for use in value.uses())

    def _read_by_integers_only(self, value: ir.Value) -> bool:
        return not value.is_graph_output() and all(
            use.node in self.integer and self._reads_as_data(use.node, use.idx) for use in value.uses()
        )

    # --- the plan

    def activations(self) -> dict[str, ActivationPlan]:
        """Plans every tensor that is an integer input or output of an integer node."""
        found: dict[ir.Value, None] = {}
        for node in self.graph:
            if node not in self.integer:
                continue
            for value in self._data_inputs(node):
                if value is not None and not is_constant(value):
                    found[value] = None
            for output in node.outputs:
                if self._emits(output) or OPERATORS[node.op_type].kind is Kind.MOVING:
                    found[self._final(output)] = None
        return {_value_name(value): self._activation(value) for value in found}

    def _activation(self, value: ir.Value) -> ActivationPlan:
        producer = self._head(value).producer()
        # An integer kernel returns integers or floats, not both: with any integer reader, all read the same Q/DQ pair.
        everyone = producer in self.integer and OPERATORS[producer.op_type].kind in (Kind.LAYER, Kind.MOVING)
        everyone = everyone or self._emits(value)
        readers = {
            _name(use.node)
            for use in value.uses()
            if use.node in self.integer and self._reads_as_data(use.node, use.idx)
        }
        return ActivationPlan(
            tensor=_value_name(value),
            grid=self.scheme.activations,
            source=_value_name(self._source(value)),
            readers=None if everyone else frozenset(readers),
        )

    def _source(self, value: ir.Value) -> ir.Value:
        """Goes back through nodes that only move values to their source."""
        producer = value.producer()
        while producer is not None and producer in self.integer and OPERATORS[producer.op_type].kind is Kind.MOVING:
            source = producer.inputs[0]
            if source is None:
                break
            value, producer = source, source.producer()
        return value

    def weights(self) -> dict[str, WeightPlan]:
        """Plans every constant that an integer node reads as data."""
        wishes: dict[str, list[tuple[str, Grid, Granularity]]] = {}
        for node in self.graph:
            if node not in self.integer:
                continue
            is_layer = OPERATORS[node.op_type].kind is Kind.LAYER
            for index, value in enumerate(self._data_inputs(node)):
                if value is None or not is_constant(value):
                    continue
                if is_layer and index == 1:
                    granularity = weight_granularity(node, per_channel=self.scheme.per_channel)
                    wish = (_name(node), self.scheme.weights_of(_name(node)), granularity)
                else:
                    # An element-wise kernel reads both operands in one type, and so does MatMul its first.
                    wish = (_name(node), self.scheme.activations, PerTensor())
                wishes.setdefault(_value_name(value), []).append(wish)
        plans = (agreed_weight(tensor, wanted, self.scheme) for tensor, wanted in wishes.items())
        initializers = self.graph.initializers
        return {plan.tensor: replace(plan, orders=orders_of(initializers[plan.tensor], plan.nodes)) for plan in plans}

    def biases(self) -> dict[str, BiasPlan]:
        """Plans the bias of every integer layer that has one."""
        plans = {}
        for node in self.graph:
            if node not in self.integer or OPERATORS[node.op_type].kind is not Kind.LAYER or len(node.inputs) < 3:
                continue
            activation, weight, bias = node.inputs[:3]
            if activation is not None and weight is not None and bias is not None:
                plans[_name(node)] = BiasPlan(
                    tensor=_value_name(bias),
                    node=_name(node),
                    activation=_value_name(activation),
                    weight=_value_name(weight),
                )
        return plans

    def lowest(self) -> dict[str, float]:
        """Returns the lowest useful value of every quantized tensor that has one."""
        found = {}
        for node in self.graph:
            for value in node.outputs if node in self.integer else ():
                low = activation_lower_bound(value)
                if low is not None:
                    found[_value_name(value)] = low
        return found

    def channel_axes(self) -> dict[str, int]:
        """Returns, for every tensor that meets the weights of an integer layer, the axis that they multiply."""
        axes: dict[str, int] = {}
        for node in self.graph:
            if node in self.integer and OPERATORS[node.op_type].kind is Kind.LAYER and is_constant(node.inputs[1]):
                source = node.inputs[0]
                if source is not None and not is_constant(source):
                    axes.setdefault(_value_name(source), 1 if node.op_type == "Conv" else -1)
        return axes

    def skipped(self) -> tuple[Skipped, ...]:
        """Records the reason of every node that stays float."""
        found = []
        for node in ir.traversal.RecursiveGraphIterator(self.graph):
            if node in self.integer or (node.op_type in ("Relu", "Clip") and self._is_absorbed_here(node)):
                continue
            if not any(output.dtype in FLOAT_TYPES for output in node.outputs):
                continue
            if node.graph is not self.graph:
                reason = "it is inside a branch or a loop"
            else:
                reason = self.reasons.get(node) or reason_without_kernel(node.op_type, node.domain)
            found.append(Skipped(node=_name(node), operator=node.op_type, reason=reason))
        return tuple(found)

    def _is_absorbed_here(self, node: ir.Node) -> bool:
        return self._absorbed(node) and self._emits(node.outputs[0])


def _name(node: ir.Node) -> str:
    return node.name or ""


def _value_name(value: ir.Value) -> str:
    return value.name or ""
