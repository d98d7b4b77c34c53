"""Divides graphs of very many nodes: onnxruntime takes time proportional to the square of their number to open them.

With each node that it fuses, it looks for a free name among all nodes. Where a graph is divided it fuses nothing, so it
is divided where few tensors pass from one part to the next, and never between a DequantizeLinear and what reads it
unless that is everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.node_reads import read_by
from qtool.runtime.divided_graph import Part, divided, part_of

# Graphs up to this are opened as a whole.
_MOST_NODES = 12_000
# The nodes of a part, and from how many on it may end.
_PART_NODES, _LEAST_PART_NODES = 1000, 750
# So many tensors are better passed on than one that was just made float for a kernel that takes integers.
_DEQUANTIZED_COUNTS = 100


def is_long(model: ir.Model) -> bool:
    """Returns whether a graph has very many nodes, with tensors alone between them."""
    return len(model.graph) > _MOST_NODES and not any(
        isinstance(value.type, ir.SequenceType | ir.OptionalType) for node in model.graph for value in node.outputs
    )


def may_be_long(outline: onnx.ModelProto) -> bool:
    """Returns whether a model that was read without its weights has so many nodes."""
    return len(outline.graph.node) > _MOST_NODES


def short_parts(model: ir.Model) -> list[Part]:
    """Returns parts of a graph, of at most 1000 nodes each; nodes that nothing needs may be in none."""
    nodes = list(model.graph)
    return [part for part in divided(model, list(_groups(nodes, _passing(nodes)))) if part.given]


def typed_parts(model: ir.Model) -> list[ir.Model]:
    """Returns parts of a graph as models whose inputs have types; ``model`` alone where they cannot be inferred."""
    parts = short_parts(model)
    if not _have_types(parts):
        model = model.clone()
        infer_shapes(model)
        parts = short_parts(model)
    return [part_of(model, part) for part in parts] if _have_types(parts) else [model]


def _have_types(parts: Sequence[Part]) -> bool:
    return all(value.type is not None for part in parts for value in part.taken)


def _groups(nodes: Sequence[ir.Node], passing: Sequence[int]) -> Iterator[Sequence[ir.Node]]:
    start = 0
    while len(nodes) - start > _PART_NODES:
        ends = range(start + _PART_NODES, start + _LEAST_PART_NODES, -1)
        end = min(ends, key=passing.__getitem__)
        yield nodes[start:end]
        start = end
    yield nodes[start:]


def _passing(nodes: Sequence[ir.Node]) -> list[int]:
    """Returns how many tensors pass each place between nodes, (nodes + 1,), from the place before the first on."""
    made = {value: place for place, node in enumerate(nodes) for value in node.outputs}
    last_use: dict[ir.Value, int] = {}
    for place, node in enumerate(nodes):
        for value in read_by(node):
            if value in made:
                last_use[value] = place
    changes = [0] * (len(nodes) + 1)
    for value, place in last_use.items():
        producer = nodes[made[value]]
        weight = _DEQUANTIZED_COUNTS if producer.op_type == "DequantizeLinear" else 1
        changes[made[value] + 1] += weight
        changes[place + 1] -= weight
    passing, held = [], 0
    for change in changes:
        held += change
        passing.append(held)
    return passing
