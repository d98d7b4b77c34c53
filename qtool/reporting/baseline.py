"""Compares a report with an earlier one, and lists regressions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtool.errors import InputError, UsageError
from qtool.reporting.figures import FIGURES
from qtool.reporting.gates import shown
from qtool.reporting.json import SCHEMA
from qtool.reporting.model import Measured, ModelComparison, Outcome, Report, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When a figure counts as worse than it was.

    Attributes:
        higher_is_better: which way is worse.
        slack: how much worse it may become, in the figure's unit.
        share: how much worse it may become, as a share of what it was.
    """

    higher_is_better: bool
    slack: float = 0.0
    share: float = 0.0


# Times in milliseconds are left out, since another machine or load changes them independently of the model.
RULES: Mapping[str, Rule] = {
    "sqnr_db": Rule(higher_is_better=True, slack=0.5),
    "agreement": Rule(higher_is_better=True, slack=0.5),
    "equal_values": Rule(higher_is_better=True, slack=0.5),
    "non_finite": Rule(higher_is_better=False),
    "top1": Rule(higher_is_better=True, slack=0.2),
    "top5": Rule(higher_is_better=True, slack=0.2),
    "metric_drop": Rule(higher_is_better=False, slack=0.005),
    "perplexity_rise": Rule(higher_is_better=False, slack=0.2),
    "kl": Rule(higher_is_better=False, share=0.05),
    "same_token": Rule(higher_is_better=True, slack=0.5),
    "prefill_speedup": Rule(higher_is_better=True),
    "decode_speedup": Rule(higher_is_better=True),
    "speedup": Rule(higher_is_better=True),
    "size_ratio": Rule(higher_is_better=False, share=0.01),
    "memory_ratio": Rule(higher_is_better=False, share=0.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier report.

    Attributes:
        path: the file it was read from.
        samples: how many samples it was measured on, by the name of the dataset.
        models: the figures of each quantized model, by the model's name, on each dataset, by its name.
    """

    path: Path
    samples: Mapping[str, int]
    models: Mapping[str, Mapping[str, Mapping[str, Measured]]]


def read_baseline(path: Path) -> Baseline:
    """Reads a report that ``--json`` wrote.

    Raises:
        InputError: it is not such a report.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(document["schema"])
        return _baseline(path, document)
    except OSError as error:
        raise InputError(f"there is no report at {path}", fix="write one with `qtool report -o old.json`") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path} is not a report of the schema {SCHEMA}", fix="write it again with `qtool report -o old.json`"
        ) from error


def regressions(report: Report, baseline: Baseline) -> tuple[Verdict, ...]:
    """Judges every figure of RULES that both reports have.

    A figure with a confidence interval is worse only where the whole interval lies beyond that of the earlier one.

    Raises:
        InputError: the earlier report is on other data.
        UsageError: it has none of the models.
    """
    samples = {dataset.name: dataset.samples for dataset in report.datasets}
    if samples != baseline.samples:
        raise InputError(
            f"{baseline.path} is a report on {_counted(baseline.samples)}, this one on {_counted(samples)}",
            fix="compare reports on the same data",
        )
    verdicts: list[Verdict] = []
    several = len(report.datasets) > 1
    for place, dataset in enumerate(report.datasets):
        for comparison, before in _matched(report.on(dataset), baseline):
            for figure in RULES:
                # Figures measured once per model are compared once.
                of_data = several and FIGURES[figure].of_data
                now, then = comparison.figures.get(figure), before.get(dataset.name, {}).get(figure)
                if now is None or then is None or now.value is None or then.value is None or (place and not of_data):
                    continue
                verdict = _verdict(comparison.quantized_model.name, figure, now, then, baseline.path.name)
                verdicts.append(replace(verdict, dataset=dataset.name) if of_data else verdict)
    return tuple(verdicts)


def _baseline(path: Path, document: Mapping[str, Any]) -> Baseline:
    # Reports of one dataset did not always list it.
    used = document.get("datasets") or [{"name": Path(document["data"]).name, "samples": document["samples"]}]
    samples = {str(dataset["name"]): int(dataset["samples"]) for dataset in used}
    models: dict[str, dict[str, dict[str, Measured]]] = {}
    for model in document["quantized_models"]:
        of_data = models.setdefault(str(model["name"]), {})
        of_data[str(model.get("dataset", next(iter(samples))))] = _figures(model)
    return Baseline(path=path, samples=samples, models=models)


def _counted(samples: Mapping[str, int]) -> str:
    return " and ".join(f"{count} samples of {name}" for name, count in samples.items())


def _matched(
    comparisons: Sequence[ModelComparison], baseline: Baseline
) -> list[tuple[ModelComparison, Mapping[str, Mapping[str, Measured]]]]:
    if len(comparisons) == len(baseline.models) == 1:
        # A single model is compared even if its file was renamed.
        return [(comparisons[0], next(iter(baseline.models.values())))]
    names = [comparison.quantized_model.name for comparison in comparisons]
    found = [
        (comparison, baseline.models[name])
        for comparison, name in zip(comparisons, names, strict=True)
        if name in baseline.models
    ]
    if not found:
        raise UsageError(
            f"{baseline.path} is about {', '.join(baseline.models)}, and not about {', '.join(names)}",
            fix="compare reports on models of the same names",
        )
    return found


def _verdict(model: str, figure: str, now: Measured, then: Measured, source: str) -> Verdict:
    rule = RULES[figure]
    was, value = then.value or 0.0, now.value or 0.0
    room = rule.slack + rule.share * abs(was) if math.isfinite(was) else 0.0
    # The ends that speak for the model.
    best = (now.high if rule.higher_is_better else now.low) if now.low is not None else value
    held = (then.low if rule.higher_is_better else then.high) if then.low is not None else was
    if best is None or held is None or math.isnan(value):
        worse = at_value = True
    else:
        worse = best < held - room if rule.higher_is_better else best > held + room
        at_value = value < was - room if rule.higher_is_better else value > was + room
    outcome: Outcome = "failed" if worse else "unproven" if at_value else "passed"
    direction = "below" if rule.higher_is_better else "above"
    return Verdict(
        model=model,
        condition=f"{figure} {direction} {source}",
        outcome=outcome,
        message=f"{figure} is {shown(figure, now)}, and was {shown(figure, then)} in {source}",
    )


def _figures(model: Mapping[str, Any]) -> dict[str, Measured]:
    intervals = model["intervals"]
    found = {}
    for name, value in model["figures"].items():
        low, high = intervals.get(name, (None, None))
        if name in FIGURES:
            found[name] = Measured(value=_number(value), low=_number(low), high=_number(high))
    fidelity = model["fidelity"]
    if found["sqnr_db"].value is None and fidelity and all(output["identical"] for output in fidelity):
        found["sqnr_db"] = Measured(value=math.inf)
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
