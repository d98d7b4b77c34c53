"""Converts a model file into another format, and checks that the result computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.atomic import check_output, staged
from qtool.errors import InputError, UsageError
from qtool.formats import registry
from qtool.formats.detect import Detection, detect
from qtool.formats.torch.architecture import Architecture
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.sharded_index import SHARDED_SUFFIX, weights_stem
from qtool.llm.huggingface_folder import is_huggingface_folder
from qtool.progress import SILENT, Progress
from qtool.workflows.convert.conversion_result import folder_bytes, report, write_graph
from qtool.workflows.convert.request import ConvertReport, ConvertRequest
from qtool.workflows.convert.target_format import TargetFormat
from qtool.workflows.convert.tensorflow_import import TensorFlowOptions, import_tensorflow
from qtool.workflows.convert.torch_import import ImportedGraph, InputDescription, import_weights

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from qtool.formats.base import Weights
    from qtool.workflows.convert.example_data import ExampleData
    from qtool.workflows.convert.target_format import Writer


def load_graph(
    path: Path,
    *,
    architecture: Architecture | None,
    input_shapes: Mapping[str, tuple[int | str, ...]] | None,
    input_dtypes: Mapping[str, np.dtype[Any]] | None = None,
    example: ExampleData | None = None,
    trust: Trust = NO_TRUST,
    progress: Progress,
) -> ir.Model:
    """Reads a model of any format as a graph; weights are exported with their module and compared with torch.

    Args:
        path: the model file.
        architecture: what builds the torch module or the Keras model of weights.
        input_shapes: the shape of each input of the module, with names for free dimensions.
        input_dtypes: element types of inputs, where ``example`` does not tell; float32 otherwise.
        example: real data, whose shapes are used where ``input_shapes`` is None.
        trust: what the file may run.
        progress: receives the steps.

    Raises:
        FormatError: the file cannot be read, or the code, the weights and the inputs do not fit together.
        UsageError: weights came without an architecture.
        InputError: the exported graph does not compute the same as torch.
    """
    detection = detect(path)
    found = registry.load_source(detection.format)
    if found.holds == "tensorflow":
        imported = import_tensorflow(
            path,
            detection.format,
            architecture=architecture,
            options=TensorFlowOptions(),
            inputs=InputDescription(
                shapes=input_shapes, dtypes=input_dtypes, feeds=None if example is None else example.feeds
            ),
            opset=None,
            progress=progress,
        )
        worst = max(comparison.relative for comparison in imported.comparisons)
        progress.note(f"converted {path.name}; it differs from TensorFlow by at most {worst:.1e} of the largest output")
        return imported.model
    if found.holds == "graph":
        return found.read(path)
    imported = import_weights(
        found.read(path, trust),
        path,
        architecture=architecture,
        inputs=InputDescription(
            shapes=input_shapes,
            dtypes=input_dtypes,
            feeds=None if example is None else example.feeds,
            data_shapes=None if example is None else example.shapes,
        ),
        opset=None,
        progress=progress,
    )
    worst = max(comparison.relative for comparison in imported.comparisons)
    progress.note(f"converted {path.name}; it differs from torch by at most {worst:.1e} of the largest output")
    return imported.model


def convert(request: ConvertRequest, progress: Progress = SILENT) -> ConvertReport:
    """Converts ``request.source`` and writes the result atomically.

    Raises:
        UsageError: the options conflict.
        FormatError: the source or the module's code cannot be used.
        InputError: there is no such conversion, or its result differs from the source.
        OutputError: the result cannot be written.
    """
    if is_huggingface_folder(request.source):
        from qtool.workflows.convert.decoders.decoder_conversion import convert_folder

        return convert_folder(request, progress)
    detection = detect(request.source)
    if detection.format == "gguf" and request.target is TargetFormat.ONNX and request.architecture is None:
        from qtool.workflows.convert.decoders.gguf_conversion import convert_gguf

        return convert_gguf(request, progress)
    found = registry.load_source(detection.format)
    if found.holds == "tensorflow":
        return _from_tensorflow(request, detection, progress)
    if request.tensorflow != TensorFlowOptions():
        raise UsageError(
            f"--inputs, --outputs, --signature and --nchw have no effect with {detection.detail}",
            fix="give them for TensorFlow models",
        )
    target = request.target.load()
    _check_options(request, detection, target, is_graph=found.holds == "graph")
    output = _output(request, detection, target)
    _check_installed(target)
    if found.holds == "graph":
        return _from_graph(request, target, detection, found.read(request.source), output, progress)
    weights = found.read(request.source, request.trust)
    if target.holds != "weights":
        return _to_graph(request, target, detection, weights, output, progress)
    if request.architecture is not None:
        _check_fit(weights, request.architecture)
    from qtool.formats.weights.sharded_weights import write_shards

    with staged(output) as path, progress.task(f"writing {output.name}"):
        if request.target is TargetFormat.SAFETENSORS and request.storage.max_shard_bytes is not None:
            write_shards(weights, path, max_shard_bytes=request.storage.max_shard_bytes)
        else:
            target.write(weights, path)
        nbytes = folder_bytes(path.parent)
    return report(request, detection, output, nbytes, tensors=len(weights.tensors), kind=weights.source)


def _from_tensorflow(request: ConvertRequest, detection: Detection, progress: Progress) -> ConvertReport:
    target = request.target.load()
    if target.holds == "weights":
        raise InputError(
            f"{request.source} is a TensorFlow model, which has no torch module",
            fix="give --to onnx, or the format of another runtime",
        )
    _check_options(request, detection, target, is_graph=False)
    output = _output(request, detection, target)
    _check_installed(target)
    data = _data(request)
    imported = import_tensorflow(
        request.source,
        detection.format,
        architecture=request.architecture,
        options=request.tensorflow,
        inputs=InputDescription(
            shapes=request.input_shapes, dtypes=request.input_dtypes, feeds=None if data is None else data.feeds
        ),
        opset=request.opset,
        progress=progress,
    )
    return _written(request, target, detection, imported, output, progress)


def _check_options(request: ConvertRequest, detection: Detection, target: Writer, *, is_graph: bool) -> None:
    if is_graph and target.holds == "weights":
        raise InputError(
            f"{request.source} is an ONNX graph, and the torch module that a .{request.target} belongs to "
            "cannot be had from it",
            fix="start from the weights that it was exported from, or give --to onnx --opset N for another opset",
        )
    is_onnx = target.holds == "graph"
    if is_graph and is_onnx and request.opset is None and request.precision is None and not request.storage.external:
        raise UsageError(
            f"{request.source} is ONNX already",
            fix="give --opset N for another opset, --fp16 or --bf16, or --external-data",
        )
    fixes_lengths = target.holds == "program" and target.fixes_lengths
    halves = target.halves if target.holds == "program" else ("float16", "bfloat16") if is_onnx else ()
    precision = request.precision
    misplaced = {
        "--model": request.architecture is not None and is_graph,
        "--input-shape": request.input_shapes and ((is_graph and not fixes_lengths) or target.holds == "weights"),
        "--opset": request.opset is not None and not is_onnx,
        "--bf16" if halves else "--fp16 or --bf16": precision is not None and precision.name not in halves,
        "--half-io": precision is not None and precision.half_io and not is_onnx,
        "--external-data": request.storage.external and not is_onnx,
        "--max-shard-mb": request.storage.max_shard_bytes is not None
        and (target.holds == "program" or request.target is TargetFormat.PTH),
    }
    for option, without_effect in misplaced.items():
        if without_effect:
            raise UsageError(
                f"{option} has no effect when {detection.detail} becomes {request.target}", fix=f"drop {option}"
            )


def _check_installed(target: Writer) -> None:
    if target.holds == "program":
        target.check_installed()


def _output(request: ConvertRequest, detection: Detection, target: Writer) -> Path:
    output = request.output
    sharded = request.target is TargetFormat.SAFETENSORS and request.storage.max_shard_bytes is not None
    if output is None:
        stem = weights_stem(request.source)
        name = f"{stem}{target.suffix}"
        if detection.format == "onnx" and target.holds == "graph":
            name = f"{stem}.{_change(request)}{target.suffix}"
        output = (request.output_dir or request.source.parent) / name
    if sharded:
        output = output.with_name(f"{weights_stem(output)}{SHARDED_SUFFIX}")
    files = target.files(output) if target.holds == "program" else (output,)
    if target.holds == "program" and output.suffix != target.suffix:
        raise UsageError(f"files for {target.runtime} end with {target.suffix}, and {output} does not", fix="rename it")
    for file in files:
        if file.exists() and file.samefile(request.source):
            raise UsageError(f"the result would replace the model {file} itself", fix="name another file with -o")
        check_output(file, force=request.force)
    return output


def _change(request: ConvertRequest) -> str:
    """Describes the result of a conversion from ONNX to ONNX."""
    parts = [] if request.opset is None else [f"opset{request.opset}"]
    parts += [] if request.precision is None else [request.precision.name]
    return ".".join(parts) or "external"


def _from_graph(
    request: ConvertRequest,
    target: Writer,
    detection: Detection,
    model: ir.Model,
    output: Path,
    progress: Progress,
) -> ConvertReport:
    if target.holds == "program":
        return _written(request, target, detection, ImportedGraph(model=model), output, progress)
    from qtool.workflows.convert.graph_conversion import comparison_with_source, in_opset

    # It is described first, since it may be modified in place.
    compare = comparison_with_source(request, model, progress)
    converted = in_opset(model, request.opset, progress)
    return write_graph(request, detection, ImportedGraph(model=converted), output, progress, compare=compare)


def _written(
    request: ConvertRequest,
    target: Writer,
    detection: Detection,
    graph: ImportedGraph,
    output: Path,
    progress: Progress,
    *,
    kind: str | None = None,
) -> ConvertReport:
    if target.holds != "program":
        return write_graph(request, detection, graph, output, progress, kind=kind)
    from qtool.workflows.convert.program_conversion import write_program

    return write_program(request, target, detection, graph, output, progress, kind=kind)


def _to_graph(
    request: ConvertRequest,
    target: Writer,
    detection: Detection,
    weights: Weights,
    output: Path,
    progress: Progress,
) -> ConvertReport:
    data = _data(request)
    imported = import_weights(
        weights,
        request.source,
        architecture=request.architecture,
        inputs=InputDescription(
            shapes=request.input_shapes,
            dtypes=request.input_dtypes,
            feeds=None if data is None else data.feeds,
            data_shapes=None if data is None else data.shapes,
        ),
        opset=request.opset,
        progress=progress,
    )
    return _written(request, target, detection, imported, output, progress, kind=weights.source)


def _data(request: ConvertRequest) -> ExampleData | None:
    if request.calib_data is None:
        return None
    from qtool.workflows.convert.example_data import example_data, open_example_data

    return example_data(open_example_data(request.calib_data, request.preprocess), request.input_shapes)


def _check_fit(weights: Weights, architecture: Architecture) -> None:
    from qtool.formats.torch.architecture import building
    from qtool.formats.torch.fitting import fit

    with building(architecture) as module:
        fit(module, weights.tensors, factory=architecture.factory)
