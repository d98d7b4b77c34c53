"""Differences between the outputs of a converted graph and those of its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qtool.calib.specs import Array
from qtool.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """The difference of one output from the reference.

    Attributes:
        output: its name in the converted graph.
        absolute: the largest difference of two values, of any type.
        relative: the same, divided by the reference's largest value; for integers and booleans, the share of
            values that differ.
    """

    output: str
    absolute: float
    relative: float


def output_differences(expected: Sequence[Array], result: Mapping[str, Array]) -> tuple[OutputDifference, ...]:
    """Compares the outputs of a converted graph with those of its source, in order.

    Raises:
        InputError: their number or a shape differs, or values are not finite.
    """
    if len(expected) != len(result):
        raise InputError(
            f"the converted graph has {len(result)} outputs, the model {len(expected)}",
            fix="let the model return its tensors only, each once",
        )
    return tuple(
        _difference(name, reference, value) for reference, (name, value) in zip(expected, result.items(), strict=True)
    )


def _difference(name: str, expected: Array, value: Array) -> OutputDifference:
    # A module that squeezes a single sample has one axis less than the graph, with the same values.
    if expected.size != value.size:
        raise InputError(
            f"output '{name}' of the converted graph has the shape {value.shape}, the model's {expected.shape}",
            fix="give --input-shape without names for dimensions that the model's code fixes",
        )
    if expected.size == 0:
        return OutputDifference(output=name, absolute=0.0, relative=0.0)
    if expected.dtype.kind not in "fiub":  # strings are equal or not
        share = float(np.mean(expected.reshape(-1) != value.reshape(-1)))
        return OutputDifference(output=name, absolute=share, relative=share)
    left, right = expected.reshape(-1).astype(np.float64), value.reshape(-1).astype(np.float64)
    finite = np.isfinite(left)
    if not finite.any():
        raise InputError(
            f"output '{name}' of the model has no finite value",
            fix="check the weights, and pass real inputs with --calib-data",
        )
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True) or not np.isfinite(right[finite]).all():
        raise InputError(
            f"output '{name}' of the converted graph is NaN or infinite where the model's is not",
            fix="pass real inputs with --calib-data, or convert with another --opset",
        )
    distance = np.abs(left[finite] - right[finite])
    if expected.dtype.kind != "f":
        relative = float(np.mean(distance != 0))
    else:
        relative = float(distance.max() / max(np.abs(left[finite]).max(), np.finfo(np.float32).tiny))
    return OutputDifference(output=name, absolute=float(distance.max()), relative=relative)
