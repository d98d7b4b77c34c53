"""One float graph in which every activation's quantization can be switched on and off, and its grid moved, per run.

Opening a session for every candidate would cost more than running it. Here each tensor goes through an If: one branch
quantizes and dequantizes it with a scale and zero point that are inputs of the graph, the other passes it through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed
from qtool.graph.names import Names
from qtool.metrics.noise import NoiseMeter
from qtool.plan import ActivationPlan, Plan
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session
from qtool.search.segmented_runner import SegmentedRunner

# From so many places on the graph is run for single tensors, as long as there are so many tensors between two.
_PLACES = 5
_FEWEST_SOURCES = 6


class FakeQuantGraph:
    """Runs a float model with any part of its activations quantized.

    Attributes:
        sources: the tensors that have a switch, in graph order.
    """

    def __init__(
        self, model: ir.Model, session: Session, switches: Mapping[str, _Switch], feeds: Sequence[Feed], threads: int
    ) -> None:
        """Runs the float model once on ``feeds``, batches that are held as long as this lives."""
        self._model = model
        self._switches = switches
        self._threads = threads
        self.sources = tuple(switches)
        off = self._settings({})
        self._feeds = tuple({**feed, **off} for feed in feeds)
        self._whole = _Judged(session, self._feeds)

    def noise(self, params: Mapping[str, AffineParams]) -> float:
        """Returns the noise of the worst output over its signal when the tensors in ``params`` are quantized so.

        Infinite where an output is not finite any more.
        """
        return self._whole.noise(self._settings(params))

    def one_by_one(self, sources: Sequence[str]) -> Iterator[tuple[str, Callable[[AffineParams], float]]]:
        """Yields each of ``sources`` with what returns its noise when it is quantized and all the others are float.

        What comes before a tensor is the same whatever becomes of it: the graph is run from a few places on, and what
        crosses them is held.

        Args:
            sources: tensors that have a switch, in graph order.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
        """
        count = min(_PLACES, len(sources) // _FEWEST_SOURCES) or 1
        parts = [sources[len(sources) * part // count : len(sources) * (part + 1) // count] for part in range(count)]
        for source in parts[0]:
            yield source, partial(self._alone, self._whole, source)
        cuts = [self._switches[part[0]].node for part in parts[1:]]
        stretches = SegmentedRunner(self._model, cuts, self._feeds, threads=self._threads)
        for part in parts[1:]:
            stretches.advance()
            with stretches.rest() as session:
                judged = _Judged(session, stretches.held)
                for source in part:
                    yield source, partial(self._alone, judged, source)

    def _alone(self, judged: _Judged, source: str, params: AffineParams) -> float:
        return judged.noise(self._settings({source: params}))

    def _settings(self, params: Mapping[str, AffineParams]) -> dict[str, Array]:
        settings: dict[str, Array] = {}
        for source, switch in self._switches.items():
            chosen = params.get(source)
            settings[switch.on] = np.asarray(chosen is not None)
            settings[switch.scale] = np.asarray(1.0 if chosen is None else chosen.scale, np.float32)
            settings[switch.zero_point] = np.asarray(0 if chosen is None else chosen.zero_point, switch.dtype)
        return settings


class _Judged:
    """Compares runs of a graph, or of its end, with the run in which everything is float."""

    def __init__(self, session: Session, feeds: Sequence[Feed]) -> None:
        self._session = session
        self._wanted = {spec.name for spec in session.inputs}
        self._feeds = [{name: feed[name] for name in self._wanted} for feed in feeds]
        self._expected = [session.run(feed) for feed in self._feeds]

    def noise(self, settings: Mapping[str, Array]) -> float:
        wanted = {name: value for name, value in settings.items() if name in self._wanted}
        meter = NoiseMeter()
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            meter.add(expected, self._session.run({**feed, **wanted}))
        return meter.worst()


class _Switch:
    """Names the inputs that set one tensor's quantization, and the node that reads them."""

    def __init__(self, names: Names, source: str, dtype: np.dtype[np.generic]) -> None:
        self.on = names.free(f"{source}_is_quantized")
        self.scale = names.free(f"{source}_scale")
        self.zero_point = names.free(f"{source}_zero_point")
        self.node = names.for_node(f"{source}_switch")
        self.dtype = dtype


@contextmanager
def switched(model: ir.Model, plan: Plan, feeds: Sequence[Feed], *, threads: int = 0) -> Iterator[FakeQuantGraph]:
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
    place = {node.name: number for number, node in enumerate(graph)}
    in_order = dict(sorted(switches.items(), key=lambda item: place[item[1].node]))
    with open_graph(graph_model, threads=threads) as session:
        yield FakeQuantGraph(graph_model, session, in_order, feeds, threads)


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
        node.name = names.for_node(f"{value.name}_{what}_node")
    branches = {
        "then_branch": ir.Graph([], [dequantize.outputs[0]], nodes=[quantize, dequantize], name="quantized"),
        "else_branch": ir.Graph([], [passed.outputs[0]], nodes=[passed], name="float"),
    }
    for branch in branches.values():
        branch.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    choice = ir.node("If", [on], branches, name=switch.node)
    chosen = choice.outputs[0]
    chosen.name, chosen.shape, chosen.dtype = names.free(f"{value.name}_chosen"), value.shape, ir.DataType.FLOAT
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], choice)
    else:
        graph.insert_after(producer, choice)
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
