"""Request and report of a weight-only quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qtool.backends.this_machine import scheme_here
from qtool.graph.unpacked_product import EXACT_LEVEL, INTEGER_LEVEL
from qtool.plan import WeightOnlyPlan
from qtool.schemes import WeightOnlyScheme
from qtool.weights.blocks.choices import BlockMethod
from qtool.weights.blocks.grid import BlockGrid
from qtool.workflows.quantize.shared_request import SharedReport, SharedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsGoal:
    """What mixed bits are for; one of the three is given.

    Attributes:
        min_sqnr_db: what the worst output has to reach, in dB, in the smallest file.
        max_bytes: the largest size of the weights, with everything else that a file holds, for the least noise.
        max_perplexity_rise: how much higher the perplexity may be, as a share, in the smallest file.
    """

    min_sqnr_db: float | None = None
    max_bytes: float | None = None
    max_perplexity_rise: float | None = None


def _four_bits() -> WeightOnlyScheme:
    return WeightOnlyScheme(grid=BlockGrid(bits=4, block=32, symmetric=False), target=scheme_here().target)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyRequest(SharedRequest):
    """The options of a weight-only quantization; without data, weights alone decide about their integers.

    Attributes:
        scheme: which integers weights become; by default 4 bits, asymmetric in blocks of 32.
        method: what chooses the integers; None for what comes closest to the float model on evaluation samples.
        level: the accuracy level of MatMulNBits; None for what evaluation samples and times show to be best.
        goal: what the bits of each weight are chosen for; None for those of the scheme.
    """

    scheme: WeightOnlyScheme = field(default_factory=_four_bits)
    method: BlockMethod | None = None
    level: int | None = None
    goal: BitsGoal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One form of the quantized model that was evaluated.

    Attributes:
        method: what chose the integers.
        integer_layers: how many products have 8-bit activations.
        sqnr_db: of the worst output on the evaluation samples, in dB.
        speedup: how many times as fast as the float model a run is on this machine, the geometric mean of a run on a
            sample and of one on a single position; None where it was not measured.
        perplexity_rise: on the evaluation samples, as a share; None where it is no goal.
    """

    method: BlockMethod
    integer_layers: int
    sqnr_db: float
    speedup: float | None = None
    perplexity_rise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyReport(SharedReport):
    """The result of a weight-only quantization.

    Attributes:
        plan: the quantized layers, and the others with reasons.
        method: what chose the integers.
        integer_layers: the products with 8-bit activations, accuracy level 4 of MatMulNBits; the others have level 0.
        attempts: what was evaluated to choose the two; empty without data.
        noise: where bits are mixed, what each weight alone puts into the outputs at 4 bits, over their signal.
    """

    plan: WeightOnlyPlan
    method: BlockMethod
    integer_layers: frozenset[str]
    attempts: tuple[Attempt, ...]
    noise: Mapping[str, float]

    @property
    def level(self) -> int | None:
        """The accuracy level that all products have; None where it differs."""
        levels = {
            INTEGER_LEVEL if name in self.integer_layers else EXACT_LEVEL
            for name, operator in self.plan.layers.items()
            if operator != "Gather"
        }
        return levels.pop() if len(levels) == 1 else None if levels else EXACT_LEVEL
