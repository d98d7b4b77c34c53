"""Estimates how much noise in each channel of a layer's output matters to the model's outputs.

Noise that is independent between channels passes a layer with the squares of its weights, and a clamp where the clamp
is not saturated. The importance of outputs is propagated backwards through the graph; where the path is unknown, all
channels of a layer count equally, and the layer's noise is measured relative to its signal. Source of the propagation:
K. He et al., Delving Deep into Rectifiers (ICCV 2015), section 2.2, backward case, with the actual weights in place of
their variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.weights.channel_statistics import ChannelStatistics
from qtool.weights.scaling_regions import ScalingRegion, is_layer, layer_matrix, stored_weight

Floats = npt.NDArray[np.float64]


def output_importance(
    model: ir.Model, regions: Sequence[ScalingRegion], seen: Mapping[str, ChannelStatistics]
) -> dict[str, Floats]:
    """Returns the importance of the outputs of every layer that reads a region, by name, float64, (outputs,)."""
    inside = {name: region for region in regions for name in region.axes}
    # Importance of tensors' channels, over the readers visited so far.
    tensors: dict[str, Floats] = {}
    found: dict[str, Floats] = {}
    for node in reversed(model.graph):
        region = inside.get((node.outputs[0].name or "") if node.outputs else "")
        output = None if region is None else tensors.get(node.outputs[0].name or "")
        if is_layer(node):
            source = node.inputs[0]
            read = None if source is None else seen.get(source.name or "")
            if source is None or read is None or (source.name or "") not in inside:
                continue
            squares = np.square(layer_matrix(node, stored_weight(node)).astype(np.float64)).sum(axis=3)
            groups, outputs, inputs = squares.shape
            if output is None:
                power = (read.squares / max(read.count, 1)).reshape(groups, 1, inputs)
                output = np.full(groups * outputs, 1.0 / max(float((squares * power).sum()), 1e-300))
            found[node.name or ""] = output
            carried = np.einsum("goi,go->gi", squares, output.reshape(groups, outputs)).reshape(-1)
            _add(tensors, source, carried)
        elif region is not None and output is not None:
            parents = [value for value in node.inputs if value is not None and (value.name or "") in region.axes]
            for parent in parents:
                _add(tensors, parent, output * _passed(node, seen))
    return found


def _passed(node: ir.Node, seen: Mapping[str, ChannelStatistics]) -> Floats | float:
    """Returns the fraction of noise that a node passes on.

    Averages pass all of it: the error of a weight is the same at every position, and so are values in flat areas.
    """
    after = seen.get(node.outputs[0].name or "")
    if node.op_type in ("Relu", "Clip") and after is not None:
        return after.others / max(after.count, 1)
    return 1.0


def _add(tensors: dict[str, Floats], value: ir.Value, importance: Floats) -> None:
    name = value.name or ""
    tensors[name] = tensors[name] + importance if name in tensors else importance
