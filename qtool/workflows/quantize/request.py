"""What a quantization is asked for, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.onnxruntime_cpu.coverage import Coverage
from qtool.calib.ranges import RangeMethod
from qtool.corrections import Corrections
from qtool.manifest import Manifest
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval
from qtool.metrics.outlook import Outlook
from qtool.plan import Plan
from qtool.qdq.store_tables import StoredTable
from qtool.quantizer import Findings
from qtool.schemes import Scheme
from qtool.search.accuracy_goal import Goal
from qtool.search.correction_ablation import Gain
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.quantize_files import destination
from qtool.workflows.tune.accuracy_target import MixedPrecision
from qtool.workflows.tune.efforts import NO_SEARCH, SearchConfig
from qtool.workflows.tune.float_fallback_search import KeptFloat
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.time_plan import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """What to quantize, and how.

    Attributes:
        source: the float model.
        data: calibration samples; with ``statistics`` as well, samples to compare the result on.
        statistics: a file of ``calibrate`` on the same model, in place of a pass over the data.
        scheme: which integers tensors become.
        method: finds the ranges of activations.
        method_name: its name in ``RANGE_METHODS``.
        selection: which nodes may be quantized.
        searches: what is looked for beyond one pass; without samples only what needs none.
        goal: what to reach by keeping layers float; None for integers everywhere.
        timing: where times come from that layers stay float for.
        time_budget_s: seconds after which the search for these layers ends with the best so far.
        output: the file to write; None names it after the model.
        output_dir: where an output without a name goes; None for beside the model.
        threads: threads inside an operator; 0 is one a core.
        force: whether existing outputs may be replaced.
        arguments: the options as a person gave them, for the manifest.
        locked: the manifest of the run to repeat; None for a run of its own.
    """

    source: ModelSource
    data: DataRequest | None
    statistics: Path | None
    scheme: Scheme
    method: RangeMethod
    method_name: str
    selection: NodeSelection = field(default_factory=NodeSelection)
    searches: SearchConfig = NO_SEARCH
    goal: Goal | None = None
    timing: Timing = field(default_factory=Timing)
    time_budget_s: float | None = None
    output: Path | None = None
    output_dir: Path | None = None
    threads: int = 0
    force: bool = False
    arguments: tuple[str, ...] = ()
    locked: Manifest | None = None

    @property
    def asks_for_times(self) -> bool:
        """Whether it matters what runs take: layers stay float for speed, or as few as will do for accuracy."""
        return not self.timing.for_size or self.goal is not None or self.searches.keeps_float

    @property
    def destination(self) -> Path:
        """Where the quantized model goes."""
        return destination(self.source, self.output, self.output_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What a quantization did.

    Attributes:
        output: the quantized model.
        manifest: the record beside it.
        float_model: the float model to compare it with; made on the way where the source is no ONNX file.
        plan: what was quantized, and what was not.
        coverage: what onnxruntime runs on integers.
        findings: constant tensors, dead channels, corrected biases.
        tables: the embedding tables that are stored as integers.
        rewritten: what was changed in the float model before it was calibrated.
        corrections: what the search found.
        gains: what every correction that was tried did to the outputs.
        kept_float: layers that stay float since integers save little there for what they cost; None without a search.
        fidelity: how close each output stays to the float model's.
        outlooks: what to expect of outputs on other data, by output.
        compared_on: the samples that ``fidelity`` comes from, in words.
        compared_on_data: whether they are real data.
        samples: samples that shaped the ranges.
        float_bytes: size of the float model on disk.
        quantized_bytes: size of the quantized model on disk.
        mixed: what became of the goal, where there was one.
        speedup: how many times faster than float the model is, from a few runs in turns; None without samples.
        timing: what runs were taken to cost; None without samples.
        unsigned: layers whose weights are u8, so that their sums have 32 bits.
        slow: nodes that stay float since integers save no time there.
    """

    output: Path
    manifest: Path
    float_model: Path
    plan: Plan
    coverage: Coverage
    findings: Findings
    tables: tuple[StoredTable, ...]
    rewritten: Rewritten
    corrections: Corrections
    gains: tuple[Gain, ...]
    kept_float: KeptFloat | None
    fidelity: tuple[OutputFidelity, ...]
    outlooks: Mapping[str, Outlook]
    compared_on: str
    compared_on_data: bool
    samples: int
    float_bytes: int
    quantized_bytes: int
    mixed: MixedPrecision | None = None
    speedup: Interval | None = None
    timing: Timing | None = None
    slow: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()
