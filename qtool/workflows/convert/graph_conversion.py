"""Converts graphs to other opsets and compares files of graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from qtool.errors import RuntimeRefusedError
from qtool.formats.onnx.ir_versions import lowest_ir_version
from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, OnnxFile, weights_nbytes
from qtool.progress import Progress
from qtool.workflows.convert.conversion_result import real_feed
from qtool.workflows.convert.half_precision import input_specs
from qtool.workflows.convert.program_check import ProgramComparison, compare_programs
from qtool.workflows.convert.request import ConvertRequest

if TYPE_CHECKING:
    from qtool.runtime.onnx_reference import OnnxReference
    from qtool.runtime.parts import Parts
    from qtool.runtime.session import Session


def in_opset(model: ir.Model, opset: int | None, progress: Progress) -> ir.Model:
    """Returns the graph with the operators of ``opset``, converted if needed; ``model`` may be modified.

    Raises:
        UsageError: there is no such opset.
        InputError: an operator of the graph does not exist in it.
    """
    from qtool.workflows.convert.opsets import to_opset

    if opset is None:
        return model
    with progress.task(f"converting to opset {opset}"):
        return to_opset(model, opset)


def comparison_with_source(
    request: ConvertRequest, model: ir.Model, progress: Progress
) -> Callable[[Path], tuple[ProgramComparison, ...]]:
    """Returns a function that compares a file with the source of ``request``, from which ``model`` was read.

    Weights too large for one message stay in their files while both run part by part.
    """
    from qtool.runtime.steady_draws import DRAWN_ALIKE, file_draws
    from qtool.workflows.diagnose.overflow import warn_of_overflow

    # Models for other runtimes cannot be checked for overflow here.
    with suppress(RuntimeRefusedError):
        warn_of_overflow(request.source, request.source.name, progress)
    if file_draws(request.source):
        progress.note(DRAWN_ALIKE)
    specs = input_specs(model)
    real = real_feed(request, model)
    is_large = weights_nbytes(model) > LARGEST_MESSAGE_BYTES

    def compare(path: Path) -> tuple[ProgramComparison, ...]:
        with ExitStack() as stack:
            original = _original(request.source, stack, is_large=is_large)
            converted = _opened(path, stack, is_large=is_large)
            return compare_programs(
                specs,
                real,
                reference=lambda feed: list(original.run(feed).values()),
                converted=converted.run,
                progress=progress,
            )

    return compare


def _opened(path: Path, stack: ExitStack, *, is_large: bool) -> Parts | Session:
    from qtool.backends.execution import AS_IT_IS
    from qtool.runtime.parts import Parts

    return Parts(_readable(path)) if is_large else stack.enter_context(AS_IT_IS.open_file(path))


def _original(path: Path, stack: ExitStack, *, is_large: bool) -> Parts | Session | OnnxReference:
    """Opens the source, even if its IR version or its operators are newer than onnxruntime's."""
    from qtool.backends.execution import AS_IT_IS
    from qtool.runtime.onnx_reference import OnnxReference

    try:
        return _opened(path, stack, is_large=is_large)
    except RuntimeRefusedError as refused:
        if is_large:
            raise
        with suppress(RuntimeRefusedError):
            return stack.enter_context(AS_IT_IS.open(_readable(path)))
        try:
            return OnnxReference(path)
        except RuntimeRefusedError:
            raise refused from None


def _readable(path: Path) -> ir.Model:
    """Reads a graph, in the oldest IR version that supports it."""
    model = OnnxFile().read(path)
    model.ir_version = lowest_ir_version(model)
    return model
