"""Tells where the channels of a graph's image inputs are."""

from __future__ import annotations

import onnx_ir as ir

from qtool.calib.image_layout import Layout

_IMAGE_AXES = 4
# Operators of images; in ONNX all of them take channels first.
_CHANNELS_FIRST = frozenset(
    {
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "QLinearConv",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "InstanceNormalization",
        "LRN",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
# Operators whose first output has the axes of their input.
_KEEPING_AXES = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Neg", "Cast", "Clip", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh"),
        *("Identity", "Dropout", "Pad", "Resize", "Upsample", "QuantizeLinear", "DequantizeLinear", "Slice", "Concat"),
    }
)
_LAST_TO_FIRST, _FIRST_TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
# Lengths that only channels have: gray, colour, colour with transparency.
_CHANNEL_COUNTS = (1, 3, 4)


def image_layouts(model: ir.Model) -> dict[str, Layout]:
    """Returns the layout of each input of which ``image_layout`` knows it."""
    layouts = {value.name or "": image_layout(value) for value in model.graph.inputs if not value.is_initializer()}
    return {name: layout for name, layout in layouts.items() if layout is not None}


def image_layout(value: ir.Value) -> Layout | None:
    """Returns the layout of a value of four axes: by what the graph does to it, or else by its lengths."""
    if value.shape is None or len(value.shape) != _IMAGE_AXES:
        return None
    return _by_readers(value) or _by_lengths(value.shape)


def tensor_layout(value: ir.Value) -> Layout | None:
    """Returns the layout of a tensor between operators: by the one that made it, or those that read it."""
    if value.shape is None or len(value.shape) != _IMAGE_AXES:
        return None
    moved, current = False, value
    while (node := current.producer()) is not None and node.inputs and node.inputs[0] is not None:
        if node.op_type in _CHANNELS_FIRST:
            return "nhwc" if moved else "nchw"
        if node.op_type == "Transpose":
            order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []
            if order != (_LAST_TO_FIRST if moved else _FIRST_TO_LAST):
                break
            moved = not moved
        elif node.op_type not in _KEEPING_AXES:
            break
        current = node.inputs[0]
    return _by_readers(value)


def _by_readers(value: ir.Value) -> Layout | None:
    """Follows the value to the first operator that knows its layout, in the order of the graph's edges."""
    waiting: list[tuple[ir.Value, bool]] = [(value, False)]
    seen = {value}
    while waiting:
        current, moved = waiting.pop(0)
        for node, position in current.uses():
            if node.op_type in _CHANNELS_FIRST and position == 0:
                return "nhwc" if moved else "nchw"
            following = moved
            if node.op_type == "Transpose":
                order = list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else []
                if order != (_FIRST_TO_LAST if moved else _LAST_TO_FIRST):
                    continue
                following = not moved
            elif node.op_type not in _KEEPING_AXES:
                continue
            if node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append((node.outputs[0], following))
    return None


def _by_lengths(shape: ir.Shape) -> Layout | None:
    first, last = shape[1] in _CHANNEL_COUNTS, shape[3] in _CHANNEL_COUNTS
    if first == last:
        return None
    return "nchw" if first else "nhwc"
