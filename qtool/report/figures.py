"""Every figure of a report that has a name of its own: what gates test and what JSON lists under ``figures``.

A figure is one line in FIGURES. A figure of outputs is the worst over all outputs; with several outputs each one's own
is there too, as ``sqnr_db[logits]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from qtool.metrics.fidelity import OutputFidelity
from qtool.report.model import ModelReport, Report

Need: TypeAlias = Literal["labels", "latency"]
Value: TypeAlias = float | None

_PERCENT_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A named number of a report.

    Attributes:
        unit: what it is counted in, empty for a plain number.
        description: one line for the documentation.
        read: takes it from a report; None where the report has no such figure.
        of_output: takes it from one output, for figures that outputs have.
        need: what has to be given or measured for it, None where every report may have it.
    """

    unit: str
    description: str
    read: Callable[[Report], Value]
    of_output: Callable[[OutputFidelity], Value] | None = None
    need: Need | None = None


def figures(report: Report) -> dict[str, Value]:
    """Returns every figure by name; None where the report does not have it, NaN where outputs cannot be compared."""
    values = {name: figure.read(report) for name, figure in FIGURES.items()}
    if len(report.fidelity) > 1:
        for name, figure in FIGURES.items():
            if figure.of_output is not None:
                for output in report.fidelity:
                    values[f"{name}[{output.name}]"] = figure.of_output(output)
    return values


def _worst(
    of_output: Callable[[OutputFidelity], Value],
    choose: Callable[[Iterable[float]], float],
    unit: str,
    description: str,
) -> Figure:
    def read(report: Report) -> Value:
        known = [value for value in map(of_output, report.fidelity) if value is not None]
        if any(math.isnan(value) for value in known):
            return math.nan  # which neither min nor max would surely pick
        return choose(known) if known else None

    return Figure(unit=unit, description=description, read=read, of_output=of_output)


def _accuracy(model: Callable[[Report], ModelReport], top: Literal["top1", "top5"]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        accuracy = model(report).accuracy
        return None if accuracy is None else _percent(accuracy.top1 if top == "top1" else accuracy.top5)

    return read


def _drop(left: Callable[[Report], Value], right: Callable[[Report], Value]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        a, b = left(report), right(report)
        return None if a is None or b is None else round(a - b, _PERCENT_DIGITS)

    return read


def _quotient(above: Callable[[Report], Value], below: Callable[[Report], Value]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        a, b = above(report), below(report)
        return None if a is None or not b else a / b

    return read


def _latency(model: Callable[[Report], ModelReport], which: Literal["median", "p95"]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        latency = model(report).latency
        if latency is None:
            return None
        return latency.median_ms if which == "median" else latency.p95_ms

    return read


def _size(model: Callable[[Report], ModelReport]) -> Callable[[Report], Value]:
    return lambda report: model(report).size_bytes / 1e6


def _memory(model: Callable[[Report], ModelReport]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        peak = model(report).memory.peak_bytes
        return None if peak is None else peak / 1e6

    return read


def _speedup(which: Literal["median", "low", "high"]) -> Callable[[Report], Value]:
    def read(report: Report) -> Value:
        ratio = report.speedup
        if ratio is None:
            return None
        return {"median": ratio.median, "low": ratio.low, "high": ratio.high}[which]

    return read


def _percent(share: float | None) -> Value:
    # Rounded far below what matters, so that a drop of 5 samples in 1000 is 0.5 and not 0.5000000000000004.
    return None if share is None else round(100 * share, _PERCENT_DIGITS)


def _float(report: Report) -> ModelReport:
    return report.float_model


def _quantized(report: Report) -> ModelReport:
    return report.quantized_model


def _labelled(read: Callable[[Report], Value], unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read, need="labels")


def _timed(read: Callable[[Report], Value], unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read, need="latency")


def _always(read: Callable[[Report], Value], unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read)


_TOP1, _TOP1_FLOAT = _accuracy(_quantized, "top1"), _accuracy(_float, "top1")
_TOP5, _TOP5_FLOAT = _accuracy(_quantized, "top5"), _accuracy(_float, "top5")

FIGURES: Mapping[str, Figure] = {
    "sqnr_db": _worst(
        lambda output: output.sqnr_db, min, "dB", "signal-to-quantization-noise ratio of the outputs, the lowest one"
    ),
    "cosine": _worst(lambda output: output.cosine, min, "", "cosine between the models' outputs, the lowest one"),
    "max_abs_error": _worst(
        lambda output: output.max_abs_error, max, "", "largest difference between the models' outputs"
    ),
    "mean_abs_error": _worst(
        lambda output: output.mean_abs_error, max, "", "mean difference between the models' outputs, the largest one"
    ),
    "agreement": _worst(
        lambda output: _percent(output.top1_agreement), min, "%", "samples for which both models name the same class"
    ),
    "equal_values": _worst(
        lambda output: _percent(output.equal_share), min, "%", "equal values of outputs that are integers"
    ),
    "non_finite": _worst(
        lambda output: output.non_finite, max, "", "values that are NaN or infinite in one of the models only"
    ),
    "top1": _labelled(_TOP1, "%", "top-1 accuracy of the quantized model"),
    "top1_float": _labelled(_TOP1_FLOAT, "%", "top-1 accuracy of the float model"),
    "top1_drop": _labelled(_drop(_TOP1_FLOAT, _TOP1), "points", "top-1 accuracy lost, in percentage points"),
    "top5": _labelled(_TOP5, "%", "top-5 accuracy of the quantized model"),
    "top5_float": _labelled(_TOP5_FLOAT, "%", "top-5 accuracy of the float model"),
    "top5_drop": _labelled(_drop(_TOP5_FLOAT, _TOP5), "points", "top-5 accuracy lost, in percentage points"),
    "latency_ms": _timed(_latency(_quantized, "median"), "ms", "median time of one sample, quantized model"),
    "latency_float_ms": _timed(_latency(_float, "median"), "ms", "median time of one sample, float model"),
    "latency_p95_ms": _timed(_latency(_quantized, "p95"), "ms", "95th percentile of that time, quantized model"),
    "latency_float_p95_ms": _timed(_latency(_float, "p95"), "ms", "95th percentile of that time, float model"),
    "speedup": _timed(_speedup("median"), "x", "float time over quantized time, median of paired rounds"),
    "speedup_low": _timed(_speedup("low"), "x", "lower end of the speedup's 95 % confidence interval"),
    "speedup_high": _timed(_speedup("high"), "x", "upper end of the speedup's 95 % confidence interval"),
    "throughput": _timed(
        lambda report: report.quantized_model.throughput, "samples/s", "samples a second in batches, quantized model"
    ),
    "throughput_float": _timed(
        lambda report: report.float_model.throughput, "samples/s", "samples a second in batches, float model"
    ),
    "size_mb": _always(_size(_quantized), "MB", "size on disk of the quantized model"),
    "size_float_mb": _always(_size(_float), "MB", "size on disk of the float model"),
    "size_ratio": _always(
        _quotient(_size(_quantized), _size(_float)), "", "quantized size over float size: 0.25 is a quarter"
    ),
    "memory_mb": _always(_memory(_quantized), "MB", "peak memory of a process that runs the quantized model once"),
    "memory_float_mb": _always(_memory(_float), "MB", "peak memory of a process that runs the float model once"),
    "memory_ratio": _always(_quotient(_memory(_quantized), _memory(_float)), "", "quantized peak over float peak"),
}
