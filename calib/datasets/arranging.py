"""Decides how the arrays of a file or a function divide into samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtool.calib.datasets.batching import is_one_batch_axis
from qtool.calib.datasets.matching import check_shape, described
from qtool.calib.errors import CalibError, UnequalLengthsError, WholeFeedError
from qtool.calib.specs import Array, TensorSpec


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the arrays of one mapping divide into samples.

    Attributes:
        rows: samples along the first axis of every array, or None for one whole feed that cannot be divided.
        lifted: inputs whose arrays are one sample without the sample axis, which has to be added.
    """

    rows: int | None
    lifted: frozenset[str]

    def apply(self, name: str, value: Array) -> Array:
        """Returns an array with its sample axis."""
        return value[None] if name in self.lifted else value


def arrange(
    shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[TensorSpec], *, batch_size: int, where: str
) -> Arrangement:
    """Matches the shapes of one mapping of arrays with the inputs, by rank first.

    An array with the rank of its input holds samples along its first axis; one with a rank less is one sample. Where
    the inputs share no batch axis, the arrays are one whole feed.

    Raises:
        CalibError: a rank or a dimension does not fit, or the arrays differ in length.
        WholeFeedError: a batch size above 1 is requested for a whole feed.
    """
    lifted = frozenset(spec.name for spec in inputs if spec.shape and len(shapes[spec.name]) == len(spec.shape) - 1)
    full = {spec.name: (1, *shapes[spec.name]) if spec.name in lifted else shapes[spec.name] for spec in inputs}
    for spec in inputs:
        check_shape(full[spec.name], spec, where)
    lengths = {spec.name: full[spec.name][0] for spec in inputs if full[spec.name]}
    if len(lengths) == len(inputs) and is_one_batch_axis(inputs):
        if len(set(lengths.values())) == 1:
            return Arrangement(next(iter(lengths.values())), lifted)
        if len({spec.shape[0] if spec.shape else None for spec in inputs}) == 1:
            listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
            raise UnequalLengthsError(
                f"the arrays in {where} differ in length: {listed}", fix="give each one row per sample"
            )
    _check_whole(full, inputs, batch_size, where)
    return Arrangement(None, lifted)


def _check_whole(
    shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[TensorSpec], batch_size: int, where: str
) -> None:
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], int) and shapes[spec.name][0] != spec.shape[0]:
            raise CalibError(
                f"array '{spec.name}' in {where} has the shape {shapes[spec.name]}, the input {described(spec)}",
                fix="store the whole value of the input, or one sample without the first axis",
            )
    if batch_size > 1:
        raise WholeFeedError(
            f"the inputs of the model share no batch axis, so {where} is one whole feed",
            fix="use a batch size of 1",
        )
