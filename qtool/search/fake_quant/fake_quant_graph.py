"""Fake quantization in one float graph: each activation's quantizer is switched on and off, and set, by graph inputs.

Opening a session for every candidate would cost more than running it. Here each tensor goes through an If: one branch
quantizes and dequantizes it with a scale and zero point that are inputs of the graph, the other passes it through.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS
from qtool.calib.affine import AffineParams
from qtool.calib.specs import Array, Feed, batch_length
from qtool.graph.names import Names
from qtool.plan import ActivationPlan
from qtool.qdq.insert_qdq import CONTRIBUTED, conversion_domain
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session
from qtool.search.fake_quant.noise_measurement import NoiseAlone, NoiseMeasurement
from qtool.search.segmented_runner import SegmentedRunner

# The graph is cut into at most this many segments, with at least so many tensors in each.
_PLACES = 5
_FEWEST_SOURCES = 6


@dataclass(frozen=True, slots=True)
class Stretch:
    """The part of a graph that is run for a tensor: what stands behind one of some cuts, or everything.

    Attributes:
        cuts: the nodes that the graph is cut in front of, in graph order.
        number: of the cut, from 1; 0 for everything.
        sources: the tensors that are measured in it.
    """

    cuts: tuple[str, ...]
    number: int
    sources: tuple[str, ...]


class FakeQuantGraph:
    """Runs a float model with fake quantization of any subset of its activations.

    Attributes:
        sources: the tensors that have a quantizer, in graph order.
    """

    def __init__(
        self,
        model: ir.Model,
        session: Session,
        quantizers: Mapping[str, _Quantizer],
        feeds: Sequence[Feed],
        threads: int,
    ) -> None:
        """Runs the float model once on ``feeds``, batches that are kept in memory."""
        self._model = model
        self._quantizers = quantizers
        self._threads = threads
        self.sources = tuple(quantizers)
        self._off = self._settings({})
        self._feeds = tuple({**feed, **self._off} for feed in feeds)
        self._samples = tuple(map(batch_length, feeds))
        self._whole = NoiseMeasurement(session, self._feeds, self._samples)

    def noise(self, params: Mapping[str, AffineParams]) -> float:
        """Returns noise over signal of the worst output when the tensors in ``params`` are quantized with them.

        Infinite where an output is no longer finite.
        """
        return self._whole.noise(self._settings(params))

    def noises(
        self, choices: Sequence[Mapping[str, AffineParams]], feeds: Iterable[Feed], stop: Callable[[], bool]
    ) -> list[float] | None:
        """Returns the same for each of ``choices`` on other batches, of which one at a time is kept in memory.

        Infinite for those that fell behind the best one on some of them; it ends once all others did. None where there
        are none, or once ``stop``, which is called before every batch, returns True.
        """
        settings = [self._settings(params) for params in choices]
        return self._whole.beside(settings, ({**feed, **self._off} for feed in feeds), stop)

    def stretches(self, sources: Sequence[str]) -> dict[str, Stretch]:
        """Returns what to run for each of ``sources``, tensors that have a quantizer, in graph order.

        Everything before a tensor stays the same, so the graph is run from a few cuts on. Between two cuts only the
        tensors there go through their quantizers: an If copies its tensor, and keeps onnxruntime from fusing what is on
        both sides of it.
        """
        count = min(_PLACES, len(sources) // _FEWEST_SOURCES) or 1
        ends = [len(sources) * part // count for part in range(count + 1)]
        parts = [tuple(sources[first:end]) for first, end in pairwise(ends)]
        cuts = tuple(self._quantizers[part[0]].node for part in parts[1:])
        return {source: Stretch(cuts, number, part) for number, part in enumerate(parts) for source in part}

    @contextmanager
    def one_by_one(self) -> Iterator[Callable[[str, Stretch], NoiseAlone]]:
        """Yields what returns, for a tensor and its stretch, a function that measures it when it alone is quantized.

        The tensors that cross the last cut are held. Tensors in graph order take one run up to all cuts.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
        """
        with _Stretches(self._model, self._feeds, self._samples, self._threads, self._pass_through) as stretches:
            yield lambda source, stretch: NoiseAlone(source, stretches.measurement(stretch), self._settings)

    def _pass_through(self, sources: Collection[str]) -> None:
        """Lets the readers of ``sources`` read what comes out of their quantizers, and those of others their tensor."""
        for source, quantizer in self._quantizers.items():
            for node, index in quantizer.readers:
                node.replace_input_with(index, quantizer.chosen if source in sources else quantizer.value)

    def _settings(self, params: Mapping[str, AffineParams]) -> dict[str, Array]:
        settings: dict[str, Array] = {}
        for source, quantizer in self._quantizers.items():
            chosen = params.get(source)
            settings[quantizer.on] = np.asarray(chosen is not None)
            settings[quantizer.scale] = np.asarray(1.0 if chosen is None else chosen.scale, np.float32)
            settings[quantizer.zero_point] = np.asarray(0 if chosen is None else chosen.zero_point, quantizer.dtype)
        return settings


class _Stretches(ExitStack):
    """Holds the measurement of one stretch of a graph at a time."""

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, Array]],
        samples: Sequence[int],
        threads: int,
        pass_through: Callable[[Collection[str]], None],
    ) -> None:
        super().__init__()
        self._model = model
        self._feeds = feeds
        self._samples = samples
        self._threads = threads
        self._pass_through = pass_through
        self._current: tuple[Stretch, NoiseMeasurement, SegmentedRunner] | None = None

    def measurement(self, stretch: Stretch) -> NoiseMeasurement:
        """Returns the measurement of ``stretch``, with which any other one ends."""
        if self._current is not None and self._current[0] == stretch:
            return self._current[1]
        self.close()
        self._pass_through(())
        segments, reached = self._segments(stretch)
        for _ in range(reached, stretch.number):
            segments.advance()
        self._pass_through(stretch.sources)
        measurement = NoiseMeasurement(self.enter_context(segments.rest()), segments.held, self._samples)
        self._current = stretch, measurement, segments
        return measurement

    def _segments(self, stretch: Stretch) -> tuple[SegmentedRunner, int]:
        """Returns what runs the graph up to its cuts, and the cut that it has reached."""
        if self._current is not None:
            before, _, segments = self._current
            if before.cuts == stretch.cuts and before.number <= stretch.number:
                return segments, before.number
        return SegmentedRunner(self._model, stretch.cuts, self._feeds, threads=self._threads), 0


class _Quantizer:
    """The quantizer of one tensor: the names of the inputs that set it, and of its node.

    Attributes:
        value: the tensor.
        chosen: the same where the quantizer is off.
        readers: the nodes that read it, and the place of the input.
    """

    def __init__(self, names: Names, value: ir.Value, dtype: np.dtype[np.generic]) -> None:
        self.on = names.free(f"{value.name}_is_quantized")
        self.scale = names.free(f"{value.name}_scale")
        self.zero_point = names.free(f"{value.name}_zero_point")
        self.node = names.for_node(f"{value.name}_fake_quant")
        self.dtype = dtype
        self.value = self.chosen = value
        self.readers: tuple[tuple[ir.Node, int], ...] = ()


@contextmanager
def open_fake_quant_graph(
    model: ir.Model, activations: Collection[ActivationPlan], feeds: Sequence[Feed], *, threads: int = 0
) -> Iterator[FakeQuantGraph]:
    """Yields a fake-quantized runner of ``model``, a prepared float model, which is not modified.

    Args:
        model: the float model.
        activations: the sources among them get a quantizer each.
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
    for activation in activations:
        if activation.tensor == activation.source:
            quantizer = _Quantizer(names, values[activation.source], activation.grid.dtype)
            domain = conversion_domain(quantizer.dtype, model.opset_imports.get("", 1))
            _insert(graph, activation, quantizer, names, domain)
            quantizers[activation.source] = quantizer
    graph_model.opset_imports.setdefault(CONTRIBUTED, 1)
    place = {node.name: number for number, node in enumerate(graph)}
    in_order = dict(sorted(quantizers.items(), key=lambda item: place[item[1].node]))
    with open_graph(graph_model, threads=threads) as session:
        yield FakeQuantGraph(graph_model, session, in_order, feeds, threads)


def _insert(graph: ir.Graph, plan: ActivationPlan, quantizer: _Quantizer, names: Names, domain: str) -> None:
    value = quantizer.value
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
    quantizer.chosen, quantizer.readers = chosen, tuple((use.node, use.idx) for use in uses)
    for node, index in quantizer.readers:
        node.replace_input_with(index, chosen)
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
