"""A machine's kernel costs, which a search uses instead of a clock, so that its choices are reproducible.

A kernel's time is modelled as proportional to its multiply-adds or its elements, plus a constant per node.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from qtool.errors import InputError

SCHEMA = "qtool.profile/1"
_MEASURE_AGAIN = "measure it again with `qtool doctor --machine-profile FILE`"


class LayerKind(StrEnum):
    """Kinds of layers with kernels of different speed in onnxruntime."""

    CONV = "conv"
    POINTWISE = "pointwise conv"
    NARROW = "conv of few channels"
    DEPTHWISE = "depthwise conv"
    LARGE_DEPTHWISE = "depthwise conv, large kernel"
    CONV_1D = "1-D conv"
    MATRIX = "product with a matrix"
    VECTOR = "product of one row with a matrix"
    ACTIVATIONS = "product of activations"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpeed:
    """The time of a multiply-add in each form of a layer, in nanoseconds, with all threads.

    Attributes:
        floats: in float32.
        signed: u8 activations by s8 weights.
        unsigned: u8 activations by u8 weights, whose sums have 32 bits everywhere.
    """

    floats: float
    signed: float
    unsigned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpeed:
    """The time of an element of an operator between layers, in nanoseconds.

    Attributes:
        floats: in float32.
        integers: in u8.
    """

    floats: float
    integers: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProfile:
    """The cost of kernels on one machine.

    Attributes:
        origin: the source of the figures: ``measured``, or the target that they are shipped for.
        threads: threads inside an operator; 0 is one per core.
        layers: by kind of layer; of a profile that was measured for one model, those it has.
        operators: by type of operator, likewise.
        quantize: nanoseconds to quantize an element.
        dequantize: nanoseconds to dequantize an element.
        transpose: nanoseconds to move an integer between channels first and channels last.
        reorder: nanoseconds to move a float between channels first and blocks of channels.
        node: constant nanoseconds per node.
    """

    origin: str
    threads: int
    layers: Mapping[LayerKind, LayerSpeed]
    operators: Mapping[str, OperatorSpeed]
    quantize: float
    dequantize: float
    transpose: float
    reorder: float
    node: float

    def as_json(self) -> dict[str, Any]:
        """Returns the profile as values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def profile_from_json(document: Any, source: str, *, kinds: Collection[LayerKind] = tuple(LayerKind)) -> MachineProfile:
    """Reads what ``as_json`` wrote.

    Args:
        document: the values.
        source: its name in errors.
        kinds: the layers that it must have; that of one model's run has that model's.

    Raises:
        InputError: it is not a complete profile.
    """
    try:
        if document["schema"] != SCHEMA:
            raise InputError(
                f"{source} has the schema {document['schema']}, this qtool reads {SCHEMA}",
                fix=_MEASURE_AGAIN,
            )
        layers = {LayerKind(kind): LayerSpeed(**_positive(speed)) for kind, speed in document["layers"].items()}
        if not layers.keys() >= set(kinds):
            raise ValueError("a kind of layer is missing")
        figures = {name: float(document[name]) for name in ("quantize", "dequantize", "transpose", "reorder", "node")}
        return MachineProfile(
            origin=str(document["origin"]),
            threads=int(document["threads"]),
            layers=layers,
            operators={name: OperatorSpeed(**_positive(speed)) for name, speed in document["operators"].items()},
            **figures,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{source} is not a complete machine profile",
            fix=_MEASURE_AGAIN,
        ) from error


def read_profile(path: Path) -> MachineProfile:
    """Reads a profile from a file.

    Raises:
        InputError: it is not a complete profile.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a machine profile: {error}", fix="name a file that qtool wrote") from error
    return profile_from_json(document, str(path))


def _positive(figures: Mapping[str, Any]) -> dict[str, float]:
    found = {name: float(value) for name, value in figures.items()}
    if any(not value > 0.0 for value in found.values()):
        raise ValueError("times must be above zero")
    return found
