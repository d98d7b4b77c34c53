"""Evaluates candidates with one quantized layer from a cut before it on: the graph up to there is float in all of them.

The float graph runs once up to each of a few cuts, and every candidate opens and runs what stands behind the last one
before its layer: half of the nodes on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qtool.calib.specs import Feed
from qtool.search.node_groups import NodeGroup
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.segmented_runner import SegmentedRunner, part_behind

# At most so many cuts, with at least so many layers between two of them.
_MOST_CUTS, _FEWEST_LAYERS = 8, 4
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


class EvaluationBehindCuts:
    """Evaluates by the outputs of one evaluator, each layer of a model behind its cut."""

    def __init__(self, model: ir.Model, groups: Sequence[NodeGroup], evaluator: OutputEvaluator) -> None:
        """Takes the float model that candidates are made from, its layers in graph order, and what evaluates wholes."""
        count = min(_MOST_CUTS, len(groups) // _FEWEST_LAYERS)
        self._first = [len(groups) * place // (count + 1) for place in range(1, count + 1)]
        self._cuts = [groups[number].layer for number in self._first]
        self._model = model
        self._evaluator = evaluator
        self._runner: SegmentedRunner | None = None
        self._reached = 0

    def sqnr_db(self, candidate: ir.Model, number: int) -> float:
        """Returns the SQNR of the worst output of ``candidate``, in dB, in which only layer ``number`` is quantized.

        Raises:
            RuntimeRefusedError: onnxruntime does not load or run a part of the graph.
        """
        cut = sum(first <= number for first in self._first)
        if cut and self._evaluator.may_be_cut:
            held = self._held(cut)
            part = part_behind(self._evaluator.viewed(candidate), held[0])
            # An operator before the cut may be on integers because of the layer.
            if part is not None and _conversions(part) == _conversions(candidate):
                return self._evaluator.behind(held, part).sqnr_db(part)
        return self._evaluator.sqnr_db(candidate)

    def _held(self, cut: int) -> Sequence[Feed]:
        """Returns the float tensors at a cut, by batch; cuts that come in order take one run of the float model."""
        if self._runner is None or cut < self._reached:
            feeds, threads = self._evaluator.feeds, self._evaluator.threads
            self._runner, self._reached = SegmentedRunner(self._model, self._cuts, feeds, threads=threads), 0
        for _ in range(self._reached, cut):
            self._runner.advance()
        self._reached = cut
        return self._runner.held


def _conversions(model: ir.Model) -> int:
    return sum(node.op_type in _CONVERSIONS for node in model.graph)
