"""Optimizes a graph, and checks that its outputs stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qtool.atomic import check_output, staged
from qtool.calib.image_layout import Layout
from qtool.errors import InputError, RuntimeRefusedError, UsageError
from qtool.formats.onnx.onnx_file import OnnxFile
from qtool.graph.maps_aside import put_maps_back, take_maps_aside
from qtool.metrics.size import model_bytes
from qtool.passes.layout.graph_borders import Turned, turn_borders
from qtool.passes.optimization.choice import chosen_passes, operators_for
from qtool.passes.optimization.pipeline import Step, node_counts, run_passes
from qtool.private_folder import private_folder
from qtool.progress import Progress, Silent
from qtool.runtime.steady_draws import DRAWN_ALIKE, draws
from qtool.workflows.convert.half_precision import input_specs
from qtool.workflows.convert.model_source import save_graph
from qtool.workflows.convert.numerical_check import Agreement, Difference, Witness
from qtool.workflows.diagnose.overflow import warn_of_overflow
from qtool.workflows.diagnose.verify import onnx_path
from qtool.workflows.quantize.data_request import DataRequest

OPTIMIZED_SUFFIX = ".optimized.onnx"
# The largest difference of outputs relative to the largest value, from rounding in another order.
_TOLERANCES: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
_USUAL_TOLERANCE = 1e-5
# In models that amplify rounding, this multiple of the difference caused by onnxruntime's own optimizations.
_NOISE_FACTOR = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeRequest:
    """The options of an optimization.

    Attributes:
        model: an ONNX graph.
        output: the file to write; None names it after the model.
        output_dir: folder of an output without a name; None for the model's folder.
        force: whether an existing output may be replaced.
        passes: names of the passes to run; nothing for the usual ones.
        skip: names of passes to leave out.
        target: the machine that the result is for; None for any that runs standard ONNX.
        data: what to compare the outputs on; None for random inputs.
        tolerance: how far outputs may be apart, as a share of the largest value; None for what the types allow.
        check: whether the outputs are compared.
        dry_run: whether nothing is written.
        io_layout: the layout that inputs and outputs that are images get; None for that which they have.
    """

    model: Path
    output: Path | None = None
    output_dir: Path | None = None
    force: bool = False
    passes: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    target: str | None = None
    data: DataRequest | None = None
    tolerance: float | None = None
    check: bool = True
    dry_run: bool = False
    io_layout: Layout | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeReport:
    """What became of a graph.

    Attributes:
        model: the graph.
        output: the file that was written; None after a dry run.
        before: nodes by operator, those of subgraphs included.
        after: the same, when all passes had run.
        steps: the passes that changed something, in order.
        agreement: how close the outputs are; None where they were not compared.
        noise: how far onnxruntime's own rewriting moves the outputs of the model, where that had to be known.
        bytes_before: size of the model, with its data files.
        bytes_after: size of the result; None after a dry run.
        turned: the inputs and outputs that have another layout; None where it was not requested.
    """

    model: Path
    output: Path | None
    before: Mapping[str, int]
    after: Mapping[str, int]
    steps: tuple[Step, ...]
    agreement: Agreement | None = None
    noise: float | None = None
    bytes_before: int
    bytes_after: int | None = None
    turned: Turned | None = None


def optimize(request: OptimizeRequest, progress: Progress) -> OptimizeReport:
    """Runs the passes, compares the result with the model, and writes it whole, or not at all.

    Raises:
        FormatError: the model cannot be read.
        UsageError: there is no such pass or target, or the output is the input.
        InputError: the model is not an ONNX graph, a pass fails, or the outputs are not the same.
        RuntimeRefusedError: onnxruntime does not run the model or the result.
        OutputError: the result cannot be written.
    """
    output = None if request.dry_run else _output(request)
    names = chosen_passes(request.passes, request.skip, request.target)
    model = OnnxFile().read(onnx_path(request.model))
    before = node_counts(model)
    tolerance = _tolerance(model) if request.tolerance is None else request.tolerance
    compared = output is not None and request.check
    inputs = input_specs(model)
    if compared:
        warn_of_overflow(request.model, request.model.name, progress)
        if draws(model):
            progress.note(DRAWN_ALIKE)
    witness = Witness(request.model, inputs, request.data, nodes=before.total()) if compared else None
    maps = take_maps_aside(model)
    steps = run_passes(model, names, operators_for(request.target), progress)
    put_maps_back(model, maps)
    turned = None if request.io_layout is None else turn_borders(model, request.io_layout)
    report = OptimizeReport(
        model=request.model,
        output=output,
        before=before,
        after=node_counts(model),
        steps=steps,
        bytes_before=model_bytes(request.model),
        turned=turned,
    )
    if output is None:
        return report
    with staged(output) as path:
        save_graph(model, path)
        if witness is not None:
            with progress.task("comparing"):
                agreement = witness.compare(path, turned)
            if agreement.worst.relative > tolerance and request.tolerance is None:
                report = replace(report, noise=witness.noise())
                tolerance = max(tolerance, _NOISE_FACTOR * (report.noise or 0.0))
            if agreement.worst.relative > tolerance:
                culprit = _culprit(request, names, steps, witness, tolerance)
                raise _changed(agreement.worst, culprit, tolerance)
            report = replace(report, agreement=agreement)
        return replace(report, bytes_after=model_bytes(path))


def _output(request: OptimizeRequest) -> Path:
    output = request.output
    if output is None:
        output = (request.output_dir or request.model.parent) / f"{request.model.stem}{OPTIMIZED_SUFFIX}"
    if output.exists() and output.samefile(request.model):
        raise UsageError("the output is the input", fix="name another file with -o")
    check_output(output, force=request.force)
    return output


def _tolerance(model: ir.Model) -> float:
    """Returns what the coarsest type among a model's tensors allows."""
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    values += model.graph.initializers.values()
    kinds = {value.dtype for value in values if value.dtype is not None}
    return max((_TOLERANCES.get(kind, _USUAL_TOLERANCE) for kind in kinds), default=_USUAL_TOLERANCE)


def _culprit(
    request: OptimizeRequest, names: tuple[str, ...], steps: tuple[Step, ...], witness: Witness, tolerance: float
) -> str | None:
    """Returns the first pass without which the outputs stay the same; None where it is no single one."""
    with private_folder() as folder:
        for suspect in dict.fromkeys(step.name for step in steps):
            model = OnnxFile().read(request.model)
            others = tuple(name for name in names if name != suspect)
            run_passes(model, others, operators_for(request.target), Silent())
            path = folder / f"{suspect}.onnx"
            save_graph(model, path)
            with suppress(RuntimeRefusedError):
                if witness.compare(path).worst.relative <= tolerance:
                    return suspect
    return None


def _changed(worst: Difference, culprit: str | None, tolerance: float) -> InputError:
    producer = "the passes" if culprit is None else f"the pass {culprit}"
    verb = "change" if culprit is None else "changes"
    skip = "choose fewer with --passes" if culprit is None else f"leave it out with --skip {culprit}"
    return InputError(
        f"{producer} {verb} output '{worst.output}' by {worst.relative:.2g} of its largest value, "
        f"more than {tolerance:g}",
        fix=f"{skip}, or allow it with --tolerance",
    )
