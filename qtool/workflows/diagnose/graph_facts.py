"""Counts the nodes, tensors and multiply-adds of a graph, from its outline."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from qtool.analysis.multiply_adds import multiplies
from qtool.analysis.multiply_adds import multiply_adds as multiply_adds_of
from qtool.errors import UsageError
from qtool.formats.library_noise import quiet_libraries
from qtool.formats.onnx.shape_inference import infer_shapes
from qtool.graph.constants import integer_attribute
from qtool.graph.unpacked_product import is_of_the_model
from qtool.qdq.packed_integers import is_packed
from qtool.qdq.remove_blocks import packed_source
from qtool.workflows.diagnose.model_facts import MultiplyAdds, Quantization, TensorFacts

# The input indices of the weights and of the other factor of multiplying nodes.
_FACTORS: Mapping[str, tuple[int, int]] = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "MatMulNBits": (0, 1),
}
_INTEGER_NODES = (
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
    "DynamicQuantizeLSTM",
)
_QUANTIZED_DTYPES = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "float8e4m3fn", "float8e5m2")
_FLOAT_DTYPES = ("float32", "float16", "bfloat16", "float64")


def inputs(model: ir.Model) -> tuple[str, ...]:
    """Describes the graph's inputs, as ``name dtype (dims)``."""
    return tuple(described(value) for value in model.graph.inputs if value.name not in model.graph.initializers)


def outputs(model: ir.Model) -> tuple[str, ...]:
    """Describes the graph's outputs, as ``name dtype (dims)``."""
    return tuple(described(value) for value in model.graph.outputs)


def described(value: ir.Value) -> str:
    """Writes a value as ``image float32 (batch, 3, 224, 224)``, with ``?`` for what is unknown."""
    dtype = "?" if value.dtype is None else _dtype_name(value.dtype)
    if value.shape is None:
        return f"{value.name} {dtype}"
    dims = (str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    return f"{value.name} {dtype} ({', '.join(dims)})"


def operators(model: ir.Model) -> dict[str, int]:
    """Counts the nodes of each type, subgraphs included, the most frequent first."""
    counts = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.all_nodes()
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def tensors(model: ir.Model) -> list[TensorFacts]:
    """Describes every stored tensor: initializers, and constants that are nodes."""
    return [_facts(name, tensor) for name, tensor in _stored(model)]


def fix_free_dims(model: ir.Model, input_shapes: Mapping[str, tuple[int | str, ...]] | None) -> dict[str, int]:
    """Sets lengths of free dimensions of the inputs, 1 for a first one without a length, and infers all shapes.

    Returns:
        The lengths by the dimensions' names.

    Raises:
        UsageError: there is no such input, or it has another rank or length.
    """
    graph_inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    given = _given_shapes(graph_inputs, input_shapes or {})
    lengths = _lengths(graph_inputs, given)
    for value in (*graph_inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([_length(dim, lengths) for dim in value.shape])
    for value in graph_inputs:
        if value.shape is not None:
            shape = given.get(value.name or "", tuple(value.shape))
            value.shape = ir.Shape([_bound(value, axis, dim, shape, lengths) for axis, dim in enumerate(value.shape)])
    with quiet_libraries():
        common.InlinePass(is_of_the_model)(model)
        infer_shapes(model)
    return lengths


def multiply_adds(model: ir.Model, assumed: Mapping[str, int]) -> MultiplyAdds:
    """Counts the multiply-adds of the nodes whose shapes are known."""
    total = quantized = known = unknown = 0
    for node in (node for node in model.graph.all_nodes() if multiplies(node)):
        count = multiply_adds_of(node, _static_shape)
        if count is None:
            unknown += 1
            continue
        known += 1
        total += count
        quantized += count if _is_quantized(node) else 0
    return MultiplyAdds(
        total=total, known_nodes=known, unknown_nodes=unknown, quantized=quantized, assumed=dict(assumed)
    )


def quantization(model: ir.Model, stored: Sequence[TensorFacts]) -> Quantization:
    """Counts the quantized part of nodes and stored tensors."""
    types = Counter(node.op_type for node in model.graph.all_nodes())
    layers = list(_layers(model))
    scaled = {
        value.name
        for node in model.graph.all_nodes()
        for position, value in enumerate(node.inputs)
        if value is not None and position in _scaled_inputs(node)
    }
    integers = [tensor for tensor in stored if tensor.name in scaled and tensor.dtype in _QUANTIZED_DTYPES]
    floats = [tensor for tensor in stored if tensor.dtype in _FLOAT_DTYPES]
    per_byte = _values_per_byte(model)
    quantized_parameters = sum(tensor.elements * per_byte.get(tensor.name, 1) for tensor in integers)
    quantized_bytes = sum(tensor.nbytes for tensor in integers)
    return Quantization(
        quantize_nodes=types["QuantizeLinear"],
        dequantize_nodes=types["DequantizeLinear"],
        integer_nodes=sum(
            count for kind, count in types.items() if kind.startswith("QLinear") or kind in _INTEGER_NODES
        ),
        layers=len(layers),
        quantized_layers=sum(_is_quantized(node) for node in layers),
        weight_parameters=quantized_parameters + sum(tensor.elements for tensor in floats),
        quantized_parameters=quantized_parameters,
        weight_bytes=quantized_bytes + sum(tensor.nbytes for tensor in floats),
        quantized_bytes=quantized_bytes,
    )


def _stored(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.outputs[0].name or "", node.attributes["value"].as_tensor()


def _facts(name: str, tensor: ir.TensorProtocol) -> TensorFacts:
    return TensorFacts(
        name=name,
        dtype=_dtype_name(tensor.dtype),
        shape=tuple(int(dim) for dim in tensor.shape.numpy()),
        elements=math.prod(tensor.shape.numpy()),
        nbytes=tensor.nbytes,
    )


def _given_shapes(
    graph_inputs: Sequence[ir.Value], input_shapes: Mapping[str, tuple[int | str, ...]]
) -> dict[str, tuple[int | str, ...]]:
    """Returns the shapes by input, each of which has the rank of its input and keeps its fixed lengths."""
    names = [value.name or "" for value in graph_inputs]
    given = dict(input_shapes)
    if "" in given and len(names) == 1:
        given[names[0]] = given.pop("")
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
            raise UsageError(f"the graph has no input '{name}'", fix=f"write --input-shape {near[0]}=…")
    for value in graph_inputs:
        shape = given.get(value.name or "")
        if shape is None or value.shape is None:
            continue
        fix = f"its shape: {described(value)}"
        if len(shape) != len(value.shape):
            raise UsageError(
                f"input '{value.name}' has {len(value.shape)} dimensions, not {len(shape)}",
                fix=fix,
            )
        for axis, (dim, length) in enumerate(zip(value.shape, shape, strict=True)):
            if isinstance(dim, int) and isinstance(length, int) and dim not in (length, -1):
                raise UsageError(f"dimension {axis} of input '{value.name}' is {dim}, not {length}", fix=fix)
    return given


def _lengths(graph_inputs: Sequence[ir.Value], given: Mapping[str, tuple[int | str, ...]]) -> dict[str, int]:
    """Returns the lengths of named free dimensions, by name; without names that have several lengths."""
    said: dict[str, set[int]] = {}
    first: set[str] = set()
    for value in graph_inputs:
        dims = tuple(value.shape) if value.shape is not None else ()
        shape = given.get(value.name or "", dims)
        for axis, (dim, length) in enumerate(zip(dims, shape, strict=True)):
            if isinstance(dim, int) or dim.value is None:
                continue
            if isinstance(length, int):
                said.setdefault(dim.value, set()).add(length)
            elif axis == 0:
                first.add(dim.value)
    known = {name: min(lengths) for name, lengths in said.items() if len(lengths) == 1}
    return known | dict.fromkeys(sorted(first - said.keys()), 1)


def _bound(
    value: ir.Value,
    axis: int,
    dim: int | ir.SymbolicDim,
    shape: Sequence[int | str | ir.SymbolicDim],
    lengths: dict[str, int],
) -> int | ir.SymbolicDim:
    """Returns the length of an unnamed dimension; some exporters write -1 for a free one."""
    if isinstance(dim, int) and dim >= 0:
        return dim
    length = shape[axis]
    if isinstance(length, int) and length >= 0:
        return length
    if axis == 0 and (isinstance(dim, int) or dim.value is None):
        lengths[f"{value.name}[0]"] = 1
        return 1
    return dim


def _length(dim: int | ir.SymbolicDim, lengths: Mapping[str, int]) -> int | None:
    # Other names, or formulas of the exporter, are left to shape inference.
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return lengths.get(dim.value or "")


def _layers(model: ir.Model) -> Iterator[ir.Node]:
    return (
        node for node in model.graph.all_nodes() if node.op_type in _FACTORS and (not node.domain or is_packed(node))
    )


def _static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


def _is_quantized(node: ir.Node) -> bool:
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER_NODES:
        return True
    if is_packed(node):
        return True
    factors = [node.inputs[position] for position in _FACTORS.get(node.op_type, ())]
    producers = [None if value is None else value.producer() for value in factors]
    dequantized = [one for one in producers if one is not None and one.op_type == "DequantizeLinear"]
    # Blocks are for weights alone: no runtime quantizes the other factor for them.
    return bool(dequantized) and (
        len(dequantized) == len(producers) or any(integer_attribute(one, "block_size", 0) > 0 for one in dequantized)
    )


def _values_per_byte(model: ir.Model) -> dict[str, int]:
    """Returns how many values each byte of the packed tensors holds, by their names."""
    found = {}
    for node in model.graph.all_nodes():
        source = packed_source(node.inputs[_scaled_inputs(node)[-1]]) if is_packed(node) else None
        if source is not None:
            found[source.name or ""] = 8 // integer_attribute(node, "bits", 4)
    return found


def _scaled_inputs(node: ir.Node) -> tuple[int, ...]:
    if node.op_type in ("DequantizeLinear", "GatherBlockQuantized"):
        return (0,)
    if node.op_type == "MatMulNBits":
        return (1,)
    if node.op_type == "DynamicQuantizeLSTM":
        return (1, 2)
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER_NODES:
        return _FACTORS.get(node.op_type, ())
    return ()


def _dtype_name(dtype: ir.DataType) -> str:
    return {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}.get(dtype, dtype.name.lower())
