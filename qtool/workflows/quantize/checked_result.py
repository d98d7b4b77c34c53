"""Writes a quantized model, counts what runs on integers, and compares it with the float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.backends.coverage import Coverage
from qtool.backends.execution import Execution
from qtool.backends.execution_choice import execution_for
from qtool.backends.onnxruntime_cpu.coverage import float_coverage
from qtool.backends.registry import FALLBACK_BACKEND, backend_named
from qtool.backends.runtimes import runtime_named
from qtool.graph.collection_pause import leaving_no_garbage
from qtool.plan import Skipped
from qtool.progress import Progress
from qtool.runtime.free_memory import give_back_memory
from qtool.schemes import AnyScheme
from qtool.search.output_evaluator import FLOATS_ALIKE_DB, floats_differ
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.quantize.check_result import (
    CheckSamples,
    ResultComparison,
    compare_with_float,
    compares_in_parts,
)
from qtool.workflows.quantize.planned_float import as_planned


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedResult:
    """A quantized model that runs.

    Attributes:
        coverage: the nodes that onnxruntime runs on integers.
        comparison: how close it is to the float model.
    """

    coverage: Coverage
    comparison: ResultComparison


def write_and_check(
    model: ir.Model,
    original: ir.Model,
    skipped: Sequence[Skipped],
    path: Path,
    samples: CheckSamples | None,
    *,
    scheme: AnyScheme,
    threads: int,
    progress: Progress,
    execution: Execution | None = None,
    is_float: bool = False,
    written: Callable[[], None] | None = None,
) -> CheckedResult:
    """Writes ``model`` to ``path`` and runs it beside the float model.

    Args:
        model: the quantized graph.
        original: the float graph.
        skipped: the nodes that the plan left float, with reasons.
        path: the staged file.
        samples: what to compare on; None for random inputs.
        scheme: what the graph is quantized by.
        threads: threads inside an operator; 0 is one a core.
        progress: receives the steps.
        execution: how both are run; None for the scheme's own.
        is_float: whether nothing in the graph is quantized after all.
        written: called once the file is there, before it is run.

    Raises:
        RuntimeRefusedError: onnxruntime does not load or run the quantized model.
        InputError: its outputs are not finite where those of the float model are.
    """
    save_graph(model, path)
    if written is not None:
        written()
    execution = execution_for(scheme) if execution is None else execution
    part = ", a part of the model at a time, without its fusions" if compares_in_parts(original, execution) else ""
    progress.note(f"checking the result in {runtime_named(execution.runtime).title}{part}")
    with progress.task("comparing with float"):
        with leaving_no_garbage():
            coverage = as_planned(
                _coverage(model, scheme, is_float=is_float), skipped, has_kernels_here=_has_kernels_here(scheme)
            )
        give_back_memory(original)
        comparison = compare_with_float(original, path, samples, execution=execution, threads=threads)
    if comparison.runtimes_db is not None and comparison.runtimes_db < FLOATS_ALIKE_DB:
        progress.warn(floats_differ(comparison.runtimes_db, runtime_named(execution.runtime).title))
    return CheckedResult(coverage=coverage, comparison=comparison)


def _has_kernels_here(scheme: AnyScheme) -> bool:
    return backend_named(scheme.backend).has_kernels_here


def _coverage(model: ir.Model, scheme: AnyScheme, *, is_float: bool) -> Coverage:
    """Asks the runtime that the model is for, and where it is not here the one that runs it in its place."""
    if is_float and scheme.backend == FALLBACK_BACKEND:
        return float_coverage(model)
    found = backend_named(scheme.backend).coverage(model)
    if found is None:
        found = backend_named(FALLBACK_BACKEND).coverage(model)
    if found is None:
        raise AssertionError("the provider that runs every model is always here")
    return found
