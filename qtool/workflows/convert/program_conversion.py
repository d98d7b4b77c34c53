"""Writes graphs in the formats of other runtimes, and compares what these run with the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from qtool.atomic import staged
from qtool.backends.execution import AS_IT_IS, NODE_BY_NODE
from qtool.calib.specs import Feed
from qtool.formats.detect import Detection
from qtool.formats.onnx.ir_versions import lowest_ir_version
from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, OnnxFile, weights_nbytes
from qtool.formats.torch.example_inputs import InputSpec
from qtool.passes.half.half_precision import HalfName
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.runtime.parts import Parts
from qtool.runtime.session import Session
from qtool.workflows.convert.conversion_result import described, folder_bytes, real_feed, report
from qtool.workflows.convert.fixed_lengths import fix_lengths
from qtool.workflows.convert.half_precision import LARGEST_HALF_DIFFERENCE, input_specs
from qtool.workflows.convert.program_check import LARGEST_RELATIVE_DIFFERENCE, ProgramComparison, compare_programs
from qtool.workflows.convert.request import ConvertReport, ConvertRequest
from qtool.workflows.convert.targets.base import OpenedProgram, RuntimeFormat
from qtool.workflows.convert.torch_import import ImportedGraph

# Where kernels round a tensor to the other side of a tie, the layers behind it see one step more or less: 0.07 was seen
# on random inputs. A model that is converted wrongly differs by about its largest value.
_LARGEST_QUANTIZED_DIFFERENCE = 0.25
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_LAYERS = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger"})


def write_program(
    request: ConvertRequest,
    target: RuntimeFormat,
    detection: Detection,
    graph: ImportedGraph,
    output: Path,
    progress: Progress,
    *,
    kind: str | None = None,
) -> ConvertReport:
    """Writes ``graph`` in the format ``target``, compares the two on the same inputs, and reports.

    Args:
        request: the options.
        target: writes and runs the result.
        detection: the kind of the source.
        graph: the graph, with the comparisons that it passed.
        output: where to write it; other files of the format stand beside it.
        progress: receives the steps.
        kind: more about the source, in words.

    Raises:
        InputError: the format cannot hold the graph, or the result does not compute the same.
        RuntimeRefusedError: onnxruntime does not run the graph, so that there is nothing to compare with.
        OutputError: the result cannot be written.
    """
    model = graph.model
    layers = quantized_layers(model)
    with private_folder() as folder, staged(output) as path:
        source = request.source if detection.format == "onnx" else _saved(model, folder / "source.onnx")
        written = source
        if target.fixes_lengths:
            model = fix_lengths(
                model, request.input_shapes, real_feed(request, model), runtime=target.runtime, progress=progress
            )
            fixed = folder / "fixed"
            fixed.mkdir()
            written = _saved(model, fixed / f"{request.source.stem}.onnx")
        specs = input_specs(model)
        real = real_feed(request, model)
        half = None if request.precision is None else request.precision.name
        with progress.task(f"writing {output.name} with {target.runtime}"):
            target.write(written, path, half)
        outputs = [value.name or "" for value in model.graph.outputs]
        with (
            target.open(path, [spec.name for spec in specs], outputs) as opened,
            _reference(source, model, is_quantized=layers > 0) as reference,
        ):
            comparisons = _compared(reference, opened, target, specs, real, progress, half=half, layers=layers)
        nbytes = folder_bytes(path.parent)
    for remark in opened.remarks:
        progress.note(remark)
    _tell_lost_layers(opened, target, layers, progress)
    values = model.graph
    return report(
        request,
        detection,
        output,
        nbytes,
        kind=kind,
        inputs=tuple(described(value) for value in values.inputs if value.name not in values.initializers),
        outputs=tuple(described(value) for value in values.outputs),
        left_out=graph.left_out,
        comparisons=(*graph.comparisons, *comparisons),
        integer_layers=opened.layers if layers else None,
    )


def _tell_lost_layers(opened: OpenedProgram, target: RuntimeFormat, layers: int, progress: Progress) -> None:
    lost = layers - opened.layers.integer
    if lost > 0:
        progress.warn(
            f"{lost} of the model's {layers} quantized layers run in float in {target.runtime} on this machine"
        )


def quantized_layers(model: ir.Model) -> int:
    """Counts layers of the main graph whose input and weight are integers."""
    return sum(node.op_type in _INTEGER_LAYERS or _reads_integers(node) for node in model.graph)


def _reads_integers(node: ir.Node) -> bool:
    if node.op_type not in _WEIGHTED or node.domain != "":
        return False
    makers = [None if value is None else value.producer() for value in node.inputs[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _saved(model: ir.Model, path: Path) -> Path:
    model.ir_version = lowest_ir_version(model)
    OnnxFile().write(model, path)
    return path


@contextmanager
def _reference(source: Path, model: ir.Model, *, is_quantized: bool) -> Iterator[Parts | Session]:
    """Opens the source: node by node where it is quantized, since kernels of integers round in their own ways."""
    if weights_nbytes(model) > LARGEST_MESSAGE_BYTES:
        yield Parts(OnnxFile().read(source))
        return
    with (NODE_BY_NODE if is_quantized else AS_IT_IS).open_file(source) as session:
        yield session


def _compared(
    reference: Parts | Session,
    opened: OpenedProgram,
    target: RuntimeFormat,
    specs: list[InputSpec],
    real: Feed | None,
    progress: Progress,
    *,
    half: HalfName | None,
    layers: int,
) -> tuple[ProgramComparison, ...]:
    largest = LARGEST_RELATIVE_DIFFERENCE if half is None else LARGEST_HALF_DIFFERENCE[half]
    if layers:
        largest = max(largest, _LARGEST_QUANTIZED_DIFFERENCE)
    return compare_programs(
        specs,
        real,
        reference=lambda feed: list(reference.run(feed).values()),
        converted=opened.run,
        progress=progress,
        largest_relative_difference=largest,
        fix=f"keep it as ONNX: {target.runtime} computes something else with this model",
    )
