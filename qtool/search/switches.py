"""One float graph in which every activation's quantization can be switched on and off, and its grid moved, per run.

Opening a session for every candidate would cost more than running it. Here each tensor goes through an If: one branch
quantizes and dequantizes it with a scale and zero point that are inputs of the graph, the other passes it through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from calib.affine import AffineParams
from calib.specs import Array, Feed
from qtool.metrics.noise import NoiseMeter
from qtool.passes.names import Names
from qtool.placement.operators import OPERATORS
from qtool.plan import ActivationPlan, Plan
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session


class SwitchedModel:
    """Runs a float model with any part of its activations quantized.

    Attributes:
        sources: the tensors that have a switch, in graph order.
    """

    def __init__(self, session: Session, switches: Mapping[str, _Switch], feeds: Sequence[Feed]) -> None:
        """Runs the float model once on ``feeds``, batches that are held as long as this lives."""
        self._session = session
        self._switches = switches
        self._feeds = tuple(feeds)
        self.sources = tuple(switches)
        off = self._settings({})
        self._expected = tuple(session.run({**feed, **off}) for feed in self._feeds)

    def noise(self, params: Mapping[str, AffineParams]) -> float:
        """Returns the noise of the worst output over its signal when the tensors in ``params`` are quantized so.

        Infinite where an output is not finite any more.
        """
        settings = self._settings(params)
        meter = NoiseMeter()
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            meter.add(expected, self._session.run({**feed, **settings}))
        return meter.worst()

    def _settings(self, params: Mapping[str, AffineParams]) -> dict[str, Array]:
        settings: dict[str, Array] = {}
        for source, switch in self._switches.items():
            chosen = params.get(source)
            settings[switch.on] = np.asarray(chosen is not None)
            settings[switch.scale] = np.asarray(1.0 if chosen is None else chosen.scale, np.float32)
            settings[switch.zero_point] = np.asarray(0 if chosen is None else chosen.zero_point, switch.dtype)
        return settings


class _Switch:
    """Names the inputs that set one tensor's quantization."""

    def __init__(self, names: Names, source: str, dtype: np.dtype[np.generic]) -> None:
        self.on = names.free(f"{source}_is_quantized")
        self.scale = names.free(f"{source}_scale")
        self.zero_point = names.free(f"{source}_zero_point")
        self.dtype = dtype


@contextmanager
def switched(model: ir.Model, plan: Plan, feeds: Sequence[Feed], *, threads: int = 0) -> Iterator[SwitchedModel]:
    """Yields a runner for ``model``, a prepared float model, which is left as it is.

    Args:
        model: the float model.
        plan: its sources get a switch each.
        feeds: the batches to judge by.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the graph.
    """
    graph_model = model.clone()
    graph = graph_model.graph
    names = Names(graph)
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    switches = {}
    for activation in plan.activations.values():
        if activation.tensor == activation.source:
            switch = _Switch(names, activation.source, activation.grid.dtype)
            _insert(graph, values[activation.source], activation, switch, names)
            switches[activation.source] = switch
    with open_graph(graph_model, threads=threads) as session:
        yield SwitchedModel(session, switches, feeds)


def _insert(graph: ir.Graph, value: ir.Value, plan: ActivationPlan, switch: _Switch, names: Names) -> None:
    uses = [
        use
        for use in value.uses()
        if plan.readers is None or (use.node.name in plan.readers and _is_data(use.node, use.idx))
    ]
    on = _input(graph, switch.on, ir.DataType.BOOL)
    scale = _input(graph, switch.scale, ir.DataType.FLOAT)
    zero_point = _input(graph, switch.zero_point, ir.DataType.from_numpy(switch.dtype))
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point])
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point])
    passed = ir.node("Identity", [value])
    for node, what in ((quantize, "quantized"), (dequantize, "dequantized"), (passed, "passed")):
        node.outputs[0].name = names.free(f"{value.name}_{what}")
        node.name = names.free(f"{value.name}_{what}_node")
    branches = {
        "then_branch": ir.Graph([], [dequantize.outputs[0]], nodes=[quantize, dequantize], name="quantized"),
        "else_branch": ir.Graph([], [passed.outputs[0]], nodes=[passed], name="float"),
    }
    for branch in branches.values():
        branch.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    choice = ir.node("If", [on], branches, name=names.free(f"{value.name}_switch"))
    chosen = choice.outputs[0]
    chosen.name, chosen.shape, chosen.dtype = names.free(f"{value.name}_chosen"), value.shape, ir.DataType.FLOAT
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], choice)
    else:
        graph.insert_after(maker, choice)
    for use in uses:
        use.node.replace_input_with(use.idx, chosen)
    if plan.readers is None and value.is_graph_output():
        value.name, chosen.name = names.free(f"{value.name}_before"), value.name
        for position, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[position] = chosen


def _input(graph: ir.Graph, name: str, dtype: ir.DataType) -> ir.Value:
    value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def _is_data(node: ir.Node, index: int) -> bool:
    operator = OPERATORS.get(node.op_type)
    return operator is None or operator.data_inputs is None or index in operator.data_inputs
