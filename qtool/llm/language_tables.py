"""Tables of a report on language models: what a text says of them, and what they say themselves."""

from __future__ import annotations

from qtool.reporting.model import Measured, Report
from qtool.reporting.table_form import NONE, Table

_LONGEST_TEXT = 400


def language_table(report: Report) -> Table:
    """Lays out how far each model is from its float model on each text, with 99 % confidence intervals."""
    several, datasets = len(report.by_model) > 1, len(report.datasets) > 1
    rows = []
    for comparison in report.comparisons:
        if comparison.language is None:
            continue
        figures = comparison.figures
        rows.append(
            (
                comparison.quantized_model.name,
                comparison.dataset,
                with_interval(figures["perplexity_rise"], "+.2f", " %"),
                with_interval(figures["kl"], ".4f", " nats"),
                with_interval(figures["same_token"], ".2f", " %"),
            )
        )
    columns = ("model", "text", "rise of perplexity", "KL divergence", "same greedy token")
    kept = [place for place in range(len(columns)) if (several, datasets, True, True, True)[place]]
    counted = [f"{dataset.tokens:,} tokens of {dataset.name}" for dataset in report.datasets if dataset.tokens]
    return Table(
        title="Next tokens beside those of the float model",
        columns=tuple(columns[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in rows),
        caption=f"{' and '.join(counted)}, with 99 % confidence intervals",
    )


def answers_table(report: Report) -> Table:
    """Lays out how the models go on with each prompt, side by side."""
    rows = []
    for place, first in enumerate(report.by_model[0].answers):
        rows.append((_shown(first.prompt), "float", NONE, _shown(first.float_text)))
        for comparison in report.by_model:
            answer = comparison.answers[place]
            same = f"{answer.same_tokens} of {answer.tokens}"
            rows.append(("", comparison.quantized_model.name, same, _shown(answer.text)))
    return Table(
        title="What the models say",
        columns=("prompt", "model", "same tokens", "goes on with"),
        rows=tuple(rows),
        caption="the most likely token at each step; same tokens: before it parts from float",
    )


def with_interval(figure: Measured, form: str, unit: str) -> str:
    """Returns a figure with its confidence interval, where it has one."""
    if figure.value is None:
        return NONE
    text = f"{figure.value:{form}}{unit}"
    return text if figure.low is None else f"{text} ({figure.low:{form}} to {figure.high:{form}})"


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"
