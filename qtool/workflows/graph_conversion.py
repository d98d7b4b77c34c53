"""Converts graphs to other opsets and compares files of graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from formats.onnx_file import LARGEST_MESSAGE_BYTES, weights_nbytes
from qtool.progress import Progress
from qtool.workflows.conversion import ConvertRequest
from qtool.workflows.conversion_result import real_feed
from qtool.workflows.equivalence import Comparison, compare_programs
from qtool.workflows.half_precision import input_specs

if TYPE_CHECKING:
    import onnx_ir as ir


def in_opset(model: ir.Model, opset: int | None, progress: Progress) -> ir.Model:
    """Returns the graph with the operators of ``opset``, or as it is; ``model`` itself may be changed on the way.

    Raises:
        UsageError: there is no such opset.
        InputError: an operator of the graph has no form in it.
    """
    from qtool.workflows.opsets import to_opset

    if opset is None:
        return model
    with progress.task(f"converting to opset {opset}"):
        return to_opset(model, opset)


def comparison_with_source(
    request: ConvertRequest, model: ir.Model, progress: Progress
) -> Callable[[Path], tuple[Comparison, ...]]:
    """Returns what compares a file with the source of ``request``, which ``model`` was read from.

    Weights that are too many for one message stay in their files while both run, one part after the other.
    """
    from formats.onnx_file import OnnxFile
    from qtool.runtime.execution import AS_THE_CPU_DOES
    from qtool.runtime.parts import Parts
    from qtool.runtime.session import Session
    from qtool.runtime.steady_draws import DRAWN_ALIKE, file_draws
    from qtool.workflows.overflow import warn_of_overflow

    warn_of_overflow(request.source, request.source.name, progress)
    if file_draws(request.source):
        progress.note(DRAWN_ALIKE)
    specs = input_specs(model)
    real = real_feed(request, model)
    is_large = weights_nbytes(model) > LARGEST_MESSAGE_BYTES

    def opened(path: Path, stack: ExitStack) -> Parts | Session:
        if is_large:
            return Parts(OnnxFile().read(path))
        return stack.enter_context(AS_THE_CPU_DOES.open_file(path))

    def compare(path: Path) -> tuple[Comparison, ...]:
        with ExitStack() as stack:
            original, converted = opened(request.source, stack), opened(path, stack)
            return compare_programs(
                specs,
                real,
                reference=lambda feed: list(original.run(feed).values()),
                converted=converted.run,
                progress=progress,
            )

    return compare
