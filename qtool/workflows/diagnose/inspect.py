"""Describes a model file without reading its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from qtool.errors import UsageError
from qtool.formats import registry
from qtool.formats.base import ProgramSource, SeveralFiles, WeightsSource
from qtool.formats.detect import Detection, detect
from qtool.formats.trust import NO_TRUST, Trust
from qtool.formats.weights.gguf_header import read_gguf_header
from qtool.formats.weights.safetensors_header import read_header
from qtool.workflows.diagnose.model_facts import DtypeFacts, GraphFacts, InspectReport, ProgramFacts, TensorFacts

# The usual names of the safetensors format's element types.
_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "C64": "complex64",
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


def inspect_model(
    path: Path,
    *,
    input_shapes: Mapping[str, tuple[int | str, ...]] | None = None,
    largest: int = 10,
    trust: Trust = NO_TRUST,
) -> InspectReport:
    """Describes the model in ``path``; large tensors are not read, and torch is imported for ``.pth`` only.

    Args:
        path: the file.
        input_shapes: lengths for the graph's free dimensions, for counting its work; without them a free first
            dimension is one sample.
        largest: how many of the largest tensors to name.
        trust: which code the file may run when it is opened.

    Raises:
        FormatError: the file is missing, damaged or of an unknown kind.
        UsageError: a shape is given for an input that the graph does not have, or for a file without a graph.
    """
    detection = detect(path)
    if detection.format == "onnx":
        return _inspect_onnx(path, detection, input_shapes, largest)
    found = registry.load_source(detection.format)
    if found.holds == "tensorflow":
        from qtool.workflows.diagnose.tensorflow_facts import tensorflow_facts

        if input_shapes:
            raise UsageError(
                "--input-shape counts the work of ONNX graphs only", fix="convert the model first, or drop it"
            )
        program, stored = tensorflow_facts(path, detection.format)
        return _report(path, detection.detail, stored, largest, program=program)
    if input_shapes:
        raise UsageError(f"{path} holds weights only, so it has no inputs", fix="drop --input-shape")
    if detection.format == "safetensors":
        header = read_header(path)
        tensors = [
            TensorFacts(
                name=name,
                dtype=_SAFETENSORS_DTYPES.get(entry.dtype, entry.dtype.lower()),
                shape=entry.shape,
                elements=math.prod(entry.shape),
                nbytes=entry.nbytes,
            )
            for name, entry in header.tensors.items()
        ]
        return _report(path, detection.detail, tensors, largest, metadata=header.metadata)
    if detection.format == "gguf":
        return _inspect_gguf(path, detection, largest)
    if found.holds == "graph":
        raise UsageError(f"{path} is {detection.detail}, which cannot be inspected", fix="name a file of weights")
    return _inspect_weights(path, detection, found, largest, trust)


def _inspect_gguf(path: Path, detection: Detection, largest: int) -> InspectReport:
    described = read_gguf_header(path)
    tensors = [
        TensorFacts(
            name=entry.name,
            dtype=entry.type_name,
            shape=entry.shape,
            elements=math.prod(entry.shape),
            nbytes=entry.nbytes or 0,
        )
        for entry in described.entries
    ]
    texts = {key: str(value) for key, value in described.fields.items() if not isinstance(value, list)}
    return _report(path, detection.detail, tensors, largest, metadata=texts)


def _inspect_weights(
    path: Path, detection: Detection, found: WeightsSource | ProgramSource, largest: int, trust: Trust
) -> InspectReport:
    weights = found.read(path, trust)
    tensors = [
        TensorFacts(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            elements=tensor.numel(),
            nbytes=tensor.numel() * tensor.element_size(),
        )
        for name, tensor in weights.tensors.items()
    ]
    beside = found.companion_files(path) if isinstance(found, SeveralFiles) else ()
    program = None
    if weights.inputs:
        program = ProgramFacts(
            producer=detection.detail,
            inputs=tuple(f"{one.name} {one.dtype} ({', '.join(map(str, one.dims))})" for one in weights.inputs),
            outputs=(),
            operators={},
            layouts={},
        )
    return _report(
        path,
        f"{detection.detail}, {weights.source}",
        tensors,
        largest,
        data_files=tuple(path.with_name(name) for name in beside),
        metadata=weights.metadata,
        program=program,
    )


def _inspect_onnx(
    path: Path, detection: Detection, input_shapes: Mapping[str, tuple[int | str, ...]] | None, largest: int
) -> InspectReport:
    from qtool.formats.onnx.onnx_file import OnnxFile, external_files
    from qtool.image_layout import image_layouts
    from qtool.workflows.diagnose import graph_facts

    model = OnnxFile().read(path)
    inputs, outputs = graph_facts.inputs(model), graph_facts.outputs(model)
    operators = graph_facts.operators(model)
    tensors = graph_facts.tensors(model)
    data_files = tuple((path.parent / location).resolve() for location in external_files(path))
    assumed = graph_facts.fix_free_dims(model, input_shapes)
    return _report(
        path,
        detection.detail,
        tensors,
        largest,
        data_files=data_files,
        metadata=dict(model.metadata_props),
        graph=GraphFacts(
            ir_version=model.ir_version,
            opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
            producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
            inputs=inputs,
            outputs=outputs,
            operators=operators,
            layouts=image_layouts(model),
            multiply_adds=graph_facts.multiply_adds(model, assumed),
            quantization=graph_facts.quantization(model, tensors),
        ),
    )


def _report(
    path: Path,
    kind: str,
    tensors: Iterable[TensorFacts],
    largest: int,
    *,
    data_files: tuple[Path, ...] = (),
    metadata: Mapping[str, str] | None = None,
    graph: GraphFacts | None = None,
    program: ProgramFacts | None = None,
) -> InspectReport:
    ordered = sorted(tensors, key=lambda tensor: (-tensor.nbytes, tensor.name))
    dtypes: dict[str, DtypeFacts] = {}
    for tensor in ordered:
        sum_so_far = dtypes.get(tensor.dtype, DtypeFacts(tensors=0, parameters=0, nbytes=0))
        dtypes[tensor.dtype] = DtypeFacts(
            tensors=sum_so_far.tensors + 1,
            parameters=sum_so_far.parameters + tensor.elements,
            nbytes=sum_so_far.nbytes + tensor.nbytes,
        )
    return InspectReport(
        path=path,
        kind=kind,
        nbytes=sum(file.stat().st_size for file in (*_files(path), *data_files)),
        data_files=tuple(file.name for file in data_files),
        tensors=len(ordered),
        parameters=sum(tensor.elements for tensor in ordered),
        dtypes=dict(sorted(dtypes.items(), key=lambda item: (-item[1].nbytes, item[0]))),
        largest=tuple(ordered[:largest]),
        metadata=metadata or {},
        graph=graph,
        program=program,
    )


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
