"""Counts what a layer computes, which is about what integers save time on."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from calib.specs import Feed
from qtool.passes.constants import integer_attribute
from qtool.runtime.graphs import open_graph, watching
from qtool.runtime.session import Watcher
from qtool.search.node_groups import NodeGroup


def multiply_add_shares(
    model: ir.Model, groups: Sequence[NodeGroup], feed: Feed, *, threads: int = 0
) -> dict[str, float]:
    """Returns each layer's part, 0 to 1, of the multiply-adds of all ``groups`` for one batch.

    Unlike measured times they are the same in every run and on every machine.

    Args:
        model: the prepared float model, which is left as it is.
        groups: the layers.
        feed: what to run the model on, for the sizes of its tensors.
        threads: threads inside an operator; 0 is one a core.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the model.
    """
    nodes = {node.name: node for node in model.graph}
    layers = [nodes[group.layer] for group in groups]
    watched = dict.fromkeys(value.name or "" for node in layers for value in (node.inputs[0], node.outputs[0]) if value)
    with watching(model, tuple(watched)) as graph, open_graph(graph, threads=threads) as session:
        shapes = {name: value.shape for name, value in Watcher(session).run(feed).items()}
    counts = {node.name or "": _multiply_adds(node, shapes) for node in layers}
    total = max(sum(counts.values()), 1)
    return {name: count / total for name, count in counts.items()}


def _multiply_adds(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> int:
    source, result = node.inputs[0], node.outputs[0]
    given = shapes.get((source.name or "") if source else "", ())
    made = _size(shapes.get(result.name or "", ()))
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type in ("Conv", "ConvTranspose"):
        kernel = [dim for dim in (weight.shape or ()) if isinstance(dim, int)] if weight is not None else []
        # A Conv sums over its kernel for each output, a ConvTranspose spreads each input over it.
        return (made if node.op_type == "Conv" else _size(given)) * _size(tuple(kernel[1:]))
    if not given:
        return made
    inner = given[0] if node.op_type == "Gemm" and integer_attribute(node, "transA", 0) else given[-1]
    return made * inner


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for dim in shape:
        size *= dim
    return size
