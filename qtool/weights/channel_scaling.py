"""Cross-layer scaling: multiplies the channels of a region by factors, in the stored weights around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array, is_constant
from qtool.graph.names import Names
from qtool.graph.weight_records import Scaled, record_steps
from qtool.weights.scaling_regions import ScalingRegion, layer_matrix, offset_shape, stored_weight

Floats = npt.NDArray[np.float64]


def scale_channels(
    model: ir.Model, factors: Sequence[tuple[ScalingRegion, Floats]], *, when_read: bool = False
) -> None:
    """Multiplies each region's tensors by its factors, in place; the model's outputs do not change.

    Args:
        model: a prepared model.
        factors: the regions, with factors of the shape (channels,).
        when_read: whether layers' weights are multiplied each time they are read, which takes no memory.
    """
    nodes = {node.name: node for node in model.graph}
    names = Names(model.graph)
    for region, scale in factors:
        for name in region.producers:
            _scale_outputs(model.graph, nodes[name], scale, names, when_read)
        for name in region.readers:
            node = nodes[name]
            groups, _, inputs, _ = layer_matrix(node, stored_weight(node)).shape
            _store(node, 1.0 / scale.reshape(groups, 1, inputs, 1), None, when_read)
        for name in region.offsets:
            node = nodes[name]
            index = next(index for index, value in enumerate(node.inputs) if is_constant(value))
            shape = offset_shape(node.outputs[0], region.axes[node.outputs[0].name or ""], region.channels)
            _replace_constant(model.graph, node, index, scale.reshape(shape or -1), names)


def _scale_outputs(graph: ir.Graph, node: ir.Node, scale: Floats, names: Names, when_read: bool) -> None:
    groups, outputs, _, _ = layer_matrix(node, stored_weight(node)).shape
    _store(node, scale.reshape(groups, outputs, 1, 1), scale, when_read)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        _replace_constant(graph, node, 2, scale, names)


def _store(node: ir.Node, factors: Floats, outputs: Floats | None, when_read: bool) -> None:
    """Multiplies the layer's weights, which nothing else reads.

    Args:
        node: the layer.
        factors: in a shape that broadcasts to (groups, outputs of a group, inputs of a group, kernel).
        outputs: the same, one per output channel; None where factors belong to inputs.
        when_read: whether weights are multiplied each time they are read.
    """
    value = node.inputs[1]
    stored = None if value is None else value.const_value
    if value is None or stored is None:
        raise AssertionError(f"{node.name} was taken for a layer")
    shape = stored.shape.numpy()
    # One factor for a whole kernel, in the weight's rank.
    spread = np.ones((*shape[:2], *(1,) * (len(shape) - 2)))
    view = layer_matrix(node, spread)
    view *= factors
    for axis in (0, 1):
        first = spread.take([0], axis=axis)
        spread = first if (spread == first).all() else spread
    record_steps(value, value, Scaled(factors=spread, outputs=outputs))

    def scaled() -> ir.TensorProtocol:
        return ir.tensor((stored.numpy().astype(np.float64, order="C") * spread).astype(np.float32), name=value.name)

    value.const_value = (
        ir.LazyTensor(scaled, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=value.name)
        if when_read
        else scaled()
    )


def _replace_constant(graph: ir.Graph, node: ir.Node, index: int, factors: Floats, names: Names) -> None:
    """Multiplies the constant at ``index`` in a copy, since other nodes may read it too."""
    value = node.inputs[index]
    array = constant_array(value)
    if value is None or array is None:
        raise AssertionError(f"{node.name} was taken for an addition of a constant")
    scaled = (array.astype(np.float64) * factors).astype(np.float32)
    node.replace_input_with(index, add_constant(graph, f"{value.name}_equalized", scaled, names=names))
    if not value.uses():
        graph.initializers.pop(value.name or "", None)
