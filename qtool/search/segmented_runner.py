"""Runs a graph segment by segment: tensors that cross a cut are held, and the graph after it may still change.

An algorithm that changes one layer after another, and reads the next one's inputs each time, would otherwise have to
open and run the whole graph once per layer. In segments, the graph runs once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir

from qtool.backends.onnxruntime_cpu.keep_float import KeepFloatLayers
from qtool.calib.specs import Array, Feed
from qtool.graph.constants import is_constant
from qtool.graph.node_reads import read_by
from qtool.runtime.graphs import open_graph
from qtool.runtime.session import Level, Session


class SegmentedRunner:
    """Runs one graph up to a moving cut.

    Attributes:
        held: by batch, the tensors that nodes after the current cut read.
    """

    def __init__(
        self, model: ir.Model, cuts: Sequence[str], feeds: Iterable[Feed], *, threads: int = 0, level: Level = "all"
    ) -> None:
        """Starts before the first node.

        Args:
            model: the graph; the caller may change constants that only nodes after the current cut read.
            cuts: names of the nodes to stop in front of, in graph order.
            feeds: the batches; they are held, and so are the tensors that cross a cut.
            threads: threads inside an operator; 0 is one per core.
            level: how far onnxruntime may optimize each segment.
        """
        self._model = model
        self._threads = threads
        self._level: Level = level
        self._segments = _cut(model.graph, cuts)
        self._inputs = [_read_from_outside(nodes, model.graph) for nodes in self._segments]
        self._last_use = {value: number for number, values in enumerate(self._inputs) for value in values}
        self._reached = 0
        self.held: list[dict[str, Array]] = [dict(feed) for feed in feeds]

    @property
    def held_bytes(self) -> int:
        """Memory of the held tensors, in bytes."""
        return sum(array.nbytes for batch in self.held for array in batch.values())

    def advance(self) -> None:
        """Runs up to the next cut.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
        """
        position = self._reached
        self._reached += 1
        made = (value for node in self._segments[position] for value in node.outputs)
        wanted = [value for value in made if self._last_use.get(value, -1) > position]
        if wanted:
            self._run(self._inputs[position], wanted)
        needed = {value.name for value, last in self._last_use.items() if last > position}
        self.held = [{name: array for name, array in batch.items() if name in needed} for batch in self.held]

    @contextmanager
    def rest(self) -> Iterator[Session]:
        """Yields a session on everything after the current cut, with the graph's outputs that are computed there.

        Its inputs are in ``held``.

        Raises:
            RuntimeRefusedError: onnxruntime does not load it.
        """
        nodes = [node for segment in self._segments[self._reached :] for node in segment]
        made = {value for node in nodes for value in node.outputs}
        outputs = [value for value in self._model.graph.outputs if value in made]
        part = self._part(_read_from_outside(nodes, self._model.graph), outputs)
        with open_graph(part, threads=self._threads, level=self._level) as session:
            yield session

    def _run(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
        part = self._part(inputs, outputs)
        names = [value.name or "" for value in part.graph.inputs]
        with open_graph(part, threads=self._threads, level=self._level) as session:
            for batch in self.held:
                batch.update(session.run({name: batch[name] for name in names}))

    def _part(self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> ir.Model:
        return _extracted(self._model, inputs, outputs, self.held[0])


def part_behind(model: ir.Model, held: Feed) -> ir.Model | None:
    """Returns the part of ``model``, which is not modified, that computes its outputs from the tensors of ``held``.

    Only outputs that depend on them are among those of the part. None where they are not enough.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    inputs = [values[name] for name in held if name in values]
    reached = set(inputs)
    for node in model.graph:
        if any(value in reached for value in read_by(node)):
            reached.update(node.outputs)
    outputs = [value for value in model.graph.outputs if value in reached and value not in inputs]
    if not outputs:
        return None
    try:
        return _extracted(model, inputs, outputs, held)
    except ValueError:
        return None


def _extracted(
    model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], held: Mapping[str, Array]
) -> ir.Model:
    """Returns the part of ``model`` between tensors, of which ``held`` has the inputs for one batch."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    part = ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values()))
    for value in graph.inputs:
        array = held[value.name or ""]
        value.dtype = ir.DataType.from_numpy(array.dtype)
        value.shape = ir.Shape([None] * array.ndim)
    # The other readers of a float layer's output may be in another part.
    KeepFloatLayers()(part)
    return part


def _cut(graph: ir.Graph, cuts: Sequence[str]) -> list[list[ir.Node]]:
    """Returns the nodes between the cuts, without those that make constants, which are copied to their readers."""
    wanted = set(cuts)
    segments: list[list[ir.Node]] = [[]]
    for node in graph:
        if node.name in wanted:
            segments.append([])
        if not _makes_constant(node):
            segments[-1].append(node)
    return segments


def _makes_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" or (
        node.op_type == "DequantizeLinear" and all(is_constant(value) for value in node.inputs)
    )


def _read_from_outside(nodes: Sequence[ir.Node], graph: ir.Graph) -> tuple[ir.Value, ...]:
    """Returns the tensors of ``graph`` that ``nodes`` read and none of them makes, in the order of their first use."""
    made = {value for node in nodes for value in node.outputs}
    found: dict[ir.Value, None] = {}
    for node in nodes:
        for value in read_by(node):
            producer = value.producer()
            if value in made or value.graph is not graph or is_constant(value):
                continue
            if producer is None or not _makes_constant(producer):
                found[value] = None
    return tuple(found)
