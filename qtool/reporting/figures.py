"""Every figure of a report that has a name of its own: what gates test and what JSON lists under ``figures``.

A figure is one line in FIGURES. A figure of outputs is the worst over all outputs; with several outputs each one's own
is there too, as ``sqnr_db[logits]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from qtool.llm.language_readers import of_language, of_times, perplexity
from qtool.metrics.fidelity import OutputFidelity
from qtool.metrics.latency import Interval
from qtool.reporting.figure_readers import (
    Read,
    Value,
    accuracy,
    agreement,
    drop,
    equal_values,
    latency,
    measured,
    memory,
    quotient,
    size,
    worst,
)
from qtool.reporting.model import Measured, ModelComparison, ModelReport

Need: TypeAlias = Literal["labels", "latency", "cold start", "metric", "text", "token times"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A named number of a report.

    Attributes:
        unit: what it is counted in, empty for a plain number.
        description: one line for the documentation.
        read: takes it from a comparison.
        of_output: takes it from one output, for figures that outputs have.
        need: what has to be given or measured for it, None where every report may have it.
        noisy: whether another run would find another value; it has a confidence interval then.
    """

    unit: str
    description: str
    read: Read
    of_output: Callable[[OutputFidelity], Value] | None = None
    need: Need | None = None
    noisy: bool = False

    @property
    def of_data(self) -> bool:
        """Whether it depends on the data, and so differs from dataset to dataset."""
        return self.of_output is not None or self.need in ("labels", "metric", "text")


def with_figures(comparison: ModelComparison) -> ModelComparison:
    """Returns ``comparison`` with every figure by name."""
    found = {name: figure.read(comparison) for name, figure in FIGURES.items()}
    if len(comparison.fidelity) > 1:
        for name, figure in FIGURES.items():
            if figure.of_output is not None:
                for output in comparison.fidelity:
                    found[f"{name}[{output.name}]"] = Measured(value=figure.of_output(output))
    return replace(comparison, figures=found)


def _float(comparison: ModelComparison) -> ModelReport:
    return comparison.float_model


def _quantized(comparison: ModelComparison) -> ModelReport:
    return comparison.quantized_model


def _output(
    of_output: Callable[[OutputFidelity], Value], choose: Callable[[list[float]], float], unit: str, description: str
) -> Figure:
    return Figure(unit=unit, description=description, read=worst(of_output, choose), of_output=of_output)


def _labelled(read: Read, unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read, need="labels")


def _timed(read: Callable[[ModelComparison], Interval | None], unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=measured(read), need="latency", noisy=True)


def _metric(side: Callable[[ModelComparison], ModelReport]) -> Read:
    return lambda comparison: Measured(value=side(comparison).metric)


def _judged(read: Read, description: str) -> Figure:
    return Figure(unit="", description=description, read=read, need="metric")


def _started(side: Callable[[ModelComparison], ModelReport], description: str) -> Figure:
    read = measured(lambda comparison: side(comparison).cold_start)
    return Figure(unit="ms", description=description, read=read, need="cold start", noisy=True)


def _bound(read: Callable[[Interval], float], description: str) -> Figure:
    def of_speedup(comparison: ModelComparison) -> Measured:
        return Measured(value=None if comparison.speedup is None else read(comparison.speedup))

    return Figure(unit="x", description=description, read=of_speedup, need="latency")


def _of_text(read: Read, unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read, need="text", noisy=True)


def _of_tokens(read: Read, unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read, need="token times", noisy=True)


def _always(read: Read, unit: str, description: str) -> Figure:
    return Figure(unit=unit, description=description, read=read)


_TOP1, _TOP1_FLOAT = accuracy(_quantized, "top1"), accuracy(_float, "top1")
_TOP5, _TOP5_FLOAT = accuracy(_quantized, "top5"), accuracy(_float, "top5")
_METRIC, _METRIC_FLOAT = _metric(_quantized), _metric(_float)


def _metric_lost(comparison: ModelComparison) -> Measured:
    read = drop(_METRIC, _METRIC_FLOAT) if comparison.lower_is_better else drop(_METRIC_FLOAT, _METRIC)
    return read(comparison)


FIGURES: Mapping[str, Figure] = {
    "sqnr_db": _output(
        lambda output: output.sqnr_db, min, "dB", "signal-to-quantization-noise ratio of the outputs, the lowest one"
    ),
    "cosine": _output(lambda output: output.cosine, min, "", "cosine between the models' outputs, the lowest one"),
    "max_abs_error": _output(
        lambda output: output.max_abs_error, max, "", "largest difference between the models' outputs"
    ),
    "mean_abs_error": _output(
        lambda output: output.mean_abs_error, max, "", "mean difference between the models' outputs, the largest one"
    ),
    "agreement": _output(agreement, min, "%", "samples for which both models name the same class"),
    "equal_values": _output(equal_values, min, "%", "equal values of outputs that are integers"),
    "non_finite": _output(
        lambda output: output.non_finite, max, "", "values that are NaN or infinite in one of the models only"
    ),
    "top1": _labelled(_TOP1, "%", "top-1 accuracy of the quantized model"),
    "top1_float": _labelled(_TOP1_FLOAT, "%", "top-1 accuracy of the float model"),
    "top1_drop": _labelled(drop(_TOP1_FLOAT, _TOP1), "points", "top-1 accuracy lost, in percentage points"),
    "top5": _labelled(_TOP5, "%", "top-5 accuracy of the quantized model"),
    "top5_float": _labelled(_TOP5_FLOAT, "%", "top-5 accuracy of the float model"),
    "top5_drop": _labelled(drop(_TOP5_FLOAT, _TOP5), "points", "top-5 accuracy lost, in percentage points"),
    "metric": _judged(_METRIC, "score of the quantized model"),
    "metric_float": _judged(_METRIC_FLOAT, "score of the float model"),
    "metric_drop": _judged(_metric_lost, "how much worse the score of the quantized model is"),
    "perplexity": _of_text(perplexity(_quantized), "", "perplexity of the quantized model"),
    "perplexity_float": _of_text(perplexity(_float), "", "perplexity of the float model"),
    "perplexity_rise": _of_text(
        of_language(lambda score: score.rise, "%"), "%", "how much higher the quantized model's perplexity is"
    ),
    "kl": _of_text(
        of_language(lambda score: score.divergence, ""),
        "nats",
        "mean Kullback-Leibler divergence of the quantized model's next tokens from the float model's",
    ),
    "same_token": _of_text(
        of_language(lambda score: score.same_token, "%"), "%", "positions at which both find the same token most likely"
    ),
    "prefill": _of_tokens(
        of_times(_quantized, lambda times: times.prefill), "tokens/s", "tokens of a prompt a second, quantized model"
    ),
    "prefill_float": _of_tokens(
        of_times(_float, lambda times: times.prefill), "tokens/s", "tokens of a prompt a second, float model"
    ),
    "prefill_speedup": _of_tokens(
        of_times(_quantized, lambda times: times.prefill_speedup), "x", "float time over quantized time of a prompt"
    ),
    "decode": _of_tokens(
        of_times(_quantized, lambda times: times.decode), "tokens/s", "tokens added a second, quantized model"
    ),
    "decode_float": _of_tokens(
        of_times(_float, lambda times: times.decode), "tokens/s", "tokens added a second, float model"
    ),
    "decode_speedup": _of_tokens(
        of_times(_quantized, lambda times: times.decode_speedup),
        "x",
        "float time over quantized time of a token added",
    ),
    "first_token_ms": _of_tokens(
        of_times(_quantized, lambda times: times.first_token_ms),
        "ms",
        "time from a prompt to the first token after it, quantized model",
    ),
    "first_token_float_ms": _of_tokens(
        of_times(_float, lambda times: times.first_token_ms),
        "ms",
        "time from a prompt to the first token after it, float model",
    ),
    "latency_ms": _timed(latency(_quantized, "median"), "ms", "median time of one sample, quantized model"),
    "latency_float_ms": _timed(latency(_float, "median"), "ms", "median time of one sample, float model"),
    "latency_p95_ms": _timed(latency(_quantized, "p95"), "ms", "95th percentile of that time, quantized model"),
    "latency_float_p95_ms": _timed(latency(_float, "p95"), "ms", "95th percentile of that time, float model"),
    "speedup": _timed(
        lambda comparison: comparison.speedup, "x", "float time over quantized time, median of paired rounds"
    ),
    "speedup_low": _bound(lambda ratio: ratio.low, "lower end of the speedup's 99 % confidence interval"),
    "speedup_high": _bound(lambda ratio: ratio.high, "upper end of the speedup's 99 % confidence interval"),
    "throughput": _timed(
        lambda comparison: comparison.quantized_model.throughput,
        "samples/s",
        "samples a second in batches, quantized model",
    ),
    "throughput_float": _timed(
        lambda comparison: comparison.float_model.throughput, "samples/s", "samples a second in batches, float model"
    ),
    "cold_start_ms": _started(_quantized, "time that a fresh process takes to open and first run the quantized model"),
    "cold_start_float_ms": _started(_float, "time that a fresh process takes to open and first run the float model"),
    "size_mb": _always(size(_quantized), "MB", "size on disk of the quantized model"),
    "size_float_mb": _always(size(_float), "MB", "size on disk of the float model"),
    "size_ratio": _always(
        quotient(size(_quantized), size(_float)), "", "quantized size over float size: 0.25 is a quarter"
    ),
    "memory_mb": _always(memory(_quantized), "MB", "peak memory of a process that runs the quantized model once"),
    "memory_float_mb": _always(memory(_float), "MB", "peak memory of a process that runs the float model once"),
    "memory_ratio": _always(quotient(memory(_quantized), memory(_float)), "", "quantized peak over float peak"),
}
