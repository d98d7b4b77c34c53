"""Finds attention masks by their readers: an Add or Where before a Softmax.

A mask of -1e4 or -100 is not recognizable by its magnitude, and leaves the scores that it is added to almost no steps
of a grid. It is recognized by its path to a Softmax, and by not depending on a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from qtool.backends.qdq_placement.operators import OPERATORS, Kind
from qtool.calib.statistics import TensorStatistics
from qtool.graph.constants import constant_array

# exp(-30) is 1e-13: scores that much below the others have no effect in a Softmax.
_OUT_OF_REACH = 30.0
_GATES = ("Softmax", "LogSoftmax")


def masked_scores(graph: ir.Graph, statistics: Mapping[str, TensorStatistics]) -> dict[str, str]:
    """Returns the masks and the tensors between them and their Softmax, each with a reason.

    Args:
        graph: the float graph.
        statistics: of its tensors, as far as they were observed.
    """
    search = _Search(statistics)
    for node in graph:
        if node.op_type in _GATES and node.domain == "" and node.inputs and node.inputs[0] is not None:
            search.back_from(node.inputs[0])
    return search.found


class _Search:
    """Searches backwards from Softmax to the masks."""

    def __init__(self, statistics: Mapping[str, TensorStatistics]) -> None:
        self._statistics = statistics
        self.found: dict[str, str] = {}

    def back_from(self, scores: ir.Value) -> None:
        """Adds the tensors between ``scores``, which a Softmax reads, and masks that are added to them."""
        pending: list[tuple[ir.Value, tuple[ir.Value, ...]]] = [(scores, (scores,))]
        while pending:
            value, path = pending.pop()
            for mask in self._masks_in(value):
                lowest = self._span(mask)[0]
                for tensor in (*path, mask):
                    self.found[tensor.name or ""] = f"reaches {lowest:.3g} in a mask, which Softmax turns into 0"
            pending += [(operand, (*path, operand)) for operand in _operands(value)]

    def _masks_in(self, value: ir.Value) -> Iterator[ir.Value]:
        producer = value.producer()
        if producer is None or _is_moved(producer):
            return
        for operand in _operands(value):
            lowest, highest = self._span(operand)
            # A Where fills in one value everywhere; an Add does not change unmasked positions.
            reference = 0.0 if producer.op_type == "Where" else highest
            if lowest <= reference - _OUT_OF_REACH and not self._is_computed(operand):
                yield operand

    def _span(self, value: ir.Value) -> tuple[float, float]:
        array = constant_array(value)
        if array is not None:
            return (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        source: ir.Value | None = value
        while source is not None:
            seen = self._statistics.get(source.name or "")
            if seen is not None:
                return (seen.minimum, seen.maximum) if seen.batches else (0.0, 0.0)
            producer = source.producer()
            source = producer.inputs[0] if producer is not None and _is_moved(producer) else None
        return 0.0, 0.0

    @staticmethod
    def _is_computed(value: ir.Value) -> bool:
        """Returns whether ``value`` depends on a layer: scores and learned biases are not masks."""
        pending, seen = [value], set[ir.Value]()
        while pending:
            producer = pending.pop().producer()
            if producer is None:
                continue
            operator = OPERATORS.get(producer.op_type)
            if operator is not None and operator.kind is Kind.LAYER:
                return True
            for operand in producer.inputs:
                if operand is not None and operand not in seen:
                    seen.add(operand)
                    pending.append(operand)
        return False


def _operands(value: ir.Value) -> list[ir.Value]:
    """Returns the inputs of ``value`` where it is a sum, a selection or a moved tensor."""
    producer = value.producer()
    if producer is None or producer.domain != "":
        return []
    if _is_moved(producer):
        inputs = list(producer.inputs[:1])
    elif producer.op_type in ("Add", "Sub"):
        inputs = list(producer.inputs)
    elif producer.op_type == "Where":
        inputs = list(producer.inputs[1:])
    else:
        inputs = []
    return [operand for operand in inputs if operand is not None]


def _is_moved(producer: ir.Node) -> bool:
    operator = OPERATORS.get(producer.op_type) if producer.domain == "" else None
    return operator is not None and operator.kind is Kind.MOVING
