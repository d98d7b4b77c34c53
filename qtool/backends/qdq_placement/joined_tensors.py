"""Finds tensors that concatenate values of different magnitude, for which one scale is too coarse.

Detectors often join boxes in pixels and scores from 0 to 1: with 255 steps for 640 pixels every score is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.statistics import TensorStatistics
from qtool.graph.constants import constant_array, is_constant

# Fewer of 255 steps leave less than 4 bits for a part.
_FEWEST_STEPS = 16.0
_STEPS = 255.0
_ELEMENTWISE = ("Mul", "Add", "Sub", "Div")


def unlike_parts(graph: ir.Graph, statistics: Mapping[str, TensorStatistics]) -> dict[str, str]:
    """Returns the tensors that join parts of different magnitude on the path to an output, each with a reason.

    Inputs of layers are left out: their weights may enlarge small values.

    Args:
        graph: the float graph.
        statistics: of its tensors, as far as they were observed.
    """
    found: dict[str, str] = {}
    for node in graph:
        if node.op_type != "Concat" or node.domain != "":
            continue
        parts = {value.name or "": _reach(value, statistics) for value in node.inputs if value is not None}
        known = {name: reach for name, reach in parts.items() if reach}
        if not known:
            continue
        smallest, largest = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[smallest] * _STEPS >= known[largest] * _FEWEST_STEPS:
            continue
        for value in _joined(node.outputs[0]):
            found[value.name or ""] = (
                f"joins '{smallest}', up to {known[smallest]:.3g}, and '{largest}', up to {known[largest]:.3g}: "
                f"one grid has no steps for both"
            )
    return found


def _reach(value: ir.Value, statistics: Mapping[str, TensorStatistics]) -> float:
    """Returns the largest magnitude of ``value``; 0 where it is unknown."""
    array = constant_array(value)
    if array is not None:
        return float(np.abs(array).max(initial=0.0)) if array.dtype.kind == "f" else 0.0
    source: ir.Value | None = value
    while source is not None:
        seen = statistics.get(source.name or "")
        if seen is not None:
            return max(-seen.minimum, seen.maximum) if seen.batches else 0.0
        producer = source.producer()
        source = producer.inputs[0] if producer is not None and _is_moved(producer) else None
    return 0.0


def _joined(value: ir.Value) -> list[ir.Value]:
    """Returns ``value`` and its moved forms up to an output; nothing where it does not reach one that way."""
    reached, pending, ends = [value], [value], False
    while pending:
        current = pending.pop()
        ends = ends or current.is_graph_output()
        for use in current.uses():
            node = use.node
            others = [operand for operand in node.inputs if operand is not None and operand is not current]
            scaled = node.op_type in _ELEMENTWISE and all(is_constant(operand) for operand in others)
            if node.domain == "" and ((_is_moved(node) and use.idx == 0) or scaled):
                reached += node.outputs
                pending += node.outputs
    return reached if ends else []


def _is_moved(node: ir.Node) -> bool:
    operator = OPERATORS.get(node.op_type) if node.domain == "" else None
    return operator is not None and operator.kind is Kind.MOVING
