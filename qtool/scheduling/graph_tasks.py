"""Sees the nodes of a graph as tasks, and puts them into another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qtool.analysis.lifetimes import memory_use
from qtool.graph.node_reads import graphs_in, read_by
from qtool.graph.tensor_sizes import TensorSize
from qtool.scheduling.best_order import best_order
from qtool.scheduling.tasks import Task, Tasks, peak_bytes

# A better order can make room for another one; each round needs less memory than the one before.
_MOST_ROUNDS = 4


def tasks_of(graph: ir.Graph, sizes: Mapping[str, TensorSize]) -> Tasks:
    """Returns one task a node, whose tensors are those of ``memory_use``; constants have no size."""
    counted = {entry.tensor: entry.nbytes for entry in memory_use(graph, sizes).lifetimes}
    numbers: dict[ir.Value, int] = {}
    for value in graph.inputs:
        if not value.is_initializer():
            numbers[value] = len(numbers)
    tasks = []
    for node in graph:
        made = [value for value in node.outputs if value.name]
        reads = dict.fromkeys(numbers[value] for value in read_by(node) if value in numbers)
        numbers |= {value: len(numbers) + place for place, value in enumerate(made)}
        extra = max((memory_use(inner, sizes).peak_bytes for inner in graphs_in(node)), default=0)
        tasks.append(Task(reads=tuple(reads), makes=tuple(numbers[value] for value in made), extra_bytes=extra))
    return Tasks(
        tasks=tuple(tasks),
        nbytes=tuple(counted.get(value.name or "", 0) for value in numbers),
        kept=frozenset(numbers[value] for value in graph.outputs if value in numbers),
    )


def reorder(graph: ir.Graph, sizes: Mapping[str, TensorSize]) -> bool:
    """Puts the nodes into the order with the lowest peak of live activations; returns whether one was lower."""
    changed = False
    for _ in range(_MOST_ROUNDS):
        tasks = tasks_of(graph, sizes)
        order = best_order(tasks)
        if order == tuple(range(len(order))):
            break
        _put_in_order(graph, order)
        changed = True
    return changed


def lowest_peak(graph: ir.Graph, sizes: Mapping[str, TensorSize]) -> int:
    """Returns the peak of live activations in the best order that is found, in bytes; the graph stays as it is."""
    tasks = tasks_of(graph, sizes)
    return peak_bytes(tasks, best_order(tasks))


def _put_in_order(graph: ir.Graph, order: Sequence[int]) -> None:
    nodes = list(graph)
    graph.remove(nodes)
    graph.extend([nodes[place] for place in order])
