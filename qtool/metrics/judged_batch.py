"""The inputs of task metrics, and calls of user-defined functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qtool.calib.specs import Array
from qtool.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The input of a metric.

    Attributes:
        outputs: of the evaluated model.
        reference: of the float model.
        inputs: what both ran on.
        labels: one entry per sample; None without labels.
        rows: how many samples these are.
    """

    outputs: Mapping[str, Array]
    reference: Mapping[str, Array]
    inputs: Mapping[str, Array]
    labels: Array | None
    rows: int


class MetricMeter(Protocol):
    """Evaluates one model batch by batch."""

    def add(self, batch: Batch) -> None:
        """Adds one batch; an InputError says that the metric does not fit the outputs or the labels."""

    def result(self) -> float:
        """Returns the score so far; there has to be a sample."""


def called_with(name: str, function: Callable[..., Any], *arguments: Any, wanted: str) -> Any:
    """Returns the result of the user's function.

    Args:
        name: what errors call it.
        function: what to call.
        arguments: what it gets.
        wanted: what it must return, for the error.

    Raises:
        InputError: the function raises something.
    """
    try:
        return function(*arguments)
    except Exception as error:  # the user's function may raise anything
        raise InputError(
            f"{name} raises {type(error).__name__}: {' '.join(str(error).split())}",
            fix=f"correct the function: it {wanted}",
        ) from error
