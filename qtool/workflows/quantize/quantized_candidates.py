"""Makes quantized candidates of one prepared model from statistics that were collected once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import onnx_ir as ir

from qtool.backends.registry import backend_named
from qtool.calib.ranges import RangeMethod
from qtool.calib.statistics import TensorStatistics
from qtool.corrections import Corrections
from qtool.plan import NOTHING_KEPT, Plan
from qtool.planning import build_plan
from qtool.quantizer import NO_CORRECTIONS, quantize_graph
from qtool.runtime.packed_model import PackedModel
from qtool.schemes import Scheme
from qtool.search.quantized_candidate import QuantizedCandidate
from qtool.selection import NodeSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedCandidates:
    """Makes candidates that differ in the nodes that stay float.

    Attributes:
        model: the float model after ``prepare``; it is not modified.
        scheme: which integers tensors become.
        selection: which nodes may be quantized at all.
        unfit: tensors that must stay float, each with the reason.
        statistics: by name, of every tensor that the largest plan needs.
        method: the range method of activations.
        bias_correction: whether biases correct the shift of the layers' means that rounding weights causes.
        corrections: the results of a search.
        dynamic: layers that a search made dynamic, by name.
        slow: nodes that stay float in every candidate, since integers save no time there, each with the reason.
    """

    model: ir.Model
    scheme: Scheme
    selection: NodeSelection
    unfit: Mapping[str, str]
    statistics: Mapping[str, TensorStatistics]
    method: RangeMethod
    bias_correction: bool = True
    corrections: Corrections = NO_CORRECTIONS
    dynamic: tuple[str, ...] = ()
    slow: Mapping[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the model as well."""
        others = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "model"}
        return _unpacked, (PackedModel.of(self.model), others)

    def __call__(self, kept_float: Mapping[str, str]) -> QuantizedCandidate:
        """Returns a new candidate in which the named nodes stay float, each for the reason given.

        Raises:
            InputError: a weight holds NaN or infinity.
        """
        model = self.model.clone()
        plan = self._planned(model, kept_float)
        quantize_graph(
            model,
            plan,
            self.statistics,
            self.method,
            bias_correction=self.bias_correction,
            corrections=self.corrections,
        )
        backend_named(self.scheme.backend).finish(model, self.scheme)
        return QuantizedCandidate(model, plan)

    def plan(self, kept_float: Mapping[str, str] = NOTHING_KEPT) -> Plan:
        """Returns the plan with the named nodes in float."""
        return self._planned(self.model, kept_float)

    def _planned(self, model: ir.Model, kept_float: Mapping[str, str]) -> Plan:
        exact = tuple(f"re:{re.escape(name)}" for name in self.dynamic)
        selection = replace(self.selection, dynamic=(*self.selection.dynamic, *exact))
        kept = {**self.slow, **kept_float}
        return build_plan(model, self.scheme, selection, unfit=self.unfit, kept_float=kept, may_be_empty=True)


def _unpacked(model: PackedModel, others: Mapping[str, Any]) -> QuantizedCandidates:
    return QuantizedCandidates(model=model.unpacked(), **others)
