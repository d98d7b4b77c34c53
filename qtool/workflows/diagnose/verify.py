"""Verifies how much of a quantized model a runtime really runs on integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qtool.backends.coverage import Coverage
from qtool.backends.execution import TARGET_KEY
from qtool.backends.execution_choice import timing_of
from qtool.backends.registry import FALLBACK_BACKEND, backend_named
from qtool.backends.runtimes import DEFAULT_RUNTIME, runtime_named
from qtool.errors import GateError, InputError
from qtool.formats.detect import detect
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.constants import integer_attribute
from qtool.progress import Progress
from qtool.reporting.surroundings import versions
from qtool.schemes import Scheme
from qtool.workflows.diagnose.overflow import OVERFLOW_FIX, overflow_told, warn_of_overflow

# The accuracy level of MatMulNBits that quantizes its inputs to 8 bits; all lower ones multiply floats.
_LEVEL_OF_INTEGERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """How a runtime runs a model.

    Attributes:
        model: the file.
        versions: those of qtool, Python and the packages that have a say in it.
        coverage: what it runs on integers.
        overflowing_layers: the layers whose integer sums can overflow on this processor, by name.
    """

    model: Path
    versions: Mapping[str, str]
    coverage: Coverage
    overflowing_layers: tuple[str, ...] = ()


def verify(model: Path, progress: Progress, scheme: Scheme | None = None) -> VerifyReport:
    """Opens a model in the runtime that ``scheme`` is for and reads the graph that it runs.

    Where that runtime is not here, or without a scheme, it is onnxruntime's.

    Raises:
        UsageError: the runtime is not installed, and onnxruntime does not stand for it.
        FormatError: the file cannot be read.
        InputError: the file is not an ONNX graph, or has nothing that could run on integers.
        RuntimeRefusedError: onnxruntime does not load it.
    """
    path = onnx_path(model)
    with progress.task("reading the model"):
        graph = OnnxFile().read(path)
    runs = None if scheme is None else timing_of(scheme)
    runtime = runtime_named(DEFAULT_RUNTIME if runs is None else runs.runtime)
    with progress.task(f"opening it in {runtime.title}"):
        coverage = _coverage(graph, scheme, progress)
    _tell_of_float_products(graph, progress)
    target = graph.metadata_props.get(TARGET_KEY)
    if scheme is None and not runtime.serves(target):
        progress.warn(f"{model} was quantized for --target {target}: below is what {runtime.title} makes of it here")
    if coverage.total == 0:
        raise InputError(
            f"{model} has no node that could run on integers",
            fix="verify a model with Conv, Gemm or MatMul layers, such as `qtool quantize` writes",
        )
    return VerifyReport(
        model=model,
        versions=versions([runtime_named(coverage.runtime).package]),
        coverage=coverage,
        overflowing_layers=warn_of_overflow(path, model.name, progress),
    )


def _tell_of_float_products(graph: ir.Model, progress: Progress) -> None:
    """Says of how many MatMulNBits the weights alone are integers: they unpack them and multiply floats."""
    levels = [integer_attribute(node, "accuracy_level", 0) for node in graph.graph if node.op_type == "MatMulNBits"]
    floats = sum(level < _LEVEL_OF_INTEGERS for level in levels)
    if floats:
        progress.note(
            f"{floats} of {len(levels)} MatMulNBits have integer weights and multiply floats (accuracy level 0)"
        )


def _coverage(graph: ir.Model, scheme: Scheme | None, progress: Progress) -> Coverage:
    if scheme is not None:
        backend = backend_named(scheme.backend)
        found = backend.coverage(graph)
        if found is not None:
            return found
        progress.warn(f"{scheme.machine}: not run on this runtime, which is not here; below is what onnxruntime does")
    found = backend_named(FALLBACK_BACKEND).coverage(graph)
    if found is None:
        raise AssertionError("the provider that runs every model is always here")
    return found


def check_coverage(report: VerifyReport, minimum: float) -> None:
    """Checks the share of nodes on integers against a gate.

    Raises:
        GateError: it is smaller than ``minimum``, 0 to 1, or sums can overflow here.
    """
    if report.overflowing_layers:
        raise GateError(overflow_told(report.model.name, report.overflowing_layers), fix=OVERFLOW_FIX)
    share = report.coverage.share
    if share < minimum:
        worst = min(report.coverage.by_operator(), key=lambda row: row.integer - row.total)
        raise GateError(
            f"{share:.1%} of the quantizable nodes run on integers, {minimum - share:.1%} too few "
            f"for --min-coverage {100 * minimum:.4g}%: {worst.total - worst.integer} of {worst.total} "
            f"{worst.operator} do not",
            fix="follow the fixes above, or lower --min-coverage",
        )


def onnx_path(path: Path) -> Path:
    """Returns ``path`` when it is an ONNX graph.

    Raises:
        FormatError: the file is missing or of no known format.
        InputError: it is of another format.
    """
    found = detect(path)
    if found.format != "onnx":
        raise InputError(f"{path} is {found.detail}, not an ONNX graph", fix="convert it first with `qtool convert`")
    return path
