"""Replaces a transposed convolution without overlap by a convolution, which runs on integers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, integer_attribute
from qtool.graph.names import Names
from qtool.graph.weight_records import Rearranged, record_steps
from qtool.passes.quantization.arithmetic import replace_node

# onnxruntime's DepthToSpace moves integers one by one: with fewer channels it costs more than integers save
# (measured with 24 to 256 channels; it is faster from 64 on).
_LEAST_CHANNELS = 64


class TransposedConvToConv(ir.passes.InPlacePass):
    """Replaces ConvTranspose with a square kernel as large as its stride by Conv of 1x1, then DepthToSpace.

    Every input pixel makes a square of output pixels of its own: y[c, s·i + a, s·j + b] = Σ x[k, i, j] · w[k, c, a, b]
    (operator ConvTranspose of the ONNX specification, without padding). That is a product with a matrix a pixel,
    whose columns DepthToSpace lays out, depth last (``CRD``).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replaces each such node of enough channels whose weights and bias are float32 constants."""
        modified = False
        names = Names(model.graph)
        for node in list(model.graph):
            side = _side(node) if node.op_type == "ConvTranspose" and node.domain == "" else None
            if side is not None:
                _replace(model.graph, node, side, names)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _side(node: ir.Node) -> int | None:
    """Returns the side of the squares, or None where a node is of another form."""
    weights = constant_array(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weights is None or weights.dtype != np.float32 or weights.ndim != 4 or node.inputs[0] is None:
        return None
    if weights.shape[0] < _LEAST_CHANNELS or (bias is not None and constant_array(bias) is None):
        return None
    side = int(weights.shape[2])
    strides = _integers(node, "strides", [1, 1])
    if side < 2 or weights.shape[3] != side or strides != [side, side] or integer_attribute(node, "group", 1) != 1:
        return None
    if any(_integers(node, "pads", [0])) or any(_integers(node, "output_padding", [0])):
        return None
    if "output_shape" in node.attributes or _integers(node, "dilations", [1, 1]) != [1, 1]:
        return None
    padding = node.attributes.get("auto_pad")
    return side if padding is None or padding.as_string() == "NOTSET" else None


def _integers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return default if attribute is None else list(attribute.as_ints())


def _replace(graph: ir.Graph, node: ir.Node, side: int, names: Names) -> None:
    source, weight = node.inputs[:2]
    weights = constant_array(weight)
    if source is None or weight is None or weights is None:
        raise AssertionError("only called for nodes with stored weights")
    # (inputs, outputs, side, side) becomes (outputs * side * side, inputs, 1, 1).
    matrix = weights.reshape(weights.shape[0], -1).T[:, :, None, None]
    stored = add_constant(graph, f"{weight.name}_matrix", matrix, names=names)
    flat = Rearranged(shape=(weights.shape[0], matrix.shape[0]), order=(1, 0))
    record_steps(stored, weight, flat, Rearranged(shape=matrix.shape))
    inputs = [source, stored]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    biases = constant_array(bias)
    if bias is not None and biases is not None:
        inputs.append(add_constant(graph, f"{bias.name}_repeated", _repeated(biases, side), names=names))
    name, output = node.name, node.outputs[0]
    conv = ir.node("Conv", inputs, name=name, attributes={"kernel_shape": [1, 1]})
    conv.outputs[0].name = names.free(f"{output.name}_in_depth")
    conv.outputs[0].dtype = ir.DataType.FLOAT
    if source.shape is not None and len(source.shape) == 4:
        conv.outputs[0].shape = ir.Shape([source.shape[0], matrix.shape[0], *list(source.shape)[2:]])
    attributes: dict[str, int | str] = {"blocksize": side, "mode": "CRD"}
    spread = ir.node(
        "DepthToSpace", [conv.outputs[0]], name=name and names.for_node(f"{name}_to_space"), attributes=attributes
    )
    graph.insert_before(node, conv)
    replace_node(graph, node, spread)


def _repeated(biases: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    return np.repeat(biases.reshape(-1), side * side)
