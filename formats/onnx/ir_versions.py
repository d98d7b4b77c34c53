"""Determines the oldest IR version that a graph needs, since runtimes of its opset may not support newer ones.

Source: https://github.com/onnx/onnx/blob/main/docs/Versioning.md (the table of releases), and the comments on the
versions in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

_WITH_ALL_WEIGHTS_AS_INPUTS = 3
_FREE_WEIGHTS = 4
_QUANTIZATION_ANNOTATIONS = 5
_SEQUENCES = 6
_FUNCTIONS = 8
_OVERLOADS = 10
# Element types that were added later, by the prefixes of their names.
_ELEMENTS: Mapping[str, int] = {
    "FLOAT8E8M0": 12,
    "FLOAT8": 9,
    "FLOAT4": 11,
    "INT4": 10,
    "UINT4": 10,
    "INT2": 13,
    "UINT2": 13,
}


def lowest_ir_version(model: ir.Model) -> int:
    """Returns the oldest version of the file format that has all that ``model`` uses, its opsets included.

    An opset that the installed onnx does not know leaves the model's own version.
    """
    newest = onnx.defs.onnx_opset_version()
    if model.opset_imports.get("", 1) > newest:
        return model.ir_version
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    return max(onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True), *_needed(model))


def _needed(model: ir.Model) -> Iterator[int]:
    inputs = set(model.graph.inputs)
    free = any(value not in inputs for graph in model.graphs() for value in graph.initializers.values())
    yield _FREE_WEIGHTS if free else _WITH_ALL_WEIGHTS_AS_INPUTS
    if model.functions:
        yield _OVERLOADS if any(overload for _, _, overload in model.functions) else _FUNCTIONS
    for value in _values(model):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            yield _FUNCTIONS if isinstance(value.type, ir.OptionalType) else _SEQUENCES
        if value.dtype is not None:
            yield next((version for name, version in _ELEMENTS.items() if value.dtype.name.startswith(name)), 1)
        if value.meta.get("quant_parameter_tensor_names"):
            yield _QUANTIZATION_ANNOTATIONS


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs
