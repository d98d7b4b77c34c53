"""Checks arrays against the inputs of a model, with lossless casts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

from qtool.calib.errors import CalibError
from qtool.calib.specs import Array, TensorSpec


def only_input(inputs: Sequence[TensorSpec], where: str) -> TensorSpec:
    """Returns the only input of the model, for data without names.

    Raises:
        CalibError: the model has several inputs.
    """
    if len(inputs) == 1:
        return inputs[0]
    names = ", ".join(f"'{spec.name}'" for spec in inputs)
    keywords = ", ".join(f"{spec.name}=..." for spec in inputs)
    raise CalibError(
        f"{where} holds one input, the model has {len(inputs)}: {names}",
        fix=f"store the arrays by name: numpy.savez('data.npz', {keywords})",
    )


def check_names(inputs: Sequence[TensorSpec], available: Iterable[str], where: str) -> None:
    """Checks that each input has an array of its name; names with a leading ``_`` are never inputs.

    Raises:
        CalibError: an input has no array; the fix names the nearest one.
    """
    names = [name for name in available if not name.startswith("_")]
    wanted = {spec.name for spec in inputs}
    for spec in inputs:
        if spec.name in names:
            continue
        spare = [name for name in names if name not in wanted]
        if not spare:
            fix = f"add an array '{spec.name}' with one row per sample"
        else:
            near = difflib.get_close_matches(spec.name, spare, n=1, cutoff=0.0)[0]
            fix = f"rename '{near}' to '{spec.name}'"
            if len(spare) > 1:
                fix += f" (unused arrays: {', '.join(spare)})"
        raise CalibError(f"no array '{spec.name}' in {where}", fix=fix)


def check_dtype(stored: np.dtype[np.generic], spec: TensorSpec, where: str) -> None:
    """Rejects element types that cannot be cast to the input's.

    Floats are cast to floats, integers and booleans to integers and booleans (the values are checked later), text to
    text.

    Raises:
        CalibError: the kinds differ.
    """
    wanted = spec.dtype
    kinds = {"f": "f", "i": "iub", "u": "iub", "b": "iub", "O": "OUS"}.get(wanted.kind, wanted.kind)
    if stored.kind in kinds:
        return
    problem = f"array '{spec.name}' in {where} is {stored}, the input is {wanted}"
    if wanted.kind == "f" and stored == np.uint8:
        fix = "scale them as in training, for example x.astype('float32') / 255, and store the result"
    elif wanted.kind == "f" and stored.kind in "iub":
        fix = f"store it as floats on the scale of the training data: x.astype('{wanted}')"
    elif wanted.kind in "iu" and stored.kind == "f":
        fix = f"store the integers themselves: numpy.rint(x).astype('{wanted}')"
    else:
        fix = f"store it as {wanted}"
    raise CalibError(problem, fix=fix)


def check_shape(shape: tuple[int, ...], spec: TensorSpec, where: str) -> None:
    """Compares a batch's shape with the input's, except for the first axis.

    Raises:
        CalibError: the rank or a fixed dimension differs.
    """
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise CalibError(
            f"array '{spec.name}' in {where} has {_axes(len(shape))} {shape}, the input {_axes(len(spec.shape))} "
            f"{described(spec)}",
            fix="store one row per sample, so that the axes after the first are those of the input",
        )
    for axis, (have, want) in enumerate(zip(shape, spec.shape, strict=True)):
        if axis and isinstance(want, int) and have != want:
            raise CalibError(
                f"array '{spec.name}' in {where} has the shape {shape}, the input {described(spec)}: "
                f"axis {axis} is {have} instead of {want}",
                fix=_shape_fix(shape, spec.shape),
            )


def conform(batch: Array, spec: TensorSpec, where: str, sample: int) -> Array:
    """Returns the batch in the input's dtype; raises an error if a value does not fit.

    Args:
        batch: rows of the array.
        spec: their input.
        where: the data's name, for errors.
        sample: the number of the batch's first sample, from 0.

    Raises:
        CalibError: a value is NaN or infinite, or does not fit the input's type.
    """
    wanted = spec.dtype
    if wanted.kind in "iub":
        return _as_integers(batch, spec, where, sample)
    if wanted.kind != "f":
        return batch.astype(wanted) if batch.dtype != wanted else batch
    with np.errstate(over="ignore"):  # an overflow becomes infinite and is reported below
        result = np.ascontiguousarray(batch, dtype=wanted)
    finite = np.isfinite(result)
    if finite.all():
        return result
    first = tuple(int(index[0]) for index in np.nonzero(~np.atleast_1d(finite)))
    value = np.atleast_1d(batch)[first]
    at = sample + first[0] if batch.ndim else sample
    if np.isfinite(value):
        raise CalibError(
            f"array '{spec.name}' in {where}, sample {at}: {value} does not fit into {wanted}",
            fix="scale the data as for training",
        )
    raise CalibError(
        f"array '{spec.name}' in {where}, sample {at}, holds {value}",
        fix="remove the sample, or correct the data's source",
    )


def described(spec: TensorSpec) -> str:
    """Formats an input's shape as ``(batch, 3, 224, 224)``, with ``?`` where a dimension is unknown."""
    dims = ["?" if dim is None else str(dim) for dim in spec.shape or ()]
    return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


def _as_integers(batch: Array, spec: TensorSpec, where: str, sample: int) -> Array:
    wanted = spec.dtype
    if batch.dtype == wanted:
        return np.asarray(batch, order="C")
    result = np.asarray(batch.astype(wanted), order="C")
    if np.can_cast(batch.dtype, wanted, "safe") or batch.size == 0:
        return result
    # Compared as Python integers: numpy would convert int64 and uint64 to float64.
    low, high = (0, 1) if wanted.kind == "b" else (int(np.iinfo(wanted).min), int(np.iinfo(wanted).max))
    rows = np.atleast_1d(batch)
    for row in range(len(rows)):
        for value in (int(rows[row].min()), int(rows[row].max())) if rows[row].size else ():
            if not low <= value <= high:
                at = sample + row if batch.ndim else sample
                raise CalibError(
                    f"array '{spec.name}' in {where}, sample {at}: {value} does not fit into {wanted}",
                    fix=f"keep the values between {low} and {high}",
                )
    return result


def _axes(rank: int) -> str:
    return "1 axis" if rank == 1 else f"{rank} axes"


def _shape_fix(shape: tuple[int, ...], wanted: tuple[int | str | None, ...]) -> str:
    for order in ((0, 3, 1, 2), (0, 2, 3, 1)) if len(shape) == 4 else ():
        moved = tuple(shape[axis] for axis in order)
        if all(not isinstance(want, int) or have == want for have, want in zip(moved[1:], wanted[1:], strict=True)):
            return f"the axes are in another order: store x.transpose{order}"
    return "store the samples in the shape of the input, or export the model with that dimension left free"
