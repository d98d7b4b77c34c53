"""Conditions under which a report counts as failed, such as ``top1_drop > 0.5``."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, cast

from qtool.errors import GateError, UsageError
from qtool.reporting.figures import FIGURES
from qtool.reporting.model import Measured, ModelComparison, Outcome, Report, Verdict

Operator: TypeAlias = Literal["<", "<=", ">", ">=", "==", "!="]

_COMPARE: Mapping[Operator, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
# With fewer rounds, a confidence interval is no wider than the rounds by chance are.
_FEWEST_ROUNDS = 8
_TIMED = ("latency", "token times")
_FORM = re.compile(
    r"\s*(?P<figure>\w+)(\[(?P<output>.+)\])?\s*(?P<operator><=|>=|==|!=|<|>)\s*(?P<limit>[^\s<>=!]+)\s*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition that fails a report.

    Attributes:
        figure: a name out of ``FIGURES``.
        output: the output whose figure is meant, None for the figure over all outputs.
        operator: how the figure is compared with the limit.
        limit: the number it is compared with.
    """

    figure: str
    output: str | None = None
    operator: Operator
    limit: float

    @property
    def name(self) -> str:
        """The figure's name among a comparison's figures."""
        return self.figure if self.output is None else f"{self.figure}[{self.output}]"

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {str(self.limit).removesuffix('.0')}"

    def trips(self, found: Measured) -> bool:
        """Returns whether ``found`` fails the report, wherever in its interval it lies; NaN always does."""
        if found.value is None or math.isnan(found.value):
            return True
        low = found.value if found.low is None else found.low
        high = found.value if found.high is None else found.high
        if self.operator == "!=":
            return not low <= self.limit <= high
        compare = _COMPARE[self.operator]
        return compare(low, self.limit) and compare(high, self.limit)


def parse_gate(text: str) -> Gate:
    """Reads ``FIGURE OPERATOR NUMBER``, such as ``speedup < 1.3`` or ``sqnr_db[boxes] < 20``.

    Raises:
        UsageError: it has another form, or the figure is unknown.
    """
    found = _FORM.fullmatch(text)
    limit = None if found is None else _number(found["limit"], found["figure"])
    if found is None or limit is None:
        raise UsageError(
            f"'{text}' is not a condition",
            fix="write a figure, one of < <= > >= == !=, and a number: --fail-if 'top1_drop > 0.5'",
        )
    name = found["figure"]
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"a report has no figure '{name}'", fix=f"did you mean '{near}'? all of them: {', '.join(FIGURES)}"
        )
    output = found["output"]
    if output is not None and FIGURES[name].of_output is None:
        raise UsageError(f"'{name}' is a figure of the models, not of an output", fix=f"write '{name}' without [...]")
    return Gate(figure=name, output=output, operator=cast("Operator", found["operator"]), limit=limit)


def check_gates(
    gates: Iterable[Gate],
    *,
    outputs: Sequence[str],
    labels: bool,
    rounds: int,
    cold_start: bool = False,
    metric: bool = False,
    text: bool = False,
    data: str = "the data",
) -> None:
    """Rejects gates that no report on this data could evaluate, before anything runs.

    Args:
        gates: the gates.
        outputs: the names of the models' outputs.
        labels: whether there are labels.
        rounds: rounds of the latency measurement; 0 where it is not to be measured.
        cold_start: whether the time to the first result is to be measured.
        metric: whether there is a metric.
        text: whether the data is text.
        data: what errors call the data.

    Raises:
        UsageError: a gate needs what is not there.
    """
    for gate in gates:
        need, noisy = FIGURES[gate.figure].need, FIGURES[gate.figure].noisy
        if need == "labels" and not labels:
            raise UsageError(
                f"'{gate}' needs labels and {data} has none",
                fix="name the array of class indices with --labels, or store it as '_label'",
            )
        if need in ("text", "token times") and not text:
            raise UsageError(
                f"'{gate}' needs text, and {data} is none", fix="give a .txt file with --data, and a language model"
            )
        if need in _TIMED and not rounds:
            raise UsageError(f"'{gate}' needs the latency, which is not measured", fix="leave --no-latency out")
        if need == "metric" and not metric:
            raise UsageError(f"'{gate}' needs a metric", fix="name it with --metric")
        if need == "cold start" and not cold_start:
            raise UsageError(f"'{gate}' needs the cold start, which is not measured", fix="add --cold-start")
        if need in _TIMED and noisy and rounds < _FEWEST_ROUNDS:
            raise UsageError(
                f"'{gate}' cannot be decided by {rounds} rounds",
                fix=f"give at least --rounds {_FEWEST_ROUNDS}; 25 is the default",
            )
        if gate.output is not None and gate.output not in outputs:
            near = difflib.get_close_matches(gate.output, outputs, n=1, cutoff=0.0)[0]
            raise UsageError(
                f"'{gate}': the models have no output '{gate.output}'",
                fix=f"did you mean '{near}'? all of them: {', '.join(outputs)}",
            )


def judge_all(report: Report, gates: Iterable[Gate]) -> tuple[Verdict, ...]:
    """Returns the verdicts of all gates on every quantized model: per dataset, or once for figures of the model."""
    gates = tuple(gates)
    if len(report.datasets) == 1:
        return tuple(
            verdict
            for comparison in report.comparisons
            if not comparison.is_float
            for verdict in judge(comparison, gates)
        )
    of_data = [gate for gate in gates if FIGURES[gate.figure].of_data]
    of_model = [gate for gate in gates if not FIGURES[gate.figure].of_data]
    verdicts = [
        verdict for comparison in report.by_model if not comparison.is_float for verdict in judge(comparison, of_model)
    ]
    for comparison in report.comparisons:
        if comparison.is_float:
            continue
        verdicts += [replace(verdict, dataset=comparison.dataset) for verdict in judge(comparison, of_data)]
    return tuple(verdicts)


def judge(comparison: ModelComparison, gates: Iterable[Gate]) -> tuple[Verdict, ...]:
    """Returns the verdict of each gate on one quantized model and one dataset."""
    figures = dict(comparison.figures)
    if len(comparison.fidelity) == 1:
        only = comparison.fidelity[0].name
        figures |= {f"{name}[{only}]": figures[name] for name, figure in FIGURES.items() if figure.of_output}
    return tuple(_verdict(comparison.quantized_model.name, gate, figures[gate.name]) for gate in gates)


def enforce(report: Report) -> None:
    """Raises the error of failed verdicts of ``report``.

    Raises:
        GateError: a gate trips; the problem lists every one that does, with the figure and by how much it misses.
        UsageError: the report lacks a figure.
    """
    for verdict in report.verdicts:
        if verdict.outcome == "unjudged":
            raise UsageError(told(report, verdict), fix=verdict.fix)
    missed = [told(report, verdict) for verdict in report.verdicts if verdict.outcome == "failed"]
    if missed:
        count = "a figure misses its gate" if len(missed) == 1 else f"{len(missed)} figures miss their gates"
        raise GateError(
            f"{count}: {'; '.join(missed)}",
            fix="change how the model is quantized (qtool quantize --help), or the limit",
        )


def told(report: Report, verdict: Verdict) -> str:
    """Returns the message of a verdict, with the model and the dataset where there are several."""
    about = report.described(verdict.model, verdict.dataset)
    return f"{about}: {verdict.message}" if about else verdict.message


def shown(figure: str, found: Measured) -> str:
    """Returns a figure with its unit and, where it has one, its confidence interval."""
    unit = FIGURES[figure].unit
    text = f"{found.value:.5g}{'' if unit in ('', 'x') else ' '}{unit}"
    return text if found.low is None else f"{text} ({found.low:.5g} to {found.high:.5g} with 99 % confidence)"


def _verdict(model: str, gate: Gate, found: Measured) -> Verdict:
    if found.value is None:
        return Verdict(
            model=model,
            condition=str(gate),
            outcome="unjudged",
            message=f"this report has no figure '{gate.name}' for the gate '{gate}'",
            fix=_why_missing(gate),
        )
    at_value = gate.trips(Measured(value=found.value))
    outcome: Outcome = "failed" if gate.trips(found) else "unproven" if at_value else "passed"
    return Verdict(model=model, condition=str(gate), outcome=outcome, message=_describe(gate, found, found.value))


def _describe(gate: Gate, found: Measured, value: float) -> str:
    if math.isnan(value):
        return f"{gate.name} is not a number, because the outputs hold NaN or infinite values (fails if {gate})"
    text = f"{gate.name} is {shown(gate.figure, found)} (fails if {gate}"
    if not gate.trips(found):
        return f"{text})"
    return text + (")" if value == gate.limit else f", missed by {abs(value - gate.limit):.3g})")


def _why_missing(gate: Gate) -> str:
    if gate.figure.startswith("top5"):
        return "top-5 takes more than five classes: use top1"
    if gate.figure.startswith("memory"):
        return "the memory could not be measured here: leave this gate out"
    if gate.figure.startswith("cold_start"):
        return "the processes that start cold could not be run here: leave this gate out"
    if gate.figure == "agreement":
        return "it takes a float output of the shape (samples, classes): use sqnr_db or cosine"
    if gate.figure == "equal_values":
        return "it takes an output of integers: use sqnr_db or cosine"
    if gate.figure.startswith("throughput"):
        return "text runs one row at a time: use prefill or decode"
    return "the models have no float output to compare: use equal_values"


def _number(text: str, figure: str) -> float | None:
    """Reads a limit; a percent sign may stand behind that of a figure in percent."""
    is_percent = figure in FIGURES and FIGURES[figure].unit == "%"
    try:
        value = float(text.removesuffix("%") if is_percent else text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
