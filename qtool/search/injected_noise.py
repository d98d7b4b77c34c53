"""Adds errors to the outputs of single layers in one float graph, and measures what reaches the model's outputs.

What rounding a layer's inputs does is known in numbers: the rounding error times the weights. Fed into a float session
as an input of its own, it shows in the outputs without a quantized model, let alone a session, for every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.graph.names import Names
from qtool.metrics.noise import NoiseMeter
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Session

_NO_ERROR = np.zeros((), np.float32)


class InjectedNoise:
    """Runs a float model with errors added to the outputs of layers."""

    def __init__(
        self, session: Session, outputs: Sequence[str], reads: Mapping[str, str], errors: Mapping[str, str], feed: Feed
    ) -> None:
        """Runs the float model once on ``feed``.

        Args:
            session: on a graph made by ``open_injected_noise``.
            outputs: the outputs to look at.
            reads: by layer, the tensor that it reads.
            errors: by layer, the input that is added to its output.
            feed: one batch.
        """
        self._session = session
        self._outputs = tuple(outputs)
        self._reads = reads
        self._errors = errors
        self._feed = {**feed, **dict.fromkeys(errors.values(), _NO_ERROR)}
        self._expected = session.run(self._feed, self._outputs)

    def inputs(self, layers: Sequence[str]) -> dict[str, Array]:
        """Returns what ``layers`` read, by layer; float32, (..., channels)."""
        tensors = {self._reads[layer] for layer in layers} - set(self._feed)
        found = {**self._feed, **self._session.run(self._feed, sorted(tensors))}
        return {layer: found[self._reads[layer]] for layer in layers}

    def noise(self, errors: Mapping[str, Array]) -> float:
        """Returns noise over signal of the worst output with ``errors`` added, by layer; infinite where not finite."""
        given = {self._errors[layer]: error for layer, error in errors.items()}
        meter = NoiseMeter()
        meter.add(self._expected, self._session.run({**self._feed, **given}, self._outputs))
        return meter.worst()


@contextmanager
def open_injected_noise(
    model: ir.Model, layers: Sequence[str], feed: Feed, *, threads: int = 0
) -> Iterator[InjectedNoise]:
    """Yields ``model``, a float graph that is not modified, with an error to add to each of ``layers``.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the graph.
    """
    changed = model.clone()
    graph = changed.graph
    names = Names(graph)
    nodes = {node.name: node for node in graph}
    outputs = [value.name or "" for value in graph.outputs]
    reads: dict[str, str] = {}
    errors: dict[str, str] = {}
    watched = {value.name for value in (*graph.outputs, *graph.inputs)}
    for layer in layers:
        node = nodes[layer]
        source = node.inputs[0]
        if source is None:
            raise AssertionError(f"{layer} reads nothing")
        reads[layer] = source.name or ""
        if source.name not in watched:
            watched.add(source.name)
            graph.outputs.append(source)
        errors[layer] = _insert(graph, node, names)
    # A layer's output may be what another one reads: the sum has its name then.
    with open_graph(changed, threads=threads, prepacks=False) as session:
        yield InjectedNoise(session, outputs, reads, errors, feed)


def _insert(graph: ir.Graph, node: ir.Node, names: Names) -> str:
    value = node.outputs[0]
    error = ir.Value(name=names.free(f"{value.name}_error"), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(error)
    total = ir.node("Add", [value, error], name=names.for_node(f"{value.name}_error_Add"))
    made = total.outputs[0]
    made.shape, made.type = value.shape, value.type
    for use in tuple(value.uses()):
        if use.node is not total:
            use.node.replace_input_with(use.idx, made)
    for position, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[position] = made
    made.name, value.name = value.name, names.free(f"{value.name}_exact")
    graph.insert_after(node, total)
    return error.name or ""
