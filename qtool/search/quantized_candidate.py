"""A quantized candidate of a model, and the protocol that makes candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from qtool.plan import Plan


@dataclass(frozen=True, slots=True)
class QuantizedCandidate:
    """One quantized candidate of a model.

    Attributes:
        model: the quantized graph.
        plan: what is quantized in it.
    """

    model: ir.Model
    plan: Plan


class Quantize(Protocol):
    """Quantizes one float model from one set of statistics."""

    def __call__(self, kept_float: Mapping[str, str]) -> QuantizedCandidate:
        """Returns a new candidate in which the named nodes stay float, each for the reason given."""
        ...
