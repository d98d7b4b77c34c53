"""Joins the declared inputs of a stored program with the shapes given by the user."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qtool.formats.errors import FormatError
from qtool.formats.torch.example_inputs import InputSpec, Length

Shape = tuple[int | str, ...]


def with_shapes(stored: Sequence[InputSpec], shapes: Mapping[str, Shape] | None) -> tuple[InputSpec, ...]:
    """Returns the inputs with the names and lengths of ``shapes`` instead of free dimensions.

    Raises:
        FormatError: there is no such input, or it does not support such lengths.
    """
    if not shapes:
        return tuple(stored)
    by_name = {spec.name: spec for spec in stored}
    if len(stored) == len(shapes) == 1:
        # The only input matches any name.
        ((name, shape),) = shapes.items()
        return (replace(_joined(stored[0], shape), name=name),)
    for name in shapes:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.0)[0]
            raise FormatError(
                f"the program has no input '{name}' (it has {', '.join(by_name)})",
                fix=f"write --input-shape {near}=…",
            )
    return tuple(_joined(spec, shapes[spec.name]) if spec.name in shapes else spec for spec in stored)


def _joined(spec: InputSpec, shape: Shape) -> InputSpec:
    if len(shape) != len(spec.dims):
        raise _misfit(spec, f"has {len(spec.dims)} dimensions, not {len(shape)}")
    lengths: dict[str, Length] = {}
    for axis, (given, known) in enumerate(zip(shape, spec.dims, strict=True)):
        if isinstance(known, int):
            if given != known:
                raise _misfit(spec, f"has a length of exactly {known} in axis {axis}")
            continue
        rule = spec.lengths.get(known)
        if rule is not None and isinstance(given, int) and not rule.allows(given):
            raise _misfit(spec, f"takes lengths {rule} in axis {axis}, not {given}")
        if rule is not None and isinstance(given, str):
            lengths[given] = rule
    return replace(spec, dims=tuple(shape), lengths=lengths)


def _misfit(spec: InputSpec, said: str) -> FormatError:
    return FormatError(
        f"the input '{spec.name}' of the program {said}",
        fix=f"write --input-shape {spec.name}={','.join(map(str, spec.dims))}, or leave it out",
    )
