"""Gives Resize and Upsample the form that they had in an older opset.

Source: https://onnx.ai/onnx/operators/onnx__Resize.html and onnx__Upsample.html (all versions).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qtool.workflows.convert.node_edits import Step, constant_before, numbers_of, rank_of, to_attributes

RESIZE_OPSET = 10
_RESIZE_SYMMETRIC_OPSET = 19
_RESIZE_AXES_OPSET = 18
_RESIZE_WITHOUT_ROI_OPSET = 13
_RESIZE_MODES_OPSET = 11
_UPSAMPLE_INPUTS_OPSET = 9


def older_resize(node: ir.Node, step: Step) -> str | None:
    """Gives Resize the inputs that it had in an older opset, or makes it Upsample; returns why it cannot be."""
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if step.opset < _RESIZE_SYMMETRIC_OPSET and coordinates == "half_pixel_symmetric":
        return "maps coordinates in a way (half_pixel_symmetric) that its older form lacks"
    if step.opset < _RESIZE_AXES_OPSET:
        reason = _resize_all_axes(node, step)
        if reason is not None:
            return reason
    if step.opset >= _RESIZE_WITHOUT_ROI_OPSET:
        return None
    has_sizes = len(node.inputs) > 3 and node.inputs[3] is not None
    if step.opset >= _RESIZE_MODES_OPSET:
        node.resize_inputs(4 if has_sizes else 3)
        for position, role in ((1, "roi"), (2, "scales")):
            if node.inputs[position] is None:
                node.replace_input_with(position, constant_before(node, np.zeros(0, np.float32), role, step))
        return None
    mode = node.attributes.get_string("mode", "nearest")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if mode == "cubic" or coordinates != "asymmetric" or (mode == "nearest" and rounding != "floor"):
        return f"maps coordinates in a way ({coordinates}) that its older form lacks"
    if has_sizes:
        return "is given sizes, and its older form takes scales"
    for name in list(node.attributes):
        if name != "mode":
            del node.attributes[name]
    node.replace_input_with(1, node.inputs[2])
    node.resize_inputs(2)
    if step.opset >= RESIZE_OPSET:
        return None
    node.op_type = "Upsample"
    scales = numbers_of(node.inputs[1])
    if scales is None or any(scale < 1 for scale in scales):
        return "makes images smaller, which Upsample cannot"
    return older_upsample(node, step)


def _resize_all_axes(node: ir.Node, step: Step) -> str | None:
    """Spells out the scales of all axes where a newer node names some."""
    if "axes" not in node.attributes:
        return None
    axes, rank, shape = node.attributes["axes"].as_ints(), rank_of(node.inputs[0]), None
    scales = numbers_of(node.inputs[2]) if len(node.inputs) > 2 else None
    sizes = numbers_of(node.inputs[3]) if len(node.inputs) > 3 else None
    if node.inputs[0] is not None:
        shape = node.inputs[0].shape
    if rank is None or shape is None or (scales is None and sizes is None):
        return "resizes single axes by numbers that are computed"
    if scales is not None:
        full = np.ones(rank, np.float32)
        full[[axis % rank for axis in axes]] = scales
        node.replace_input_with(2, constant_before(node, full, "scales", step))
    else:
        lengths = [shape[axis] for axis in range(rank)]
        for axis, size in zip(axes, sizes or (), strict=True):
            lengths[axis % rank] = int(size)
        if not all(isinstance(length, int) for length in lengths):
            return "is given sizes of single axes, and the others are not known"
        node.replace_input_with(3, constant_before(node, np.array(lengths, np.int64), "sizes", step))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        return "resizes a part of single axes"
    del node.attributes["axes"]
    return None


def older_upsample(node: ir.Node, step: Step) -> str | None:
    """Makes the scales of Upsample an attribute, as they were first; returns why they cannot be."""
    if step.opset >= _UPSAMPLE_INPUTS_OPSET:
        return None
    return to_attributes(node, {1: "scales"}, floats=True, several=True)
