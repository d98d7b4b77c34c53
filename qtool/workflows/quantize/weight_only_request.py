"""Request and report of a weight-only quantization."""

from __future__ import annotations

from dataclasses import dataclass

from qtool.plan import WeightOnlyPlan
from qtool.schemes import WeightOnlyScheme
from qtool.weights.block_choices import BlockMethod
from qtool.workflows.quantize.shared_request import SharedReport, SharedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyRequest(SharedRequest):
    """The options of a weight-only quantization; without data, weights alone decide about their integers.

    Attributes:
        scheme: which integers weights become.
        method: what chooses the integers; None for what comes closest to the float model on evaluation samples.
        level: the accuracy level of MatMulNBits; None for what evaluation samples and times show to be best.
    """

    scheme: WeightOnlyScheme
    method: BlockMethod | None = None
    level: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One form of the quantized model that was evaluated.

    Attributes:
        method: what chose the integers.
        level: the accuracy level of its products.
        sqnr_db: of the worst output on the evaluation samples, in dB.
        speedup: how many times as fast as the float model a run is on this machine; None where it was not measured.
    """

    method: BlockMethod
    level: int
    sqnr_db: float
    speedup: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyReport(SharedReport):
    """The result of a weight-only quantization.

    Attributes:
        plan: the quantized layers, and the others with reasons.
        method: what chose the integers.
        level: the accuracy level of MatMulNBits.
        attempts: what was evaluated to choose the two; empty without data.
    """

    plan: WeightOnlyPlan
    method: BlockMethod
    level: int
    attempts: tuple[Attempt, ...]
