"""Sensitivity analysis: finds the layers whose quantization adds most noise to the model's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from qtool.backends.execution_choice import execution_for
from qtool.calib.ranges import RangeMethod
from qtool.cluster.work import IN_THIS_PROCESS, Workers, threads_of
from qtool.json_values import json_value
from qtool.progress import Progress
from qtool.schemes import Scheme
from qtool.search.node_groups import node_groups
from qtool.search.output_evaluator import OutputEvaluator
from qtool.search.sensitivity import LayerNoise, rank_layers
from qtool.selection import NodeSelection
from qtool.workflows.convert.model_source import ModelSource
from qtool.workflows.diagnose.analysis_files import AnalysisFiles
from qtool.workflows.quantize.calibrate import Watched
from qtool.workflows.quantize.check_result import CheckSamples
from qtool.workflows.quantize.data_request import DataRequest
from qtool.workflows.quantize.holdout_split import HoldoutSplit
from qtool.workflows.quantize.prepared_model import calibrated_candidates, load_prepared
from qtool.workflows.shards.gather_in_tasks import gather_by
from qtool.workflows.tune.correction_search import choose_among_methods
from qtool.workflows.tune.efforts import Effort, searches
from qtool.workflows.tune.sample_selection import spread_batches
from qtool.workflows.tune.tuning_split import TuningSplit

_COLUMNS = ("rank", "layer", "operator", "sqnr_db", "noise_share", "nodes")


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityRequest:
    """The options of a sensitivity analysis.

    Attributes:
        source: the float model.
        data: the samples, for the ranges and for the evaluation.
        scheme: which integers tensors become.
        method: finds the ranges of activations.
        selection: which nodes may be quantized.
        chosen_ranges: whether each range is chosen among all methods, as ``quantize`` does by default.
        samples: about how many samples to evaluate on.
        output: a .json or .csv file to write as well.
        plot: a chart to draw as well.
        worst: how many layers the chart shows.
        threads: threads inside an operator; 0 is one per core.
        force: whether existing files may be replaced.
    """

    source: ModelSource
    data: DataRequest
    scheme: Scheme
    method: RangeMethod
    selection: NodeSelection = field(default_factory=NodeSelection)
    chosen_ranges: bool = False
    samples: int = 8
    output: Path | None = None
    plot: Path | None = None
    worst: int = 20
    threads: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityReport:
    """The layers by their noise.

    Attributes:
        layers: the noisiest first.
        sqnr_db: SQNR of the worst output, in dB, with all of them quantized.
        samples: how many samples it was evaluated on.
    """

    layers: tuple[LayerNoise, ...]
    sqnr_db: float
    samples: int

    def as_json(self) -> dict[str, object]:
        """Returns the report as values for JSON; an infinite SQNR is null."""
        return {
            "schema": "qtool.sensitivity/1",
            "sqnr_db": json_value(self.sqnr_db),
            "samples": self.samples,
            "layers": [
                {
                    "rank": rank,
                    "layer": layer.group.layer,
                    "operator": layer.group.operator,
                    "sqnr_db": json_value(layer.sqnr_db),
                    "noise_share": layer.share,
                    "nodes": list(layer.group.nodes),
                }
                for rank, layer in enumerate(self.layers, start=1)
            ],
        }


def sensitivity(
    request: SensitivityRequest, progress: Progress, workers: Workers = IN_THIS_PROCESS
) -> SensitivityReport:
    """Calibrates once, then quantizes one layer at a time and measures the outputs; ``workers`` do the tasks of it.

    Raises:
        UsageError: an output has an unknown suffix.
        QtoolError: the model, the data or an output cannot be used; see the subclasses.
        FormatError: the model file cannot be read.
        CalibError: the data does not fit the model.
    """
    files = AnalysisFiles(output=request.output, plot=request.plot, force=request.force)
    files.check(figures="layers.csv", picture="layers.png")
    prepared = load_prepared(request.source, request.data, request.scheme, request.selection, progress)
    original, model, samples = prepared.original, prepared.model, prepared.samples
    collected = gather_by(workers)(
        model, Watched.by(prepared.plan), samples.dataset, samples.data, progress, threads=request.threads
    )
    candidates = calibrated_candidates(
        model,
        prepared.plan,
        collected.statistics,
        scheme=request.scheme,
        selection=request.selection,
        method=request.method,
    )
    if request.chosen_ranges:
        check = CheckSamples(dataset=samples.dataset, data=samples.data, holdout=HoldoutSplit(), memory=samples.memory)
        candidates = choose_among_methods(
            candidates,
            TuningSplit(original, check),
            searches(Effort.BALANCED),
            progress,
            threads=request.threads,
            workers=workers,
        )
    chosen = spread_batches(
        samples.data.feeds(samples.dataset, *prepared.interface),
        samples=samples.memory.evaluation_samples(request.samples),
        available=samples.data.available(samples.dataset),
    )
    threads = threads_of(workers, request.threads)
    evaluator = OutputEvaluator(original, chosen.feeds, execution=execution_for(request.scheme), threads=threads)
    everything = candidates({})
    groups = node_groups(model, everything.plan)
    with progress.task("quantizing one layer at a time", len(groups)) as advance:
        layers = rank_layers(candidates, groups, evaluator, advance=advance, workers=workers)
    report = SensitivityReport(layers=layers, sqnr_db=evaluator.sqnr_db(everything.model), samples=evaluator.samples)
    title = f"Noise of each layer of {request.source.path.name}"
    files.write(report.as_json(), _rows(report), partial(_draw, report, title=title, worst=request.worst))
    return report


def _rows(report: SensitivityReport) -> Iterator[Sequence[object]]:
    yield _COLUMNS
    for rank, layer in enumerate(report.layers, start=1):
        group = layer.group
        sqnr = f"{layer.sqnr_db:.3f}" if math.isfinite(layer.sqnr_db) else ""
        yield rank, group.layer, group.operator, sqnr, f"{layer.share:.6g}", " ".join(group.nodes)


def _draw(report: SensitivityReport, path: Path, *, title: str, worst: int) -> None:
    from qtool.reporting.charts import Bar, draw_bars

    shown = report.layers[:worst]
    longest = max((layer.share for layer in shown), default=0.0) or 1.0
    bars = [
        Bar(
            label=f"{layer.group.layer} ({layer.group.operator})",
            length=layer.share / longest,
            figure=f"{layer.share:.1%}, {in_decibels(layer.sqnr_db)} alone",
        )
        for layer in shown
    ]
    subtitle = (
        f"share of the noise at the outputs; the worst {len(shown)} of {len(report.layers)} layers, "
        f"{in_decibels(report.sqnr_db)} with all of them on integers, {report.samples} samples"
    )
    draw_bars(path, title, subtitle, bars)


def in_decibels(sqnr_db: float) -> str:
    """Returns an SQNR as text."""
    if math.isfinite(sqnr_db):
        return f"{sqnr_db:.1f} dB"
    return "no noise" if sqnr_db > 0 else "unusable"
