"""Two models that belong together: a float model and what was made from it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calib.specs import Array, Dim, TensorSpec
from qtool.errors import InputError
from qtool.runtime.session import Session


class SessionPair:
    """Runs a float and a quantized model on the same feeds.

    Attributes:
        inputs: what both take: a dimension is fixed where one of the models fixes it.
        outputs: what both return, as the float model declares it.
    """

    def __init__(self, float_session: Session, quantized_session: Session) -> None:
        """Makes sure that the two can be compared.

        Raises:
            InputError: inputs or outputs differ in name or type, or inputs in a fixed dimension.
        """
        _check_names(float_session.inputs, quantized_session.inputs, "input")
        _check_names(float_session.outputs, quantized_session.outputs, "output")
        _check_kinds(float_session.outputs, quantized_session.outputs)
        self._float, self._quantized = float_session, quantized_session
        others = {spec.name: spec for spec in quantized_session.inputs}
        self.inputs = tuple(_common(spec, others[spec.name]) for spec in float_session.inputs)
        self.outputs = float_session.outputs

    def run(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Returns the outputs of the float and of the quantized model.

        Raises:
            RuntimeRefusedError: onnxruntime stops while it runs one of them.
        """
        return self._float.run(feeds), self._quantized.run(feeds)

    def timed(self, feeds: Mapping[str, Array]) -> tuple[Callable[[], object], Callable[[], object]]:
        """Returns what runs the float and what runs the quantized model on ``feeds``."""
        return lambda: self._float.run(feeds), lambda: self._quantized.run(feeds)


def open_pair(float_model: Path, quantized_model: Path, *, threads: int = 0) -> SessionPair:
    """Opens both models.

    Raises:
        RuntimeRefusedError: onnxruntime does not load one of them.
        InputError: they do not belong together.
    """
    return SessionPair(Session(float_model, threads=threads), Session(quantized_model, threads=threads))


def _check_names(left: Sequence[TensorSpec], right: Sequence[TensorSpec], role: str) -> None:
    ours, theirs = [spec.name for spec in left], [spec.name for spec in right]
    for have, lack, which in ((ours, theirs, "quantized"), (theirs, ours, "float")):
        for name in have:
            if name in lack:
                continue
            spare = [other for other in lack if other not in have] or lack
            near = difflib.get_close_matches(name, spare, n=1, cutoff=0.0)
            raise InputError(
                f"the {which} model has no {role} '{name}'" + (f"; the nearest is '{near[0]}'" if near else ""),
                fix="compare a model with the one that was made from it",
            )


def _check_kinds(left: Sequence[TensorSpec], right: Sequence[TensorSpec]) -> None:
    others = {spec.name: spec for spec in right}
    for spec in left:
        other = others[spec.name]
        if (spec.dtype.kind == "f") != (other.dtype.kind == "f"):
            raise InputError(
                f"the output '{spec.name}' is {spec.dtype} in the float model, {other.dtype} in the quantized one",
                fix="compare models whose outputs have the same types",
            )


def _common(spec: TensorSpec, other: TensorSpec) -> TensorSpec:
    if spec.dtype != other.dtype:
        raise InputError(
            f"the input '{spec.name}' is {spec.dtype} in the float model, {other.dtype} in the quantized one",
            fix="compare models that take the same data",
        )
    if spec.shape is None or other.shape is None:
        return spec if other.shape is None else other
    if len(spec.shape) != len(other.shape) or any(map(_clash, spec.shape, other.shape)):
        raise InputError(
            f"the input '{spec.name}' is {spec.shape} in the float model, {other.shape} in the quantized one",
            fix="compare models that take the same data",
        )
    shape = tuple(
        ours if isinstance(ours, int) else theirs for ours, theirs in zip(spec.shape, other.shape, strict=True)
    )
    return replace(spec, shape=shape)


def _clash(ours: Dim, theirs: Dim) -> bool:
    return isinstance(ours, int) and isinstance(theirs, int) and ours != theirs
