"""Converts a TensorFlow model to a graph, and compares it with TensorFlow."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.calib.specs import Array, Feed
from qtool.errors import InputError, UsageError
from qtool.formats.audit import audit
from qtool.formats.errors import FormatError
from qtool.formats.tensorflow import tensorflow_kinds, tensorflow_outline
from qtool.formats.tensorflow.keras_weights import check_keras_weights
from qtool.formats.tensorflow.tensorflow_process import (
    ModelToLoad,
    TensorDescription,
    TensorFlowProcess,
    check_installed,
    loaded,
)
from qtool.formats.torch.architecture import Architecture
from qtool.formats.torch.example_inputs import InputSpec
from qtool.formats.torch.model_zoos import zoo_name
from qtool.private_folder import private_folder
from qtool.progress import Progress
from qtool.workflows.convert.output_dims import SeenShapes
from qtool.workflows.convert.program_check import compare_programs
from qtool.workflows.convert.torch_import import ImportedGraph, InputDescription

# The newest opset that tf2onnx supports.
_EXPORTER_OPSET = 18
# Fuse parts of TensorFlow's layers: scales of normalizations, transposes, constants.
_PASSES = (
    "qtool.passes.normalization.normalize:ConstantsToInitializers",
    "qtool.passes.quantization.fold_constants:FoldConstants",
    "qtool.passes.quantization.tensorflow_leftovers:ReduceBeforeTranspose",
    "qtool.passes.quantization.fold_weight_transposes:FoldWeightTransposes",
    "qtool.passes.quantization.arithmetic:CanonicalArithmetic",
    "qtool.passes.quantization.constant_chains:JoinConstantChains",
    "qtool.passes.quantization.fold_affine:FoldAffine",
    "qtool.passes.normalization.normalize:Tidy",
)
_CHANNELS_LAST_TO_FIRST = (0, 3, 1, 2)
_CHANNELS_FIRST_TO_LAST = (0, 2, 3, 1)
_IMAGE_AXES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFlowOptions:
    """The part of a model to convert, and its layout.

    Attributes:
        inputs: the nodes to feed, of a frozen graph; empty for its placeholders.
        outputs: the nodes to read, of a frozen graph; empty for those that nothing else reads.
        signature: the signature of a SavedModel; None for its default one, or its first.
        channels_first: whether inputs of images (batch, height, width, channels) become (batch, channels, height,
            width).
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    signature: str | None = None
    channels_first: bool = False


def import_tensorflow(
    path: Path,
    kind: str,
    *,
    architecture: Architecture | None,
    options: TensorFlowOptions,
    inputs: InputDescription,
    opset: int | None,
    progress: Progress,
) -> ImportedGraph:
    """Converts the model with tf2onnx, optimizes the result, and compares it with TensorFlow.

    Args:
        path: the file or folder.
        kind: one of ``qtool.formats.tensorflow.tensorflow_kinds``.
        architecture: what builds the Keras model of weights alone.
        options: which part of the model to take.
        inputs: shapes for inputs that leave them open, and real data.
        opset: the graph's opset; None for the converter's choice.
        progress: receives the steps.

    Raises:
        UsageError: the options name parts that the model does not have, or weights alone came without an architecture.
        FormatError: TensorFlow is not installed or does not load the model, or tf2onnx does not convert it.
        InputError: the graph does not compute the same as TensorFlow, or holds operators that ONNX does not have.
    """
    model = _model_to_load(path, kind, architecture, options)
    check_installed()
    progress.note(f"{path.name}: loading with TensorFlow, in a separate process")
    with loaded(model) as process:
        shapes = _shapes(process.inputs, inputs)
        specs = [_spec(one, shapes[one.name], options) for one in process.inputs]
        moved = [
            spec.name for spec in specs if options.channels_first and len(spec.dims) == len(_CHANNELS_LAST_TO_FIRST)
        ]
        if options.channels_first and not moved:
            raise UsageError("--nchw moves channels of inputs with four axes, and there are none", fix="drop --nchw")
        with progress.task("converting with tf2onnx"):
            graph = _converted(process, path, shapes, moved, opset)
            _name_dims(graph, specs)
        return _compared(graph, process, specs, moved, inputs.feeds, progress)


def _model_to_load(path: Path, kind: str, architecture: Architecture | None, options: TensorFlowOptions) -> ModelToLoad:
    weights_alone = kind == tensorflow_kinds.KERAS_WEIGHTS
    if architecture is not None and not weights_alone:
        raise UsageError(f"--model has no effect with {path}, which holds its layers", fix="drop --model")
    if options.signature is not None and kind != tensorflow_kinds.SAVED_MODEL:
        raise UsageError(f"{path} has no signatures", fix="give --signature for SavedModels only")
    if kind == tensorflow_kinds.GRAPH_DEF:
        return _graph_to_load(path, options)
    if options.inputs or options.outputs:
        raise UsageError(
            f"{path} declares its inputs and outputs",
            fix="give --inputs and --outputs for frozen graphs only",
        )
    if weights_alone:
        check_keras_weights(path)
        _check_factory(path, architecture)
        return ModelToLoad(path=path, kind=kind, architecture=architecture)
    if kind != tensorflow_kinds.SAVED_MODEL:
        _refuse_foreign_objects(path)
        return ModelToLoad(path=path, kind=kind)
    outline = tensorflow_outline.read_saved_model(path)
    _refuse_reaching_out(path, outline)
    if options.signature is not None and options.signature not in outline.signatures:
        raise UsageError(
            f"{path} has no signature '{options.signature}'",
            fix=f"choose one of {', '.join(sorted(outline.signatures))}",
        )
    return ModelToLoad(path=path, kind=kind, signature=options.signature or outline.signature)


def _check_factory(path: Path, architecture: Architecture | None) -> None:
    if architecture is None:
        raise UsageError(
            f"{path} holds weights without the Keras model that they belong to",
            fix="name what builds it: --model file.py:factory or pkg.module:factory",
        )
    if zoo_name(architecture.factory) is not None:
        raise UsageError(
            f"{architecture.factory} is a torch module, and {path} holds weights of Keras",
            fix="name what builds the Keras model: --model file.py:factory or pkg.module:factory",
        )


def _graph_to_load(path: Path, options: TensorFlowOptions) -> ModelToLoad:
    outline = tensorflow_outline.read_graph_def(path)
    _refuse_reaching_out(path, outline)
    found = outline.signatures[tensorflow_outline.DEFAULT_SIGNATURE]
    chosen = {
        "--inputs": options.inputs or tuple(one.name for one in found.inputs),
        "--outputs": options.outputs or tuple(one.name for one in found.outputs),
    }
    for option, names in chosen.items():
        if not names:
            raise UsageError(
                f"nothing in {path} looks like one of its {option.removeprefix('--')}", fix=f"name nodes with {option}"
            )
        for name in names:
            if name.partition(":")[0] not in outline.nodes:
                near = difflib.get_close_matches(name, outline.nodes, n=1, cutoff=0.0)
                raise UsageError(
                    f"{option} names '{name}', which is not a node of {path}", fix=f"the nearest is {near[0]}"
                )
    return ModelToLoad(
        path=path, kind=tensorflow_kinds.GRAPH_DEF, inputs=chosen["--inputs"], outputs=chosen["--outputs"]
    )


def _refuse_foreign_objects(path: Path) -> None:
    """Raises a FormatError for code that Keras would import and call, or files that it would read, on loading."""
    findings = audit(path).findings
    if findings:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise FormatError(
            f"{path} is not safe to load: {findings[0].where} {findings[0].what}{more}",
            fix="where you trust it, export it with the code that made it: model.export(folder) makes a SavedModel",
        )


def _refuse_reaching_out(path: Path, outline: tensorflow_outline.TensorFlowOutline) -> None:
    if outline.reaching_out:
        raise FormatError(
            f"{path} reads or writes files or calls Python code: {', '.join(outline.reaching_out)}",
            fix="do not use this file unless you trust it; export the part without these operators",
        )


def _shapes(
    described: Sequence[TensorDescription], inputs: InputDescription
) -> dict[str, tuple[int | str | None, ...] | None]:
    """Returns the shape of each input: as requested, or else as declared."""
    given = dict(inputs.shapes or {})
    names = [one.name for one in described]
    if "" in given and len(names) == 1:
        given[names[0]] = given.pop("")
    for name in given:
        if name not in names:
            raise UsageError(f"the model has no input '{name}'", fix=f"its inputs: {', '.join(names)}")
    for one in described:
        if one.dims is not None and one.name in given and len(one.dims) != len(given[one.name]):
            raise UsageError(
                f"input '{one.name}' has {len(one.dims)} dimensions, not {len(given[one.name])}",
                fix=f"its shape: {', '.join('?' if dim is None else str(dim) for dim in one.dims)}",
            )
    return {one.name: given.get(one.name, one.dims) for one in described}


def _spec(
    described: TensorDescription, dims: tuple[int | str | None, ...] | None, options: TensorFlowOptions
) -> InputSpec:
    """Names the free dimensions, and moves channels to the requested layout."""
    if dims is None:
        raise UsageError(
            f"input '{described.name}' has no declared shape", fix=f"give it: --input-shape {described.name}=batch,…"
        )
    if described.dtype.kind == "O":
        raise InputError(
            f"input '{described.name}' takes text", fix="export the part of the model that starts with numbers"
        )
    named = tuple(
        dim if dim is not None else "batch" if axis == 0 else f"{described.name}_dim{axis}"
        for axis, dim in enumerate(dims)
    )
    if options.channels_first and len(named) == _IMAGE_AXES:
        named = tuple(named[axis] for axis in _CHANNELS_LAST_TO_FIRST)
    return InputSpec(name=described.name, dims=named, dtype=described.dtype)


def _converted(
    process: TensorFlowProcess,
    path: Path,
    shapes: Mapping[str, tuple[int | str | None, ...] | None],
    moved: Sequence[str],
    opset: int | None,
) -> ir.Model:
    from qtool.workflows.convert.opsets import to_opset, unknown_operators

    asked = {
        name: [dim if isinstance(dim, int) else None for dim in dims]
        for name, dims in shapes.items()
        if dims is not None
    }
    with private_folder() as folder:
        file = folder / "model.onnx"
        process.convert(file, opset=_EXPORTER_OPSET, channels_first=moved, shapes=asked)
        # Read without checks: all operators that ONNX does not have are listed below.
        model = ir.load(file)
    # tf2onnx appends its commit, which is None in releases.
    model.producer_version = (model.producer_version or "").removesuffix(" None")
    for domain in set(model.opset_imports) - {"", *(node.domain for node in model.graph.all_nodes())}:
        del model.opset_imports[domain]
    for location in _PASSES:
        module, _, name = location.partition(":")
        graph_pass: ir.passes.PassBase = getattr(import_module(module), name)()
        model = graph_pass(model).model
    unknown = unknown_operators(model)
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in unknown.items())
        raise InputError(
            f"tf2onnx cannot convert these operators of {path}: {listed}",
            fix="replace them in the model, or convert the part without them (--outputs, of a frozen graph)",
        )
    return model if opset is None else to_opset(model, opset)


def _name_dims(model: ir.Model, specs: Sequence[InputSpec]) -> None:
    """Sets the shapes of the inputs, with readable names instead of the converter's."""
    dims = {spec.name: spec.dims for spec in specs}
    for value in (*model.graph.outputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
    for value in model.graph.inputs:
        value.shape = ir.Shape(dims[value.name or ""])


def _compared(
    graph: ir.Model,
    process: TensorFlowProcess,
    specs: Sequence[InputSpec],
    moved: Sequence[str],
    feeds: Feed | None,
    progress: Progress,
) -> ImportedGraph:
    from qtool.runtime.graphs import open_graph

    # Images and bare arrays have no name of their own: they are the only input.
    real = None if feeds is None else {name or specs[0].name: array for name, array in feeds.items()}

    def reference(feed: Feed) -> list[Array]:
        return process.run(
            {
                name: np.transpose(array, _CHANNELS_FIRST_TO_LAST) if name in moved else array
                for name, array in feed.items()
            }
        )

    order = [output.name for output in process.outputs]
    shapes = SeenShapes(specs)
    with open_graph(graph) as session:
        comparisons = compare_programs(
            specs,
            real,
            reference=reference,
            converted=shapes.watched(lambda feed: session.run(feed, order)),
            progress=progress,
        )
    shapes.name_free_dims(graph)
    return ImportedGraph(model=graph, comparisons=comparisons)
