"""A model quantized in one of many ways, and what makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from qtool.plan import Plan


@dataclass(frozen=True, slots=True)
class QuantizedCandidate:
    """Is one way to quantize a model.

    Attributes:
        model: the quantized graph.
        plan: what is quantized in it.
    """

    model: ir.Model
    plan: Plan


class Quantize(Protocol):
    """Quantizes always the same float model, from the same statistics."""

    def __call__(self, kept_float: Mapping[str, str]) -> QuantizedCandidate:
        """Returns a new variant in which the named nodes stay float, each for the reason given."""
        ...
