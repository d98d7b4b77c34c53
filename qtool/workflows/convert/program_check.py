"""Compares a converted program with its source, on the same inputs and at several sizes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError, RuntimeRefusedError
from qtool.formats.errors import FormatError
from qtool.formats.torch.example_inputs import (
    InputSpec,
    allowed_sizes,
    first_sizes,
    free_dims,
    leading_dims,
    make_feeds,
)
from qtool.progress import Progress
from qtool.workflows.convert.output_differences import OutputDifference, output_differences
from qtool.workflows.convert.random_inputs import on_random_inputs

Reference: TypeAlias = Callable[[Feed], Sequence[Array]]
Converted: TypeAlias = Callable[[Feed], Mapping[str, Array]]

# Float32 programs that compute the same thing differ by 1e-6 to 1e-4 of their largest output.
LARGEST_RELATIVE_DIFFERENCE = 1e-3
_FIX = "convert with another --opset, or give lengths instead of names in --input-shape"
_SECOND_SAMPLES = 3
_SHORT = 8
# Multiples of the usual length that are tried for inputs of unknown length.
_LONGER = (4, 16, 64, 256, 1024)
_MOST_VALUES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramComparison:
    """One run of both programs.

    Attributes:
        sizes: the lengths of the free dimensions.
        data: ``"real"`` or ``"random"``.
        outputs: the differences, one per output.
    """

    sizes: Mapping[str, int]
    data: str
    outputs: tuple[OutputDifference, ...]

    @property
    def absolute(self) -> float:
        """The largest absolute difference of all outputs."""
        return max(output.absolute for output in self.outputs)

    @property
    def relative(self) -> float:
        """The largest relative difference of all outputs."""
        return max(output.relative for output in self.outputs)


def compare_programs(
    inputs: Sequence[InputSpec],
    real: Feed | None,
    *,
    reference: Reference,
    converted: Converted,
    first_expected: Sequence[Array] | None = None,
    progress: Progress,
    largest_relative_difference: float = LARGEST_RELATIVE_DIFFERENCE,
    fix: str = _FIX,
) -> tuple[ProgramComparison, ...]:
    """Runs both programs at a first size of the free dimensions, at a second one, and on a single sample.

    Args:
        inputs: what the programs take.
        real: real data; random values otherwise.
        reference: runs the source program.
        converted: runs the converted program.
        first_expected: the reference's outputs at the first size, where it has run before.
        progress: receives the steps.
        largest_relative_difference: the largest allowed difference of outputs.
        fix: what to do where it is larger.

    Raises:
        InputError: an output differs from the reference's by more than ``largest_relative_difference`` of its largest
            value.
        FormatError: the reference, a torch module, does not run.
        RuntimeRefusedError: a program does not run in onnxruntime.
    """
    comparisons = []
    with progress.task("comparing") as advance:
        for sizes, feeds, expected in _runs(inputs, real, reference, first_expected, progress):
            result = converted(feeds)
            comparison = ProgramComparison(
                sizes=sizes, data="random" if real is None else "real", outputs=output_differences(expected, result)
            )
            _check(comparison, largest_relative_difference, fix)
            comparisons.append(comparison)
            advance(1)
    return tuple(comparisons)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """The first run of the reference.

    Attributes:
        sizes: the lengths of the free dimensions.
        feeds: its inputs.
        outputs: its outputs.
        whole: whether the data was used unchanged, because truncated or repeated data is not accepted.
    """

    sizes: dict[str, int]
    feeds: dict[str, Array]
    outputs: Sequence[Array]
    whole: bool = False


def first_run(inputs: Sequence[InputSpec], real: Feed | None, reference: Reference, progress: Progress) -> FirstRun:
    """Runs the reference on two samples; on unchanged real data where it has no samples, or nothing else runs.

    Raises:
        FormatError: the reference, a torch module, does not run.
        InputError: the reference does not run on random inputs.
        RuntimeRefusedError: the reference does not run on the data.
    """
    sizes = first_sizes(inputs, real)
    if real is None:
        return _first_random_run(inputs, sizes, reference, progress)
    if _has_samples(inputs, real):
        feeds = make_feeds(inputs, sizes, real)
        with contextlib.suppress(RuntimeRefusedError):
            return FirstRun(sizes=sizes, feeds=feeds, outputs=reference(feeds))
    # Lengths of several inputs may depend on each other, such as a sequence and its mask.
    sizes |= {
        dim: length
        for spec in inputs
        if spec.name in real
        for dim, length in zip(spec.dims, real[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    feeds = make_feeds(inputs, sizes, real)
    return FirstRun(sizes=sizes, feeds=feeds, outputs=reference(feeds), whole=True)


def _first_random_run(
    inputs: Sequence[InputSpec], usual: dict[str, int], reference: Reference, progress: Progress
) -> FirstRun:
    """Runs the reference at supported lengths: cropping networks reject short ones, position tables long ones."""
    for sizes in _lengths_to_try(inputs, usual):
        feeds = make_feeds(inputs, sizes, None)
        with contextlib.suppress(FormatError, RuntimeRefusedError):
            outputs = reference(feeds)
            if all(_says_something(output) for output in outputs):
                if sizes != usual:
                    changed = {name: size for name, size in sizes.items() if size != usual[name]}
                    lengths = ", ".join(f"{name}={size}" for name, size in changed.items())
                    other = "shorter" if any(size > usual[name] for name, size in changed.items()) else "longer"
                    other = "other" if leading_dims(inputs).intersection(changed) else other
                    progress.note(f"compared with {lengths}: the model takes no {other} inputs that were tried")
                return FirstRun(sizes=sizes, feeds=feeds, outputs=outputs)
    feeds = make_feeds(inputs, usual, None)
    try:
        with on_random_inputs():
            return FirstRun(sizes=usual, feeds=feeds, outputs=reference(feeds))
    except FormatError as error:
        leading = leading_dims(inputs)
        open_inputs = [spec for spec in inputs if any(dim in usual and dim not in leading for dim in spec.dims)]
        if not open_inputs:
            raise
        written = " ".join(
            f"--input-shape {spec.name}={','.join(str(dim) for dim in spec.dims)}" for spec in open_inputs
        )
        names = ", ".join(name for name in usual if name not in leading)
        raise FormatError(
            error.problem, fix=f"give lengths that the model takes instead of {names}: {written}"
        ) from error


def _lengths_to_try(inputs: Sequence[InputSpec], usual: dict[str, int]) -> Iterator[dict[str, int]]:
    yield usual
    leading = leading_dims(inputs)
    invented = [name for name in usual if name not in leading]
    # Both sides of images would grow, and the work with their product.
    if invented and not any(sum(dim in invented for dim in spec.dims) > 1 for spec in inputs):
        for factor in _LONGER:
            sizes = allowed_sizes(
                inputs, {name: length * (factor if name in invented else 1) for name, length in usual.items()}
            )
            if sizes != usual and _values(inputs, sizes) <= _MOST_VALUES:
                yield sizes
    short = allowed_sizes(inputs, {name: min(length, _SHORT) for name, length in usual.items()})
    if short != usual:
        yield short
    # Some graphs name a batch dimension and squeeze it.
    single = allowed_sizes(inputs, {**usual, **dict.fromkeys(leading, 1)})
    if single != usual:
        yield single


def _values(inputs: Sequence[InputSpec], sizes: Mapping[str, int]) -> int:
    return sum(math.prod(sizes.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.dims) for spec in inputs)


def _has_samples(inputs: Sequence[InputSpec], real: Feed) -> bool:
    """Returns whether the first axis of all inputs counts the same samples."""
    if any(not spec.dims for spec in inputs):
        return False
    firsts = {spec.dims[0] for spec in inputs}
    lengths = {len(real[spec.name]) for spec in inputs if spec.name in real}
    return len(firsts) == 1 or (len(lengths) == 1 and all(isinstance(first, str) for first in firsts))


def _runs(
    inputs: Sequence[InputSpec],
    real: Feed | None,
    reference: Reference,
    first_expected: Sequence[Array] | None,
    progress: Progress,
) -> Iterator[tuple[dict[str, int], dict[str, Array], Sequence[Array]]]:
    if first_expected is None:
        begin = first_run(inputs, real, reference, progress)
    else:
        sizes = first_sizes(inputs, real)
        begin = FirstRun(sizes=sizes, feeds=make_feeds(inputs, sizes, real), outputs=first_expected)
    first = begin.sizes
    yield first, begin.feeds, begin.outputs
    if not free_dims(inputs):
        return
    leading = frozenset[str]() if begin.whole else leading_dims(inputs)
    lengths = [name for name in first if name not in leading]
    for wanted in _second_sizes(first, leading):
        sizes = allowed_sizes(inputs, wanted)
        if lengths and all(sizes[name] == first[name] for name in lengths):
            continue
        feeds = make_feeds(inputs, sizes, real)
        # Lengths that the source itself rejects, such as a sequence longer than its positions, are skipped.
        with contextlib.suppress(FormatError, RuntimeRefusedError):
            expected = reference(feeds)
            break
    else:
        progress.note(f"{', '.join(lengths)} compared at one length only: the model itself fails at others")
        if begin.whole:
            return
        sizes = allowed_sizes(inputs, {**first, **dict.fromkeys(leading, _SECOND_SAMPLES)})
        feeds = make_feeds(inputs, sizes, real)
        try:
            expected = reference(feeds)
        except RuntimeRefusedError:  # the source graph does not support another batch size either
            return
    yield sizes, feeds, expected
    single = allowed_sizes(inputs, {**first, **dict.fromkeys(leading, 1)})
    if not leading or single in (first, sizes):
        return
    feeds = make_feeds(inputs, single, real)
    try:
        expected = reference(feeds)
    except RuntimeRefusedError:
        return
    except FormatError:
        # Files that declare a minimum length write 2 for 1, too.
        if any(spec.lengths for spec in inputs):
            return
        raise
    yield single, feeds, expected


def _says_something(output: Array) -> bool:
    """Returns whether there are finite values; the mean of an empty crop is NaN."""
    return output.size > 0 and (output.dtype.kind != "f" or bool(np.isfinite(output).any()))


def _second_sizes(first: Mapping[str, int], leading: frozenset[str]) -> Iterator[dict[str, int]]:
    changes: tuple[Callable[[int], int], ...] = (_doubled, _halved, _increased)
    for change in changes:
        yield {name: _SECOND_SAMPLES if name in leading else change(length) for name, length in first.items()}
        if leading.issuperset(first):
            return


def _doubled(length: int) -> int:
    return length * 2


def _halved(length: int) -> int:
    return max(2, length // 2)


def _increased(length: int) -> int:
    return length + 1


def _check(comparison: ProgramComparison, largest_relative_difference: float, fix: str) -> None:
    for output in comparison.outputs:
        if output.relative > largest_relative_difference:
            at = ", ".join(f"{name}={length}" for name, length in comparison.sizes.items())
            raise InputError(
                f"the converted graph is wrong: output '{output.output}' differs from the model's by "
                f"{output.absolute:.3g}, {output.relative:.2%} of its largest value{f', with {at}' if at else ''}",
                fix=fix,
            )
