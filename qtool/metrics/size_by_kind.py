"""Size of a model on disk, by kind of content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import onnx_ir as ir

from qtool.formats.onnx.map_types import load_model
from qtool.metrics.size import model_bytes

Kind: TypeAlias = Literal[
    "integer weights", "float weights", "biases", "scales", "tables", "other constants", "never read", "graph"
]
_Part: TypeAlias = Literal["weights", "biases", "scales", "tables"]

_LAYER: Mapping[int, _Part] = {1: "weights", 2: "biases"}
_PRODUCT: Mapping[int, _Part] = {0: "weights", 1: "weights"}
_RECURRENT: Mapping[int, _Part] = {1: "weights", 2: "weights", 3: "biases"}
_ON_INTEGERS: Mapping[int, _Part] = {0: "weights", 1: "weights", 2: "scales", 3: "scales"}
_SCALES_OF_SIX: Mapping[int, _Part] = dict.fromkeys((1, 2, 4, 5, 6, 7), "scales")

_LOOKUP: Mapping[int, _Part] = {0: "tables", 2: "scales", 3: "scales"}
_CONVERSION: Mapping[int, _Part] = {1: "scales", 2: "scales"}
_WITH_BIAS: Mapping[int, _Part] = {**_PRODUCT, 2: "biases"}

# What an operator reads, by the place of the input: https://onnx.ai/onnx/operators, and onnxruntime's own operators.
_READS: Mapping[str, Mapping[int, _Part]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "FusedConv", "PRelu", "Attention"), _LAYER),
    **dict.fromkeys(("LayerNormalization", "BatchNormalization", "InstanceNormalization"), _LAYER),
    **dict.fromkeys(("GroupNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _LAYER),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Einsum"), _PRODUCT),
    **dict.fromkeys(("Gemm", "FusedGemm"), _WITH_BIAS),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), _ON_INTEGERS),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _CONVERSION),
    "Gather": {0: "tables"},
    "GatherBlockQuantized": _LOOKUP,
    "QLinearConv": {3: "weights", **_SCALES_OF_SIX, 8: "biases"},
    "QLinearMatMul": {0: "weights", 3: "weights", **_SCALES_OF_SIX},
    "QGemm": {0: "weights", 3: "weights", **dict.fromkeys((1, 2, 4, 5, 7, 8), "scales"), 6: "biases"},
    "MatMulNBits": {1: "weights", 2: "scales", 3: "scales", 5: "biases"},
    "MatMulIntegerToFloat": {**_PRODUCT, **dict.fromkeys((2, 3, 4, 5), "scales"), 6: "biases"},
    "DynamicQuantizeMatMul": {1: "weights", 2: "scales", 3: "scales", 4: "biases"},
    "DynamicQuantizeLSTM": {**_RECURRENT, **dict.fromkeys((8, 9, 10, 11), "scales")},
}
# Their output holds the same values as their input, in another form.
_SAME_VALUES = {
    *("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity"),
    *("Squeeze", "Unsqueeze", "Slice"),
}
_MOST_CHAINED = 8
KINDS: tuple[Kind, ...] = (
    "integer weights",
    "float weights",
    "biases",
    "scales",
    "tables",
    "other constants",
    "never read",
    "graph",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizePart:
    """The size of one kind of content.

    Attributes:
        kind: what it is: weights that are integers of any width, or floats; biases; scales and zero points; tables
            that rows are gathered from, such as embeddings; other constants; what no node reads; and the graph, which
            is what is left of the files: nodes, names, and gaps between tensors.
        bytes: its size.
        tensors: how many there are; 0 for the graph.
    """

    kind: Kind
    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The size of a model on disk.

    Attributes:
        bytes: the size of its file and of its external data files.
        parts: what they hold, kinds that it does not have left out; they add up to the bytes, but for files whose
            writer holds numbers in fewer bytes than their type has.
    """

    bytes: int
    parts: tuple[SizePart, ...]


def model_size(path: Path) -> ModelSize:
    """Measures an ONNX model.

    Raises:
        InputError: it does not exist, is not an ONNX model, or a file with its weights is missing.
    """
    total_bytes = model_bytes(path)
    found: dict[Kind, tuple[int, int]] = {}
    for value, tensor in _stored(load_model(path)):
        kind = _kind(value, tensor)
        nbytes, tensors = found.get(kind, (0, 0))
        found[kind] = (nbytes + tensor.nbytes, tensors + 1)
    found["graph"] = (max(0, total_bytes - sum(nbytes for nbytes, _ in found.values())), 0)
    return ModelSize(
        bytes=total_bytes,
        parts=tuple(
            SizePart(kind=kind, bytes=found[kind][0], tensors=found[kind][1]) for kind in KINDS if kind in found
        ),
    )


def _stored(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            constant = node.attributes.get("value") if node.op_type == "Constant" else None
            if constant is not None and constant.type == ir.AttributeType.TENSOR:
                yield node.outputs[0], constant.as_tensor()


def _kind(value: ir.Value, tensor: ir.TensorProtocol) -> Kind:
    parts = set(_parts(value, tensor, _MOST_CHAINED))
    if "weights" in parts:
        return "integer weights" if tensor.dtype.is_integer() else "float weights"
    for part in ("tables", "biases", "scales"):
        if part in parts:
            return part
    return "other constants" if value.uses() or value.is_graph_output() else "never read"


def _parts(value: ir.Value, tensor: ir.TensorProtocol, depth: int) -> Iterator[_Part]:
    """Yields what a stored tensor is to the nodes that read it, directly or in another form."""
    for node, place in value.uses():
        part = _READS.get(node.op_type, {}).get(place)
        if part == "tables" and len(tensor.shape) < 2:
            continue  # a lookup among a few numbers, such as those of a shape
        if part is not None:
            yield part
        elif node.op_type == "Add" and _is_row(tensor):
            yield "biases"
        elif depth and ((node.op_type in _SAME_VALUES and place == 0) or node.op_type == "Concat"):
            yield from _parts(node.outputs[0], tensor, depth - 1)


def _is_row(tensor: ir.TensorProtocol) -> bool:
    """Returns whether it has one number per channel."""
    return sum(length > 1 for length in tensor.shape.numpy()) == 1
