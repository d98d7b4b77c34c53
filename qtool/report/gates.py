"""Conditions under which a report counts as failed, such as ``top1_drop > 0.5``."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from qtool.errors import GateError, UsageError
from qtool.report.figures import FIGURES, figures
from qtool.report.model import Report

Operator: TypeAlias = Literal["<", "<=", ">", ">=", "==", "!="]

_COMPARE: Mapping[Operator, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
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
        """The figure's name among ``figures(report)``."""
        return self.figure if self.output is None else f"{self.figure}[{self.output}]"

    def __str__(self) -> str:
        return f"{self.name} {self.operator} {str(self.limit).removesuffix('.0')}"

    def trips(self, value: float) -> bool:
        """Tells whether ``value`` fails the report; NaN always does."""
        return math.isnan(value) or _COMPARE[self.operator](value, self.limit)


def parse_gate(text: str) -> Gate:
    """Reads ``FIGURE OPERATOR NUMBER``, such as ``speedup < 1.3`` or ``sqnr_db[boxes] < 20``.

    Raises:
        UsageError: it has another form, or the figure is unknown.
    """
    found = _FORM.fullmatch(text)
    limit = None if found is None else _number(found["limit"])
    if found is None or limit is None:
        raise UsageError(
            f"'{text}' is no condition",
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


def check_gates(gates: Iterable[Gate], *, outputs: Sequence[str], labels: bool, latency: bool) -> None:
    """Refuses gates that no report on this data could judge, before anything runs.

    Args:
        gates: what is to be judged.
        outputs: the names of the models' outputs.
        labels: whether there are labels.
        latency: whether latency is to be measured.

    Raises:
        UsageError: a gate needs what is not there.
    """
    for gate in gates:
        need = FIGURES[gate.figure].need
        if need == "labels" and not labels:
            raise UsageError(
                f"'{gate}' needs labels and the data has none",
                fix="name the array of class indices with --labels, or store it as '_label'",
            )
        if need == "latency" and not latency:
            raise UsageError(f"'{gate}' needs the latency, which is not measured", fix="leave --no-latency out")
        if gate.output is not None and gate.output not in outputs:
            near = difflib.get_close_matches(gate.output, outputs, n=1, cutoff=0.0)[0]
            raise UsageError(
                f"'{gate}': the models have no output '{gate.output}'",
                fix=f"did you mean '{near}'? all of them: {', '.join(outputs)}",
            )


def enforce(report: Report, gates: Sequence[Gate]) -> None:
    """Judges ``report``.

    Raises:
        GateError: a gate trips; the problem lists every one that does, with the figure and by how much it misses.
        UsageError: the report lacks a figure.
    """
    values = figures(report)
    if len(report.fidelity) == 1:
        only = report.fidelity[0].name
        values |= {f"{name}[{only}]": values[name] for name, figure in FIGURES.items() if figure.of_output}
    missed = []
    for gate in gates:
        value = values[gate.name]
        if value is None:
            raise UsageError(f"this report has no figure '{gate.name}' to judge '{gate}' by", fix=_why_missing(gate))
        if gate.trips(value):
            missed.append(_describe(gate, value))
    if missed:
        count = "a figure misses its gate" if len(missed) == 1 else f"{len(missed)} figures miss their gates"
        raise GateError(
            f"{count}: {'; '.join(missed)}",
            fix="change how the model is quantized (qtool quantize --help), or the limit",
        )


def _describe(gate: Gate, value: float) -> str:
    if math.isnan(value):
        return f"{gate.name} is not a number, because the outputs hold NaN or infinite values (fails if {gate})"
    unit = FIGURES[gate.figure].unit
    text = f"{gate.name} is {value:.5g}{'' if unit in ('', 'x') else ' '}{unit} (fails if {gate}"
    return text + (")" if value == gate.limit else f", missed by {abs(value - gate.limit):.3g})")


def _why_missing(gate: Gate) -> str:
    if gate.figure.startswith("top5"):
        return "top-5 takes more than five classes: use top1"
    if gate.figure.startswith("memory"):
        return "the memory could not be measured here: leave this gate out"
    if gate.figure == "agreement":
        return "it takes a float output of the shape (samples, classes): use sqnr_db or cosine"
    if gate.figure == "equal_values":
        return "it takes an output of integers: use sqnr_db or cosine"
    return "the models have no float output to compare: use equal_values"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
