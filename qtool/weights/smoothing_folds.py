"""Divides the channels of a tensor where it is made, so that smoothing it costs nothing as the model runs.

A normalization ends with a product by one number per channel, which takes the division. Where a tensor is the product
of two others and one of these comes from a layer, as behind the gate of a SwiGLU block, that layer's output channels
take it: (a ⊙ (x W)) / s = a ⊙ (x (W / s)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, is_constant, is_transposed, sole_consumer
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps

# By normalization, the inputs that scale and shift its channels.
_SCALING_INPUTS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "LayerNormalization": (1, 2),
        "RMSNormalization": (1,),
        "SimplifiedLayerNormalization": (1,),
        "SkipSimplifiedLayerNormalization": (2,),
    }
)


def folded(
    graph: ir.Graph, value: ir.Value, readers: Sequence[ir.Node], scale: npt.NDArray[np.float64], names: Names
) -> bool:
    """Divides the channels of ``value`` by ``scale``, (channels,), inside of what makes it.

    Returns whether that was possible: nothing but ``readers`` may read it.
    """
    producer = value.producer()
    if producer is None or value.is_graph_output() or {use.node for use in value.uses()} != set(readers):
        return False
    if producer.op_type in _SCALING_INPUTS:
        return _into_normalization(graph, producer, value, scale, names)
    return producer.op_type == "Mul" and producer.domain == "" and _into_factor(graph, producer, scale, names)


def _into_normalization(
    graph: ir.Graph, producer: ir.Node, value: ir.Value, scale: npt.NDArray[np.float64], names: Names
) -> bool:
    indices = [index for index in _SCALING_INPUTS[producer.op_type] if index < len(producer.inputs)]
    parts = [(index, part) for index in indices if (part := producer.inputs[index]) is not None]
    if value is not producer.outputs[0] or not parts:
        return False
    if producer.op_type == "LayerNormalization" and len(producer.outputs) > 1:
        return False
    if not all(is_constant(part) and part.shape == (len(scale),) for _, part in parts):
        return False
    for index, part in parts:
        divided = _divided(part, scale)
        made = add_constant(graph, f"{part.name}_smoothed", divided, names=names)
        record_steps(made, part, Scaled(factors=1.0 / scale, outputs=1.0 / scale))
        producer.replace_input_with(index, made)
    return True


def _into_factor(graph: ir.Graph, product: ir.Node, scale: npt.NDArray[np.float64], names: Names) -> bool:
    for factor in product.inputs:
        layer = None if factor is None else factor.producer()
        if factor is None or layer is None or sole_consumer(factor) is not product:
            continue
        if layer.domain == "" and layer.op_type in ("MatMul", "Gemm") and _has_channels(layer, len(scale)):
            _divide_outputs(graph, layer, scale, names)
            return True
    return False


def _has_channels(layer: ir.Node, channels: int) -> bool:
    """Returns whether a layer has a float32 weight, and a bias, of its own with so many output channels."""
    weight, *biases = (value for value in layer.inputs[1:] if value is not None)
    stored = constant_array(weight)
    if stored is None or stored.ndim != 2 or stored.dtype != np.float32 or sole_consumer(weight) is not layer:
        return False
    if stored.shape[0 if is_transposed(layer) else 1] != channels:
        return False
    return all(is_constant(bias) and bias.shape == (channels,) and sole_consumer(bias) is layer for bias in biases)


def _divide_outputs(graph: ir.Graph, layer: ir.Node, scale: npt.NDArray[np.float64], names: Names) -> None:
    for index, part in enumerate(layer.inputs[1:], start=1):
        if part is None:
            continue
        factors = scale.reshape(-1, 1) if index == 1 and is_transposed(layer) else scale
        made = add_constant(graph, f"{part.name}_divided", _divided(part, factors), names=names)
        record_steps(made, part, Scaled(factors=1.0 / factors, outputs=1.0 / scale))
        layer.replace_input_with(index, made)
        graph.initializers.pop(part.name or "", None)


def _divided(part: ir.Value, factors: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    array = constant_array(part)
    if array is None:
        raise AssertionError("only stored constants are divided")
    return (array.astype(np.float64) / factors).astype(np.float32)
