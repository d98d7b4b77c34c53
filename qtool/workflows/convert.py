"""Converts a model file into another format, and proves that the result computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calib.specs import Feed
from formats import registry
from formats.architecture import Architecture
from formats.detect import Detection, detect
from formats.example_inputs import InputSpec
from formats.tensorflow_kinds import TENSORFLOW_FORMATS
from formats.trust import NO_TRUST, Trust
from qtool.atomic import check_output, staged
from qtool.errors import InputError, UsageError
from qtool.progress import Progress
from qtool.workflows.conversion import TARGET_FORMATS, ConvertReport, ConvertRequest, Target
from qtool.workflows.equivalence import Comparison, compare_programs
from qtool.workflows.tensorflow_import import TensorFlowOptions, import_tensorflow
from qtool.workflows.torch_import import ImportedGraph, InputDescription, import_weights

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from formats.base import Weights
    from qtool.workflows.example_data import ExampleData


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

    Weights in external files are read into memory, as long as they fit into one message.

    Args:
        path: the model file.
        architecture: what builds the torch module of weights.
        input_shapes: the shape of each input of the module, with names for free dimensions.
        input_dtypes: element types of inputs, where ``example`` does not tell; float32 otherwise.
        example: real data; its shapes count where ``input_shapes`` is None.
        trust: what the file may run.
        progress: receives the steps.

    Raises:
        FormatError: the file cannot be read, or the code, the weights and the inputs do not fit together.
        UsageError: weights came without an architecture.
        InputError: the exported graph computes something else than torch.
    """
    detection = detect(path)
    if detection.format in TENSORFLOW_FORMATS:
        imported = import_tensorflow(
            path,
            detection.format,
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
    found = registry.load_source(detection.format)
    if found.holds == "graph":
        from formats.onnx_file import load_weights

        return load_weights(found.read(path))
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


def convert(request: ConvertRequest, progress: Progress) -> ConvertReport:
    """Converts ``request.source`` and writes the result whole, or not at all.

    Raises:
        UsageError: the options do not go together.
        FormatError: the source or the module's code cannot be used.
        InputError: there is no such conversion, or its result computes something else.
        OutputError: the result cannot be written.
    """
    detection = detect(request.source)
    if detection.format in TENSORFLOW_FORMATS:
        return _from_tensorflow(request, detection, progress)
    if request.tensorflow != TensorFlowOptions():
        raise UsageError(
            f"--inputs, --outputs and --nchw say nothing about {detection.detail}",
            fix="give them for TensorFlow models",
        )
    found = registry.load_source(detection.format)
    target = registry.load(TARGET_FORMATS[request.target])
    _check_options(request, detection, is_graph=found.holds == "graph")
    output = _output(request, detection, target.suffix)
    if found.holds == "graph":
        return _to_opset(request, detection, found.read(request.source), output, progress)
    weights = found.read(request.source, request.trust)
    if target.holds == "graph":
        return _to_graph(request, detection, weights, output, progress)
    if request.architecture is not None:
        _check_fit(weights, request.architecture)
    with staged(output) as path, progress.task(f"writing {output.name}"):
        target.write(weights, path)
        nbytes = _folder_bytes(path.parent)
    return _report(request, detection, output, nbytes, tensors=len(weights.tensors), kind=weights.source)


def _from_tensorflow(request: ConvertRequest, detection: Detection, progress: Progress) -> ConvertReport:
    if request.target is not Target.ONNX:
        raise InputError(
            f"{request.source} is a TensorFlow model, and no torch module belongs to it",
            fix="give --to onnx, which is the only form that it can take",
        )
    if request.architecture is not None:
        raise UsageError(f"--model says nothing about {detection.detail}: it holds its layers", fix="drop --model")
    output = _output(request, detection, registry.load(TARGET_FORMATS[Target.ONNX]).suffix)
    data = _data(request)
    imported = import_tensorflow(
        request.source,
        detection.format,
        options=request.tensorflow,
        inputs=InputDescription(
            shapes=request.input_shapes, dtypes=request.input_dtypes, feeds=None if data is None else data.feeds
        ),
        opset=request.opset,
        progress=progress,
    )
    return _write_graph(request, detection, imported, output, progress)


def _check_options(request: ConvertRequest, detection: Detection, *, is_graph: bool) -> None:
    if is_graph and request.target is not Target.ONNX:
        raise InputError(
            f"{request.source} is an ONNX graph, and the torch module that a .{request.target} belongs to "
            "cannot be had from it",
            fix="start from the weights that it was exported from, or give --to onnx --opset N for another opset",
        )
    if is_graph and request.opset is None:
        raise UsageError(f"{request.source} is ONNX already", fix="give --opset N to convert it to another opset")
    graph_only = {
        "--model": request.architecture is not None and is_graph,
        "--input-shape": request.input_shapes and (is_graph or request.target is not Target.ONNX),
        "--opset": request.opset is not None and request.target is not Target.ONNX,
    }
    for option, misplaced in graph_only.items():
        if misplaced:
            raise UsageError(
                f"{option} says nothing when {detection.detail} becomes {request.target}", fix=f"drop {option}"
            )


def _output(request: ConvertRequest, detection: Detection, suffix: str) -> Path:
    output = request.output
    if output is None:
        name = f"{request.source.stem}{suffix}"
        if detection.format == TARGET_FORMATS[Target.ONNX]:
            name = f"{request.source.stem}.opset{request.opset}{suffix}"
        output = (request.output_dir or request.source.parent) / name
    if output.exists() and output.samefile(request.source):
        raise UsageError(f"the result would replace the model {output} itself", fix="name another file with -o")
    check_output(output, force=request.force)
    return output


def _to_graph(
    request: ConvertRequest, detection: Detection, weights: Weights, output: Path, progress: Progress
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
    return _write_graph(request, detection, imported, output, progress, kind=weights.source)


def _to_opset(
    request: ConvertRequest, detection: Detection, model: ir.Model, output: Path, progress: Progress
) -> ConvertReport:
    from qtool.runtime.graphs import open_graph
    from qtool.runtime.session import Session
    from qtool.workflows.opsets import to_opset

    if request.opset is None:
        raise UsageError("no opset is given", fix="pass --opset N")
    with progress.task(f"converting to opset {request.opset}"):
        converted = to_opset(model, request.opset)
    from formats.onnx_file import load_weights

    original = Session(request.source)
    specs = [
        InputSpec(
            name=spec.name,
            dims=tuple(f"{spec.name}_dim{axis}" if dim is None else dim for axis, dim in enumerate(spec.shape or ())),
            dtype=spec.dtype,
        )
        for spec in original.inputs
    ]
    real: Feed | None = None
    if request.calib_data is not None:
        from qtool.workflows.example_data import SAMPLES, open_data

        dataset = open_data(request.calib_data, request.preprocess)
        real = next(iter(dataset.feeds(original.inputs, batch_size=SAMPLES, limit=SAMPLES)))
    with open_graph(load_weights(converted)) as session:
        comparisons = compare_programs(
            specs,
            real,
            reference=lambda feed: list(original.run(feed).values()),
            converted=session.run,
            progress=progress,
        )
    return _write_graph(request, detection, ImportedGraph(model=converted, comparisons=comparisons), output, progress)


def _write_graph(
    request: ConvertRequest,
    detection: Detection,
    graph: ImportedGraph,
    output: Path,
    progress: Progress,
    *,
    kind: str | None = None,
) -> ConvertReport:
    from formats.onnx_file import OnnxFile

    file = OnnxFile()
    with staged(output) as path, progress.task(f"writing {output.name}"):
        file.write(graph.model, path)
        file.check(path)
        nbytes = _folder_bytes(path.parent)
    values = graph.model.graph
    return _report(
        request,
        detection,
        output,
        nbytes,
        kind=kind,
        opset=graph.model.opset_imports.get(""),
        inputs=tuple(_described(value) for value in values.inputs if value.name not in values.initializers),
        outputs=tuple(_described(value) for value in values.outputs),
        comparisons=graph.comparisons,
    )


def _report(
    request: ConvertRequest,
    detection: Detection,
    output: Path,
    nbytes: int,
    *,
    kind: str | None = None,
    opset: int | None = None,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
    tensors: int | None = None,
    comparisons: tuple[Comparison, ...] = (),
) -> ConvertReport:
    return ConvertReport(
        source=request.source,
        source_kind=detection.detail if kind is None else f"{detection.detail}, {kind}",
        source_bytes=_bytes(request.source),
        output=output,
        output_bytes=nbytes,
        target=request.target,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
        tensors=tensors,
        comparisons=comparisons,
    )


def _bytes(source: Path) -> int:
    if source.is_file():
        return source.stat().st_size
    return sum(file.stat().st_size for file in source.rglob("*") if file.is_file())


def _folder_bytes(folder: Path) -> int:
    """Sums up the files of a staged result: the model, and its data where that is a second file."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _described(value: ir.Value) -> str:
    dims = "?" if value.shape is None else ", ".join(str(getattr(dim, "value", dim) or "?") for dim in value.shape)
    return f"{value.name} ({dims})"


def _data(request: ConvertRequest) -> ExampleData | None:
    if request.calib_data is None:
        return None
    from qtool.workflows.example_data import example_data, open_data

    return example_data(open_data(request.calib_data, request.preprocess))


def _check_fit(weights: Weights, architecture: Architecture) -> None:
    from formats.architecture import building
    from formats.fitting import fit

    with building(architecture) as module:
        fit(module, weights.tensors, factory=architecture.factory)
