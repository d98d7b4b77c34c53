"""Makes example inputs for a program: from real data where available, otherwise from a seeded generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.formats.errors import FormatError

EXAMPLE_SEED = 20240229
# Two samples: exporters treat a length of 1 as a constant.
_BATCH = 2
# Free lengths that most networks accept: multiples of 32, all different, so that none is confused with another.
_FIRST_LENGTH, _LENGTH_STEP = 64, 32

Array: TypeAlias = npt.NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The lengths that a free dimension may have: ``factor`` · n + ``offset``, for whole n from ``low`` to ``high``.

    Attributes:
        number: the name of n; dimensions with the same n depend on each other.
        factor: the factor of n.
        offset: the constant term.
        low: the smallest n.
        high: the largest n; None for no limit.
    """

    number: str
    factor: int = 1
    offset: int = 0
    low: int = 1
    high: int | None = None

    def nearest(self, length: int) -> int:
        """Returns the n of the length that is allowed and nearest to ``length``, from above where there is one."""
        n = max(self.low, -(-(length - self.offset) // self.factor))
        return n if self.high is None else min(n, self.high)

    def of(self, n: int) -> int:
        """Returns the length that belongs to n."""
        return self.factor * n + self.offset

    def allows(self, length: int) -> bool:
        """Returns whether a dimension may have this length."""
        return self.of(self.nearest(length)) == length

    def __str__(self) -> str:
        """Its description."""
        words = f"from {self.of(self.low)}" + ("" if self.high is None else f" to {self.of(self.high)}")
        return words if self.factor == 1 else f"{words} in steps of {self.factor}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """Describes an input of a program.

    Attributes:
        name: its name in the graph.
        dims: one entry per axis: its length, or the name of a free one.
        dtype: its element type.
        lengths: the lengths that free dimensions may have, by name; any by default.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: np.dtype[Any]
    lengths: Mapping[str, Length] = field(default_factory=dict)


def free_dims(inputs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Returns the names of the free dimensions, in the order in which they appear."""
    return tuple(dict.fromkeys(dim for spec in inputs for dim in spec.dims if isinstance(dim, str)))


def leading_dims(inputs: Sequence[InputSpec]) -> frozenset[str]:
    """Returns the names of free first dimensions, which count samples."""
    return frozenset(spec.dims[0] for spec in inputs if spec.dims and isinstance(spec.dims[0], str))


def first_sizes(inputs: Sequence[InputSpec], real: Feeds | None) -> dict[str, int]:
    """Chooses a length of 2 or more for each free dimension: 2 samples, and otherwise the data's or 64 and up.

    Raises:
        FormatError: the data has another rank, or another length in a fixed dimension, than an input.
    """
    sizes: dict[str, int] = {}
    leading = leading_dims(inputs)
    for spec in inputs:
        shape = _checked_shape(spec, real)
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, int) or dim in sizes:
                continue
            length = None if shape is None or dim in leading else shape[axis]
            if dim in leading:
                sizes[dim] = _BATCH
            elif length is not None and length > 1:
                sizes[dim] = length
            else:
                sizes[dim] = _FIRST_LENGTH + _LENGTH_STEP * sum(name not in leading for name in sizes)
    # A number of 1 is treated as a constant, like a length of 1.
    return allowed_sizes(inputs, sizes, least=2)


def allowed_sizes(inputs: Sequence[InputSpec], sizes: Mapping[str, int], *, least: int = 1) -> dict[str, int]:
    """Returns the lengths nearest to ``sizes`` that the inputs allow, of at least the ``least`` multiple."""
    numbers: dict[str, int] = {}
    allowed = dict(sizes)
    for spec in inputs:
        for dim in spec.dims:
            rule = spec.lengths.get(dim) if isinstance(dim, str) else None
            if rule is not None and isinstance(dim, str):
                wanted = max(sizes[dim], rule.of(least))
                allowed[dim] = rule.of(numbers.setdefault(rule.number, rule.nearest(wanted)))
    return allowed


def make_feeds(inputs: Sequence[InputSpec], sizes: Mapping[str, int], real: Feeds | None) -> dict[str, Array]:
    """Returns one array per input, with ``sizes`` in the free dimensions.

    Real data is repeated or cut to the sizes. Without it, floats are normal with a standard deviation of 1, integers
    and booleans alternate between 1 and 0, which any table, mask and index accepts.
    """
    generator = np.random.default_rng(EXAMPLE_SEED)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims)
        if real is not None and spec.name in real:
            feeds[spec.name] = _fitted(real[spec.name], shape).astype(spec.dtype)
        elif spec.dtype.kind == "f":
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            count = int(np.prod(shape))
            feeds[spec.name] = ((np.arange(count) + 1) % 2).reshape(shape).astype(spec.dtype)
    return feeds


def _checked_shape(spec: InputSpec, real: Feeds | None) -> tuple[int, ...] | None:
    if real is None or spec.name not in real:
        return None
    shape = real[spec.name].shape
    fits = len(shape) == len(spec.dims) and 0 not in shape
    # The first axis of the data counts samples: it is cut or repeated to what the input takes.
    if not fits or any(isinstance(dim, int) and dim != shape[axis] for axis, dim in enumerate(spec.dims) if axis):
        written = ",".join(str(dim) for dim in spec.dims)
        raise FormatError(
            f"the data for input '{spec.name}' has the shape {shape}, its declared shape is {written}",
            fix=f"let --input-shape {spec.name}=… agree with the data, or store the data in that shape",
        )
    return shape


def _fitted(array: Array, shape: tuple[int, ...]) -> Array:
    for axis, length in enumerate(shape):
        if array.shape[axis] != length:
            array = np.take(array, np.arange(length) % array.shape[axis], axis=axis)
    return array
