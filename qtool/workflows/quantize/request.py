"""Request and report of a static quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qtool.backends.coverage import Coverage
from qtool.backends.onnxruntime_cpu.this_machine import scheme_here
from qtool.calib.ranges import RangeMethod
from qtool.calib.ranges.min_max import MinMax
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
from qtool.workflows.tune.efforts import BALANCED, SearchConfig
from qtool.workflows.tune.float_fallback_search import KeptFloat
from qtool.workflows.tune.rewriting import Rewritten
from qtool.workflows.tune.time_plan import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """The options of a static quantization.

    Attributes:
        source: the float model.
        data: calibration samples; with ``statistics``, samples to compare the result on.
        statistics: a file of ``calibrate`` on the same model, instead of a pass over the data.
        scheme: which integers tensors become; without one, those that this machine runs fastest.
        method: the range method of activations.
        method_name: its name in ``RANGE_METHODS``.
        selection: which nodes may be quantized.
        searches: the search configuration; without samples only searches that need none run.
        goal: the accuracy to reach by keeping layers float; None for none.
        timing: the source of the times by which layers stay float.
        time_budget_s: seconds after which the search for these layers ends with the best so far.
        output: the file to write; None names it after the model.
        output_dir: folder of an output without a name; None for the model's folder.
        threads: threads inside an operator; 0 is one per core.
        force: whether existing outputs may be replaced.
        arguments: the options as given, for the manifest.
        locked: the manifest of the run to repeat; None for a new run.
    """

    source: ModelSource
    data: DataRequest | None = None
    statistics: Path | None = None
    scheme: Scheme = field(default_factory=scheme_here)
    method: RangeMethod = field(default_factory=MinMax)
    method_name: str = "auto"
    selection: NodeSelection = field(default_factory=NodeSelection)
    searches: SearchConfig = BALANCED
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
        """Whether run times matter: layers stay float for speed, or as few as possible for accuracy."""
        return not self.timing.for_size or self.goal is not None or self.searches.keeps_float

    @property
    def destination(self) -> Path:
        """The path of the quantized model."""
        return destination(self.source, self.output, self.output_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """The result of a static quantization.

    Attributes:
        output: the quantized model.
        manifest: its manifest file.
        float_model: the float model to compare it with; exported where the source is not an ONNX file.
        plan: the quantized nodes, and the others with reasons.
        coverage: the nodes that onnxruntime runs on integers.
        findings: constant tensors, dead channels, corrected biases.
        tables: the embedding tables that are stored as integers.
        rewritten: the changes of the float model before it was calibrated.
        corrections: the results of the search.
        gains: the effect of every correction that was tried on the outputs.
        kept_float: layers that stay float because quantizing them costs much accuracy and saves little time; None
        without a search.
        fidelity: how close each output stays to the float model's.
        outlooks: expected fidelity on other data, by output.
        compared_on: the samples of ``fidelity``, in words.
        compared_on_data: whether they are real data.
        samples: how many samples the ranges come from.
        float_bytes: size of the float model on disk.
        quantized_bytes: size of the quantized model on disk.
        mixed: the result for the accuracy goal, where there was one.
        speedup: how many times faster than float the model is, from a few runs in turns; None without samples.
        timing: the times that the choices are based on; None without samples.
        unsigned: layers whose weights are u8, so that their sums have 32 bits.
        slow: nodes that stay float since integers save no time there.
        search_ended: why the search ended before it was through, in words; None where it did not.
        judged_in: what ran the quantized candidates and the result, in words.
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
    search_ended: str | None = None
    judged_in: str = "onnxruntime"
