"""Fake quantization in one float graph: each activation's quantizer is switched on and off, and set, by graph inputs.

Opening a session for every candidate would cost more than running it. Here each tensor goes through an If: one branch
quantizes and dequantizes it with a scale and zero point that are inputs of the graph, the other passes it through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed
from qtool.graph.decoder_caches import filled_by
from qtool.graph.names import Names
from qtool.metrics.noise import NoiseMeter
from qtool.plan import ActivationPlan, Plan
from qtool.qdq.insert_qdq import CONTRIBUTED, conversion_domain
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session
from qtool.search.segmented_runner import SegmentedRunner

# The graph is cut into at most this many segments, with at least so many tensors in each.
_PLACES = 5
_FEWEST_SOURCES = 6


class NoiseAlone(Protocol):
    """Measures one tensor's parameters."""

    def __call__(self, params: AffineParams, enough: float = math.inf) -> float:
        """Returns noise over signal of the worst output; infinite as soon as it is known to exceed ``enough``."""
        ...


class FakeQuantGraph:
    """Runs a float model with fake quantization of any subset of its activations.

    Attributes:
        sources: the tensors that have a quantizer, in graph order.
    """

    def __init__(
        self,
        model: ir.Model,
        session: Session,
        quantizers: Mapping[str, _QuantizerInputs],
        feeds: Sequence[Feed],
        threads: int,
    ) -> None:
        """Runs the float model once on ``feeds``, batches that are kept in memory."""
        self._model = model
        self._quantizers = quantizers
        self._threads = threads
        self.sources = tuple(quantizers)
        off = self._settings({})
        self._feeds = tuple({**feed, **off} for feed in feeds)
        self._whole = _NoiseMeasurement(session, self._feeds)

    def noise(self, params: Mapping[str, AffineParams]) -> float:
        """Returns noise over signal of the worst output when the tensors in ``params`` are quantized with them.

        Infinite where an output is no longer finite.
        """
        return self._whole.noise(self._settings(params))

    def one_by_one(self, sources: Sequence[str]) -> Iterator[tuple[str, NoiseAlone]]:
        """Yields each of ``sources`` with a function that returns its noise when it alone is quantized.

        Everything before a tensor stays the same, so the graph is run from a few cuts on, and the tensors that cross
        them are held.

        Args:
            sources: tensors that have a quantizer, in graph order.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
        """
        count = min(_PLACES, len(sources) // _FEWEST_SOURCES) or 1
        parts = [sources[len(sources) * part // count : len(sources) * (part + 1) // count] for part in range(count)]
        for source in parts[0]:
            yield source, partial(self._alone, self._whole, source)
        cuts = [self._quantizers[part[0]].node for part in parts[1:]]
        segments = SegmentedRunner(self._model, cuts, self._feeds, threads=self._threads)
        for part in parts[1:]:
            segments.advance()
            with segments.rest() as session:
                measurement = _NoiseMeasurement(session, segments.held)
                for source in part:
                    yield source, partial(self._alone, measurement, source)

    def _alone(
        self, measurement: _NoiseMeasurement, source: str, params: AffineParams, enough: float = math.inf
    ) -> float:
        return measurement.noise(self._settings({source: params}), enough)

    def _settings(self, params: Mapping[str, AffineParams]) -> dict[str, Array]:
        settings: dict[str, Array] = {}
        for source, quantizer in self._quantizers.items():
            chosen = params.get(source)
            settings[quantizer.on] = np.asarray(chosen is not None)
            settings[quantizer.scale] = np.asarray(1.0 if chosen is None else chosen.scale, np.float32)
            settings[quantizer.zero_point] = np.asarray(0 if chosen is None else chosen.zero_point, quantizer.dtype)
        return settings


class _NoiseMeasurement:
    """Compares runs of a graph, or of its last part, with the run in which everything is float."""

    def __init__(self, session: Session, feeds: Sequence[Feed]) -> None:
        self._session = session
        self._wanted = {spec.name for spec in session.inputs}
        self._feeds = [{name: feed[name] for name in self._wanted} for feed in feeds]
        names = [spec.name for spec in session.outputs]
        caches = {filled_by(spec.name, names) for spec in session.inputs}
        self._outputs = [name for name in names if name not in caches]
        self._expected = [session.run(feed, self._outputs) for feed in self._feeds]
        whole = NoiseMeter()
        for expected in self._expected:
            whole.add(expected, expected)
        self._signals = whole.signals

    def noise(self, settings: Mapping[str, Array], enough: float = math.inf) -> float:
        """Returns noise over signal of the worst output; infinite as soon as it is known to exceed ``enough``."""
        wanted = {name: value for name, value in settings.items() if name in self._wanted}
        meter = NoiseMeter()
        for feed, expected in zip(self._feeds, self._expected, strict=True):
            meter.add(expected, self._session.run({**feed, **wanted}, self._outputs))
            if meter.least(self._signals) > enough:
                return math.inf
        return meter.worst()


class _QuantizerInputs:
    """Names of the inputs that set one tensor's quantizer, and of the node that reads them."""

    def __init__(self, names: Names, source: str, dtype: np.dtype[np.generic]) -> None:
        self.on = names.free(f"{source}_is_quantized")
        self.scale = names.free(f"{source}_scale")
        self.zero_point = names.free(f"{source}_zero_point")
        self.node = names.for_node(f"{source}_fake_quant")
        self.dtype = dtype


@contextmanager
def open_fake_quant_graph(
    model: ir.Model, plan: Plan, feeds: Sequence[Feed], *, threads: int = 0
) -> Iterator[FakeQuantGraph]:
    """Yields a fake-quantized runner of ``model``, a prepared float model, which is not modified.

    Args:
        model: the float model.
        plan: its sources get a quantizer each.
        feeds: the batches to evaluate on.
        threads: threads inside an operator; 0 is one per core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the graph.
    """
    graph_model = model.clone()
    graph = graph_model.graph
    names = Names(graph)
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    quantizers = {}
    for activation in plan.activations.values():
        if activation.tensor == activation.source:
            quantizer = _QuantizerInputs(names, activation.source, activation.grid.dtype)
            domain = conversion_domain(quantizer.dtype, model.opset_imports.get("", 1))
            _insert(graph, values[activation.source], activation, quantizer, names, domain)
            quantizers[activation.source] = quantizer
    graph_model.opset_imports.setdefault(CONTRIBUTED, 1)
    place = {node.name: number for number, node in enumerate(graph)}
    in_order = dict(sorted(quantizers.items(), key=lambda item: place[item[1].node]))
    with open_graph(graph_model, threads=threads) as session:
        yield FakeQuantGraph(graph_model, session, in_order, feeds, threads)


def _insert(
    graph: ir.Graph, value: ir.Value, plan: ActivationPlan, quantizer: _QuantizerInputs, names: Names, domain: str
) -> None:
    uses = [
        use
        for use in value.uses()
        if plan.readers is None or (use.node.name in plan.readers and _is_data(use.node, use.idx))
    ]
    on = _input(graph, quantizer.on, ir.DataType.BOOL)
    scale = _input(graph, quantizer.scale, ir.DataType.FLOAT)
    zero_point = _input(graph, quantizer.zero_point, ir.DataType.from_numpy(quantizer.dtype))
    quantize = ir.node("QuantizeLinear", [value, scale, zero_point], domain=domain)
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero_point], domain=domain)
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
    choice = ir.node("If", [on], branches, name=quantizer.node)
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
