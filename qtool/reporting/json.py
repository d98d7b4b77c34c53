"""The report as JSON, for other programs.

The schema's name carries its version: ``qtool.report/1`` may gain keys; when one goes or changes its meaning, the
number rises. JSON knows neither infinity nor NaN: both are written as null. Whether an infinite SQNR stands behind a
null tells ``identical``, whether a NaN does tells ``non_finite``.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from qtool.json_values import json_value
from qtool.metrics.changed_samples import ChangedSample
from qtool.reporting.model import ModelComparison, Report

SCHEMA = "qtool.report/1"


def to_json(report: Report) -> dict[str, Any]:
    """Lays the report out as values that ``json.dumps(..., allow_nan=False)`` takes."""
    models = [_comparison(comparison) for comparison in report.comparisons]
    only = report.datasets[0] if len(report.datasets) == 1 else None
    float_model = report.float_model
    if only is None:
        # What depends on the data stands under the figures of each entry.
        float_model = replace(float_model, accuracy=None, metric=None)
    document = {
        "schema": SCHEMA,
        # Those of the only entry, for programs that know of no more; null where there are several.
        "figures": models[0]["figures"] if len(models) == 1 else None,
        "float_model": asdict(float_model),
        "quantized_models": models,
        "data": None if only is None else only.source,
        "labels": None if only is None else only.labels,
        "samples": None if only is None else only.samples,
        "datasets": [asdict(dataset) for dataset in report.datasets],
        "metric": report.metric,
        "lower_is_better": report.comparisons[0].lower_is_better,
        "batch_size": report.batch_size,
        "threads": report.threads,
        "rounds": report.rounds,
        "versions": dict(report.versions),
        "machine": asdict(report.machine),
        "verdicts": [asdict(verdict) for verdict in report.verdicts],
    }
    return {key: json_value(value) for key, value in document.items()}


def _comparison(comparison: ModelComparison) -> dict[str, Any]:
    figures = comparison.figures
    return {
        **asdict(comparison.quantized_model),
        "dataset": comparison.dataset,
        "compared_with": comparison.float_model.name,
        "is_float": comparison.is_float,
        "fidelity": [{**asdict(output), "identical": output.identical} for output in comparison.fidelity],
        "speedup": None if comparison.speedup is None else asdict(comparison.speedup),
        "language": None if comparison.language is None else asdict(comparison.language),
        "answers": [asdict(answer) for answer in comparison.answers],
        "classes": [asdict(change) for change in comparison.classes],
        "samples": [_sample(sample) for sample in comparison.samples],
        "grid": [asdict(point) for point in comparison.grid],
        "layers": [asdict(layer) for layer in comparison.layers],
        "histograms": [asdict(histogram) for histogram in comparison.histograms],
        "figures": {name: figure.value for name, figure in figures.items()},
        "intervals": {name: [figure.low, figure.high] for name, figure in figures.items() if figure.low is not None},
    }


def _sample(sample: ChangedSample) -> dict[str, Any]:
    # The chart is in the HTML report only.
    return {key: value for key, value in asdict(sample).items() if key != "picture"}
