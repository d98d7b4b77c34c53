"""The results of ``inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """Describes one stored tensor.

    Attributes:
        name: its name.
        dtype: its element type, in lower case: ``float32``, ``bfloat16``, ``int4``.
        shape: the lengths of its axes.
        elements: how many values it has.
        nbytes: how many bytes they take.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeFacts:
    """Sums up the stored tensors of one element type.

    Attributes:
        tensors: how many there are.
        parameters: how many values they have.
        nbytes: how many bytes these take.
    """

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplyAdds:
    """Counts the multiplications with addition of one run, in Conv, ConvTranspose, Gemm and MatMul.

    Attributes:
        total: the count, over the nodes whose shapes are known.
        known_nodes: how many nodes those are.
        unknown_nodes: how many nodes have shapes that the free dimensions leave open.
        quantized: the part of the total in nodes that take quantized tensors.
        assumed: the lengths that free dimensions were given for it.
    """

    total: int
    known_nodes: int
    unknown_nodes: int
    quantized: int
    assumed: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Describes how much of a graph is quantized.

    Attributes:
        quantize_nodes: how many QuantizeLinear nodes it has.
        dequantize_nodes: how many DequantizeLinear nodes.
        integer_nodes: how many nodes compute on integers by their type, such as QLinearConv.
        layers: how many nodes multiply: Conv, ConvTranspose, Gemm, MatMul and their integer forms.
        quantized_layers: how many of those take only quantized tensors, or quantized weights in blocks.
        weight_parameters: how many values the stored tensors of float and of quantized type have.
        quantized_parameters: how many of those are integers that a scale goes with.
        weight_bytes: the bytes of the same tensors.
        quantized_bytes: the bytes of the quantized ones.
    """

    quantize_nodes: int
    dequantize_nodes: int
    integer_nodes: int
    layers: int
    quantized_layers: int
    weight_parameters: int
    quantized_parameters: int
    weight_bytes: int
    quantized_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """Describes a program.

    Attributes:
        ir_version: the version of the file format.
        opsets: versions of the operator sets, by domain; the standard one is ``ai.onnx``.
        producer: the program that wrote it.
        inputs: its inputs, as ``name dtype (dims)``.
        outputs: its outputs.
        operators: how many nodes there are of each type, the most frequent first; subgraphs included.
        layouts: where the channels of image inputs are, by input: ``nchw`` or ``nhwc``.
        multiply_adds: the work of one run.
        quantization: how much of it is quantized.
    """

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    layouts: Mapping[str, str]
    multiply_adds: MultiplyAdds
    quantization: Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """Describes a program that is not an ONNX graph.

    Attributes:
        producer: what wrote it.
        inputs: its inputs, as ``name dtype (dims)``.
        outputs: its outputs.
        operators: how many operators or layers there are of each type, the most frequent first.
        layouts: where the channels of image inputs are, by input: ``nchw`` or ``nhwc``.
        warnings: what to know before it is converted.
    """

    producer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    layouts: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport:
    """Describes a model file.

    Attributes:
        path: the file.
        kind: what it is, in words.
        nbytes: its size, with external data.
        data_files: the names of those files.
        tensors: how many tensors it stores.
        parameters: how many values they have.
        dtypes: the same by element type, the largest first.
        largest: the largest tensors, in order.
        metadata: text that was stored along.
        graph: the program; None where the file holds weights only, or a program of another kind.
        program: the program where it is not an ONNX graph.
    """

    path: Path
    kind: str
    nbytes: int
    data_files: tuple[str, ...]
    tensors: int
    parameters: int
    dtypes: Mapping[str, DtypeFacts]
    largest: tuple[TensorFacts, ...]
    metadata: Mapping[str, str]
    graph: GraphFacts | None
    program: ProgramFacts | None = None
