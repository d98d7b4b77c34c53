"""Looks at outputs before the last gate: a Sigmoid or Softmax that is nearly 0 or 1 hides what went wrong before it.

A detector's map of probabilities is 0 nearly everywhere, and where it is not, it flips. Small changes of a layer show
in it by chance or not at all; in what the Sigmoid reads they add up as noise does. Ranges of the PP-OCR detector that
were chosen by two batches of probabilities gave 7.9 dB on other data; by what the Sigmoid reads, 12.9 dB.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qtool.graph.names import Names

_GATES = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax", "Tanh")
_PASSED = ("Identity", "QuantizeLinear", "DequantizeLinear", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


def with_logits(model: ir.Model) -> ir.Model:
    """Returns a copy of ``model`` that gives out what the gates at its end read; outputs without a gate stay.

    New outputs have the same names in the float model and in every quantized variant of it.
    """
    changed = model.clone()
    graph = changed.graph
    names = Names(graph)
    for position, output in enumerate(graph.outputs):
        gate = _gate(output)
        if gate is not None and (before := gate.inputs[0]) is not None and not before.is_graph_input():
            graph.outputs[position] = _copied(before, output, names, graph)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Is what an output comes from.

    Attributes:
        operator: such as Softmax.
        before: the output that gives out what it reads.
    """

    operator: str
    before: str


def with_logits_of_outputs(model: ir.Model) -> tuple[ir.Model, dict[str, Gate]]:
    """Returns a copy of ``model`` that gives out what the gates at its end read as well, and the gates by output."""
    changed = model.clone()
    graph = changed.graph
    names = Names(graph)
    gates = {}
    for output in tuple(graph.outputs):
        gate = _gate(output)
        if gate is not None and (before := gate.inputs[0]) is not None:
            copy = _copied(before, output, names, graph)
            graph.outputs.append(copy)
            gates[output.name or ""] = Gate(operator=gate.op_type, before=copy.name or "")
    return changed, gates


def _copied(before: ir.Value, output: ir.Value, names: Names, graph: ir.Graph) -> ir.Value:
    copy = ir.node("Identity", [before], name=names.for_node(f"{output.name}_before_gate_Identity"))
    copy.outputs[0].name = names.free(f"{output.name}_before_gate")
    copy.outputs[0].type = output.type
    graph.append(copy)
    return copy.outputs[0]


def _gate(output: ir.Value) -> ir.Node | None:
    value = output
    while (
        (producer := value.producer()) is not None and producer.domain == "" and producer.inputs and producer.inputs[0]
    ):
        value = producer.inputs[0]
        if producer.op_type in _GATES:
            return producer
        if producer.op_type not in _PASSED:
            return None
    return None
