"""Removes nodes that make maps while passes change a graph, since onnx-ir has no map types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

_ML_DOMAIN = "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class MapOutput:
    """An output that ZipMap makes of scores.

    Attributes:
        place: its index among the graph's outputs.
        node: the node, without its input.
    """

    place: int
    node: ir.Node


def take_maps_aside(model: ir.Model) -> tuple[MapOutput, ...]:
    """Removes every ZipMap that makes an output, which its scores become; returns what ``put_maps_back`` needs."""
    aside = []
    for place, value in enumerate(list(model.graph.outputs)):
        node = value.producer()
        if node is None or node.op_type != "ZipMap" or node.domain != _ML_DOMAIN or value.uses():
            continue
        scores = node.inputs[0]
        if scores is None or model.graph.outputs.count(value) > 1:
            continue
        model.graph.outputs[place] = scores
        model.graph.remove(node, safe=True)
        aside.append(MapOutput(place, node))
    return tuple(aside)


def put_maps_back(model: ir.Model, aside: Sequence[MapOutput]) -> None:
    """Puts each ZipMap back behind the scores of its output."""
    for one in aside:
        made = one.node.outputs[0]
        node = ir.node(
            one.node.op_type,
            [model.graph.outputs[one.place]],
            attributes=one.node.attributes,
            domain=one.node.domain,
            name=one.node.name,
        )
        node.outputs[0].name = made.name
        model.graph.append(node)
        model.graph.outputs[one.place] = node.outputs[0]
    if aside:
        model.opset_imports.setdefault(_ML_DOMAIN, 1)
