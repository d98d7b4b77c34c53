"""Writes converted graphs, and reports on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.atomic import staged
from qtool.calib.specs import Feed
from qtool.errors import InputError
from qtool.fingerprint import path_bytes
from qtool.formats.detect import Detection
from qtool.passes.half.half_precision import KeptFloat32
from qtool.progress import Progress
from qtool.workflows.convert.program_check import ProgramComparison
from qtool.workflows.convert.request import ConvertReport, ConvertRequest
from qtool.workflows.convert.targets.base import IntegerLayers
from qtool.workflows.convert.torch_import import ImportedGraph

if TYPE_CHECKING:
    import onnx_ir as ir


def write_graph(
    request: ConvertRequest,
    detection: Detection,
    graph: ImportedGraph,
    output: Path,
    progress: Progress,
    *,
    kind: str | None = None,
    compare: Callable[[Path], tuple[ProgramComparison, ...]] | None = None,
) -> ConvertReport:
    """Writes a graph, in the requested precision, and reports on it.

    Args:
        request: the options.
        detection: the kind of the source.
        graph: the graph, with the comparisons that it passed; it may be modified in place.
        output: where to write it.
        progress: receives the steps.
        kind: more about the source, in words.
        compare: compares the written file with the source, where that has not been done.

    Raises:
        InputError: the graph does not compute the same as the source.
        OutputError: it cannot be written.
    """
    from qtool.formats.onnx.ir_versions import lowest_ir_version
    from qtool.formats.onnx.onnx_file import LARGEST_MESSAGE_BYTES, OnnxFile, weights_nbytes

    kept: tuple[KeptFloat32, ...] = ()
    storage = request.storage
    if request.precision is not None:
        # Weights too large for one message stay external in half precision, too, since a message is built in memory.
        is_large = weights_nbytes(graph.model) > LARGEST_MESSAGE_BYTES
        storage = replace(storage, external=storage.external or is_large)
        graph, kept = _in_half(request, graph, progress)
        compare = None
    graph.model.ir_version = lowest_ir_version(graph.model)
    file = OnnxFile()
    with staged(output) as path:
        with progress.task(f"writing {output.name}"):
            file.write(graph.model, path, storage)
            _check(request, detection, path)
        if compare is not None:
            graph = replace(graph, comparisons=compare(path))
        nbytes = folder_bytes(path.parent)
    values = graph.model.graph
    return report(
        request,
        detection,
        output,
        nbytes,
        kind=kind,
        opset=graph.model.opset_imports.get(""),
        inputs=tuple(described(value) for value in values.inputs if value.name not in values.initializers),
        outputs=tuple(described(value) for value in values.outputs),
        left_out=graph.left_out,
        comparisons=graph.comparisons,
        kept_float=kept,
    )


def _check(request: ConvertRequest, detection: Detection, path: Path) -> None:
    """Passes when the result in ``path`` follows the ONNX standard, or the source already does not."""
    from qtool.formats.onnx.onnx_file import OnnxFile

    file = OnnxFile()
    problem = file.problem(path)
    if problem is None:
        return
    if detection.format == "onnx" and request.opset is not None and file.problem(request.source) is None:
        raise InputError(
            f"the graph cannot go to opset {request.opset}: {problem}", fix="choose an opset nearer to its own"
        )
    file.check(path, request.source if detection.format == "onnx" else None)


def _in_half(
    request: ConvertRequest, graph: ImportedGraph, progress: Progress
) -> tuple[ImportedGraph, tuple[KeptFloat32, ...]]:
    from qtool.workflows.convert.half_precision import to_precision

    if request.precision is None:
        return graph, ()
    half = to_precision(
        graph.model,
        request.precision,
        real=real_feed(request, graph.model),
        keep_opset=request.opset is not None,
        progress=progress,
    )
    comparisons = (*graph.comparisons, *half.comparisons)
    return replace(graph, model=half.model, comparisons=comparisons), half.kept


def real_feed(request: ConvertRequest, model: ir.Model) -> Feed | None:
    """Returns some samples of the request's data in the form of the graph's inputs; None without data.

    They are a batch of the size that the graph fixes, or one whole feed where its inputs share no batch axis.

    Raises:
        CalibError: the data does not fit the graph.
    """
    if request.calib_data is None:
        return None
    from qtool.graph.specs import model_specs
    from qtool.workflows.quantize.data_request import DataRequest

    data = DataRequest(source=request.calib_data, preprocess=request.preprocess)
    feed = next(data.feeds(data.open(), *model_specs(model)))
    # States of length zero have no values to repeat or truncate.
    return {name: array for name, array in feed.items() if array.size}


def report(
    request: ConvertRequest,
    detection: Detection,
    output: Path,
    nbytes: int,
    *,
    kind: str | None = None,
    opset: int | None = None,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    tensors: int | None = None,
    comparisons: tuple[ProgramComparison, ...] = (),
    kept_float: tuple[KeptFloat32, ...] = (),
    integer_layers: IntegerLayers | None = None,
) -> ConvertReport:
    """Describes a result that is written.

    Args:
        request: the options.
        detection: the kind of the source.
        output: the result.
        nbytes: its size, with external data.
        kind: more about the source, in words.
        opset: its opset, where it is a graph.
        inputs: its inputs, described.
        outputs: its outputs, described.
        left_out: outputs of the source that are not tensors.
        tensors: how many tensors it holds, where it holds weights only.
        comparisons: its comparisons with the source.
        kept_float: nodes that stay float32 in a graph of half precision.
        integer_layers: what runs on integers in the runtime that it is for.
    """
    return ConvertReport(
        source=request.source,
        source_kind=detection.detail if kind is None else f"{detection.detail}, {kind}",
        source_bytes=path_bytes(request.source),
        output=output,
        output_bytes=nbytes,
        target=request.target,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        left_out=left_out,
        tensors=tensors,
        comparisons=comparisons,
        kept_float=kept_float,
        integer_layers=integer_layers,
    )


def folder_bytes(folder: Path) -> int:
    """Returns the total size of a staged result, external data included."""
    return sum(file.stat().st_size for file in folder.iterdir())


def described(value: ir.Value) -> str:
    """Returns the name and the shape of an input or output, ``?`` for lengths without a name."""
    dims = "?" if value.shape is None else ", ".join(str(getattr(dim, "value", dim) or "?") for dim in value.shape)
    return f"{value.name} ({dims})"
