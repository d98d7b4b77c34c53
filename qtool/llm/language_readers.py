"""How figures of language models are taken from a comparison of two models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from qtool.llm.language_figures import TokenTimes
from qtool.llm.mean_interval import Estimate
from qtool.llm.perplexity import LanguageScore
from qtool.metrics.latency import Interval
from qtool.reporting.figure_readers import Read, Side, measured
from qtool.reporting.model import Measured, ModelComparison

Unit: TypeAlias = Literal["%", ""]


def perplexity(side: Side) -> Read:
    """Returns the perplexity of one of the models."""

    def read(comparison: ModelComparison) -> Measured:
        return _measured(side(comparison).perplexity, 1.0)

    return read


def of_language(choose: Callable[[LanguageScore], Estimate], unit: Unit) -> Read:
    """Returns what a text says of both models together, shares in percent."""

    def read(comparison: ModelComparison) -> Measured:
        score = comparison.language
        return _measured(None if score is None else choose(score), 100.0 if unit == "%" else 1.0)

    return read


def of_times(side: Side, choose: Callable[[TokenTimes], Interval]) -> Read:
    """Returns how fast one of the models takes a prompt, or adds to it."""

    def interval(comparison: ModelComparison) -> Interval | None:
        times = side(comparison).token_times
        return None if times is None else choose(times)

    return measured(interval)


def _measured(found: Estimate | None, factor: float) -> Measured:
    if found is None:
        return Measured(value=None)
    return Measured(value=factor * found.value, low=factor * found.low, high=factor * found.high)
