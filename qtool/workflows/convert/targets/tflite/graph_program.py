"""A graph as a torch program that torch.export can trace.

Lengths are fixed. Q and DQ become the operators that torch quantizes with, from which litert-torch takes the integers.
LiteRT's integers are int8, symmetric for weights
(https://ai.google.dev/edge/litert/models/quantization_spec), so u8 is shifted by 128 with its zero point, which stands
for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed  # defines the operators of quantized_decomposed

from qtool.graph.constants import constant_array
from qtool.qdq.quantized_tensors import QuantizedTensor, quantized_tensors
from qtool.workflows.convert.targets.tflite.elementwise import ELEMENTWISE
from qtool.workflows.convert.targets.tflite.identifiers import identifiers
from qtool.workflows.convert.targets.tflite.layers import LAYERS
from qtool.workflows.convert.targets.tflite.node_call import NodeCall, Operator, UnsupportedError
from qtool.workflows.convert.targets.tflite.views import VIEWS

_OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **LAYERS, **VIEWS}
_LOW, _HIGH = -128, 127
_SHIFTS: Mapping[Any, int] = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}
# What reads constants that stay integers in the file.
_STORING = frozenset({*LAYERS, "Gather"})
_QDQ = torch.ops.quantized_decomposed


class GraphProgram(torch.nn.Module):
    """Runs a graph whose lengths are fixed; its constants of floats are buffers.

    Attributes:
        input_names: what ``forward`` calls the inputs of the graph, in order: their names as identifiers.
        output_names: the same for its outputs.
    """

    def __init__(self, model: ir.Model) -> None:
        """Reads the constants.

        Raises:
            UnsupportedError: a node has no form in torch, or its integers none in LiteRT.
        """
        super().__init__()
        self._graph = model.graph
        fed = [value for value in model.graph.inputs if not value.is_initializer()]
        names = identifiers([value.name or "" for value in (*fed, *model.graph.outputs)])
        self.input_names, self.output_names = names[: len(fed)], names[len(fed) :]
        self._inputs = fed
        self._quantized: dict[ir.Value, QuantizedTensor] = {
            tensor.dequantized: tensor for tensor in quantized_tensors(model).values()
        }
        self._stored: dict[ir.Value, npt.NDArray[Any]] = {}
        self._buffer_of: dict[ir.Value, str] = {}
        for value in model.graph.initializers.values():
            array = constant_array(value)
            if array is not None and value.uses():
                self._stored[value] = array
        for node in model.graph:
            self._check(node)
            if node.op_type == "DequantizeLinear":
                self._keep_quantized(node)
            else:
                self._keep_constants(node)

    def forward(self, **feeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the outputs by name."""
        values = {value: getattr(self, name) for value, name in self._buffer_of.items()}
        values |= {value: feeds[name] for value, name in zip(self._inputs, self.input_names, strict=True)}
        for node in self._graph:
            found = self._computed(node, values)
            for output, tensor in zip(node.outputs, found, strict=False):
                values[output] = tensor
        outputs = (self._read(value, values) for value in self._graph.outputs)
        return dict(zip(self.output_names, outputs, strict=True))

    def _computed(self, node: ir.Node, values: Mapping[ir.Value, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if node.op_type == "QuantizeLinear":
            return (values[_source(node)],)
        if node.op_type == "DequantizeLinear":
            return (values[node.outputs[0] if node.outputs[0] in self._buffer_of else _source(node)],)
        given = tuple(None if value is None else self._read(value, values) for value in node.inputs)
        stored = tuple(None if value is None else self._stored.get(value) for value in node.inputs)
        found = _OPERATORS[node.op_type](NodeCall(node=node, values=given, constants=stored))
        return found if isinstance(found, tuple) else (found,)

    def _read(self, value: ir.Value, values: Mapping[ir.Value, torch.Tensor]) -> torch.Tensor:
        """Returns a value, through Q and DQ where it is quantized.

        Every reader gets a pair of its own, since litert-torch loses the shape of one that is shared. A bias is its
        floats, from which LiteRT makes the same integers, and so are other constants beside weights.
        """
        data, tensor = values[value], self._quantized.get(value)
        if tensor is None or tensor.role == "bias" or (tensor.stored() is not None and not _weighs(value)):
            return data
        shift = _SHIFTS[tensor.dtype]
        floats: torch.Tensor
        if tensor.axis is None:
            scale, zero = float(tensor.scale.reshape(())), int(tensor.zero_point.reshape(())) - shift
            integers = _QDQ.quantize_per_tensor(data, scale, zero, _LOW, _HIGH, torch.int8)
            floats = _QDQ.dequantize_per_tensor(integers, scale, zero, _LOW, _HIGH, torch.int8)
        else:
            name = self._buffer_of[value]
            scales, zeros = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
            integers = _QDQ.quantize_per_channel(data, scales, zeros, tensor.axis, _LOW, _HIGH, torch.int8)
            floats = _QDQ.dequantize_per_channel(integers, scales, zeros, tensor.axis, _LOW, _HIGH, torch.int8)
        return floats

    def _check(self, node: ir.Node) -> None:
        if node.op_type == "QuantizeLinear":
            if any(use.node.op_type != "DequantizeLinear" for use in node.outputs[0].uses()):
                raise UnsupportedError(node, "its integers are read by another operator than DequantizeLinear")
            if node.outputs[0].is_graph_output():
                raise UnsupportedError(node, "its integers are an output of the model")
        elif node.op_type == "DequantizeLinear":
            self._check_integers(node)
        elif node.domain != "" or node.op_type not in _OPERATORS:
            raise UnsupportedError(node, "qtool has no form of this operator for it")

    def _check_integers(self, node: ir.Node) -> None:
        tensor = self._quantized.get(node.outputs[0])
        if tensor is None:
            tensor = next(
                (
                    one
                    for value, one in self._quantized.items()
                    if value.producer() is not None and one.value is node.inputs[0]
                ),
                None,
            )
            if tensor is None:
                raise UnsupportedError(node, "its scale is computed at run time, or its integers come from outside")
            self._quantized[node.outputs[0]] = tensor
        if tensor.role == "bias":
            return
        if tensor.dtype not in _SHIFTS or tensor.block:
            raise UnsupportedError(node, f"its integers are {tensor.description}, and LiteRT's are int8")
        zeros = tensor.zero_point.astype(np.int64) - _SHIFTS[tensor.dtype]
        if (
            tensor.stored() is not None
            and any(use.node.op_type in LAYERS for use in node.outputs[0].uses())
            and zeros.any()
        ):
            raise UnsupportedError(node, "weights with a zero point have no kernel of integers in LiteRT")

    def _keep_constants(self, node: ir.Node) -> None:
        """Keeps what a node reads; scales and zero points of Q/DQ are not part of the program."""
        for value in node.inputs if node.op_type != "QuantizeLinear" else node.inputs[:1]:
            if value is not None and value in self._stored and value not in self._buffer_of:
                self._keep(value, self._stored[value])

    def _keep(self, value: ir.Value, array: npt.NDArray[Any]) -> str:
        name = f"constant_{len(self._buffer_of)}"
        self.register_buffer(name, torch.from_numpy(np.array(array)))
        self._buffer_of[value] = name
        return name

    def _keep_quantized(self, node: ir.Node) -> None:
        """Keeps the floats of a constant that is stored as integers, and its scales where there are several."""
        tensor = self._quantized[node.outputs[0]]
        floats = tensor.floats()
        if floats is None:
            return
        name = self._keep(node.outputs[0], floats)
        if tensor.axis is not None and tensor.role != "bias":
            zeros = tensor.zero_point.astype(np.int64) - _SHIFTS[tensor.dtype]
            self.register_buffer(f"{name}_scale", torch.from_numpy(np.array(tensor.scale, dtype=np.float32)))
            self.register_buffer(f"{name}_zero", torch.from_numpy(np.broadcast_to(zeros, tensor.scale.shape).copy()))


def _weighs(value: ir.Value) -> bool:
    """Returns whether a layer, or a lookup, reads what a DQ gives."""
    return any(use.node.op_type in _STORING for use in value.uses())


def _source(node: ir.Node) -> ir.Value:
    if node.inputs[0] is None:
        raise UnsupportedError(node, "its input is missing")
    return node.inputs[0]


def sample_feeds(program: GraphProgram, model: ir.Model) -> dict[str, torch.Tensor]:
    """Returns inputs of the right shapes and types, by the program's names, to trace it with."""
    fed = [value for value in model.graph.inputs if not value.is_initializer()]
    feeds = {}
    for name, value in zip(program.input_names, fed, strict=True):
        dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
        lengths = [int(dim) for dim in value.shape or () if isinstance(dim, int)]
        feeds[name] = torch.from_numpy(np.ones(lengths, dtype))
    return feeds
