"""Request and report of a static quantization."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.this_machine import scheme_here
from qtool.calib.ranges import RangeMethod
from qtool.calib.ranges.min_max import MinMax
from qtool.corrections import Corrections
from qtool.metrics.latency import Interval
from qtool.plan import Plan
from qtool.quantizer import Findings
from qtool.schemes import Scheme
from qtool.search.accuracy_goal import Goal
from qtool.search.correction_ablation import Gain
from qtool.search.held_back_evidence import Evidence
from qtool.workflows.quantize.shared_request import SharedReport, SharedRequest
from qtool.workflows.tune.accuracy_target import MixedPrecision
from qtool.workflows.tune.efforts import BALANCED, SearchConfig
from qtool.workflows.tune.float_fallback_search import KeptFloat
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest(SharedRequest):
    """The options of a static quantization.

    Attributes:
        statistics: a file of ``calibrate`` on the same model, instead of a pass over the data.
        scheme: which integers tensors become; without one, those that this machine runs fastest.
        method: the range method of activations.
        method_name: its name in ``RANGE_METHODS``.
        searches: the search configuration; without samples only searches that need none run.
        goal: the accuracy to reach by keeping layers float; None for none.
        timing: the source of the times by which layers stay float.
        time_budget_s: seconds after which the search for these layers ends with the best so far.
    """

    statistics: Path | None = None
    scheme: Scheme = field(default_factory=scheme_here)
    method: RangeMethod = field(default_factory=MinMax)
    method_name: str = "auto"
    searches: SearchConfig = BALANCED
    goal: Goal | None = None
    timing: Timing = field(default_factory=Timing)
    time_budget_s: float | None = None

    @property
    def asks_for_times(self) -> bool:
        """Whether run times matter: layers stay float for speed, or as few as possible for accuracy."""
        return not self.timing.for_size or self.goal is not None or self.searches.keeps_float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport(SharedReport):
    """The result of a static quantization.

    Attributes:
        plan: the quantized nodes, and the others with reasons.
        findings: constant tensors, dead channels, corrected biases.
        rewritten: the changes of the float model before it was calibrated.
        corrections: the results of the search.
        gains: the effect of every correction that was tried on the outputs.
        evidence: what samples that were held back say about every change that was tried on top of the search.
        kept_float: layers that stay float because quantizing them costs much accuracy and saves little time; None
        without a search.
        samples: how many samples the ranges come from.
        mixed: the result for the accuracy goal, where there was one.
        speedup: how many times faster than float the model is, from a few runs in turns; None without samples, and
        where nothing is quantized.
        timing: the times that the choices are based on; None without samples.
        unsigned: layers whose weights are u8, so that their sums have 32 bits.
        slow: nodes that stay float since integers save no time there.
        search_ended: why the search ended before it was through, in words; None where it did not.
        judged_in: what ran the quantized candidates and the result, in words.
    """

    plan: Plan
    findings: Findings
    rewritten: Rewritten
    corrections: Corrections
    gains: tuple[Gain, ...]
    kept_float: KeptFloat | None
    samples: int
    evidence: tuple[Evidence, ...] = ()
    mixed: MixedPrecision | None = None
    speedup: Interval | None = None
    timing: Timing | None = None
    slow: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()
    search_ended: str | None = None
    judged_in: str = "onnxruntime"
