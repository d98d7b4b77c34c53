"""Downgrades single operators to an older opset, where their definition changed.

Source: https://onnx.ai/onnx/operators/ (all versions of each operator). A function here changes a node of the newer
form into the older one and returns None, or returns why it cannot and may leave the node changed. Different defaults
and attributes without effect are left to ``older_opsets``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from qtool.workflows.convert.node_edits import (
    Step,
    constant_before,
    numbers_of,
    rank_of,
    to_attributes,
    transpose_around,
)
from qtool.workflows.convert.older_resize import RESIZE_OPSET, older_resize, older_upsample

SOFTMAX = frozenset({"Softmax", "LogSoftmax", "Hardmax"})
_GRID_NAMES_OPSET = 20
_PAD_AXES_OPSET = _SPLIT_COUNT_OPSET = 18
_SOFTMAX_OPSET = _SCALES_AS_VECTORS_OPSET = 13
_DROPOUT_INPUTS_OPSET = 12
_CLIP_INPUTS_OPSET = _PAD_INPUTS_OPSET = _GEMM_WITHOUT_BIAS_OPSET = 11
_SLICE_INPUTS_OPSET = _TOPK_INPUTS_OPSET = 10
_GRID_NAMES: Mapping[str, str] = {"linear": "bilinear", "cubic": "bicubic"}
_IMAGE_AXES = 4
_PAD_MODES = ("constant", "reflect", "edge")


Form: TypeAlias = Callable[[ir.Node, Step], str | None]


def older_form(node: ir.Node, step: Step) -> str | None:
    """Changes ``node`` where its operator's definition changed; returns why there is no older form."""
    form = _FORMS.get(node.op_type)
    return None if form is None else form(node, step)


def has_older_name(op_type: str, opset: int) -> bool:
    """Returns whether an operator missing in an opset can be replaced by another one there."""
    return op_type == "Resize" and opset < RESIZE_OPSET


def _softmax(node: ir.Node, step: Step) -> str | None:
    """Moves the axis to the end: the older form joins all axes from its own on, which is the same there."""
    if step.opset >= _SOFTMAX_OPSET:
        return None
    rank = rank_of(node.inputs[0])
    if rank is None:
        return "computes along an axis that is not known to be the last one, which its older form cannot"
    axis = node.attributes.get_int("axis", -1) % rank
    node.attributes["axis"] = ir.AttrInt64("axis", rank - 1)
    if axis == rank - 1:
        return None
    order = [*range(axis), *range(axis + 1, rank), axis]
    transpose_around(node, order, step)
    return None


def _clip(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _CLIP_INPUTS_OPSET:
        return None
    return to_attributes(node, {1: "min", 2: "max"}, floats=True)


def _pad(node: ir.Node, step: Step) -> str | None:
    if node.attributes.get_string("mode", "constant") not in _PAD_MODES:
        return "pads in a way that its older form lacks"
    if step.opset < _PAD_AXES_OPSET and len(node.inputs) > 3 and node.inputs[3] is not None:
        axes, pads, rank = numbers_of(node.inputs[3]), numbers_of(node.inputs[1]), rank_of(node.inputs[0])
        if axes is None or pads is None or rank is None:
            return "has axes that are computed, or pads a tensor of unknown rank"
        full = np.zeros((2, rank), np.int64)
        full[:, [int(axis) % rank for axis in axes]] = np.reshape(pads, (2, -1))
        node.replace_input_with(1, constant_before(node, full.reshape(-1), "pads", step))
        node.resize_inputs(3)
    if step.opset >= _PAD_INPUTS_OPSET:
        return None
    reason = to_attributes(node, {2: "value"}, floats=True)
    return reason or to_attributes(node, {1: "pads"})


def _slice(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _SLICE_INPUTS_OPSET:
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = numbers_of(node.inputs[4])
        if steps is None or any(number != 1 for number in steps):
            return "has steps other than 1"
        node.resize_inputs(4)
    return to_attributes(node, {3: "axes", 2: "ends", 1: "starts"})


def _top_k(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _TOPK_INPUTS_OPSET:
        return None
    k = numbers_of(node.inputs[1])
    if k is None:
        return "has a k that is computed"
    node.attributes["k"] = ir.AttrInt64("k", int(k[0]))
    node.resize_inputs(1)
    return None


def _dropout(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _DROPOUT_INPUTS_OPSET:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = numbers_of(node.inputs[2])
        if training is None or training[0]:
            return "drops values, as in training"
        node.resize_inputs(2)
    return to_attributes(node, {1: "ratio"}, floats=True)


def _grid_sample(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _GRID_NAMES_OPSET:
        return None
    rank = rank_of(node.inputs[0]) or rank_of(node.inputs[1])
    if rank is not None and rank != _IMAGE_AXES:
        return "samples something else than images"
    mode = node.attributes.get_string("mode", "linear")
    node.attributes["mode"] = ir.AttrString("mode", _GRID_NAMES.get(mode, mode))
    return None


def _gemm(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _GEMM_WITHOUT_BIAS_OPSET or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    value = node.inputs[0]
    dtype = np.dtype(np.float32) if value is None or value.dtype is None else value.dtype.numpy()
    node.resize_inputs(3)
    node.replace_input_with(2, constant_before(node, np.zeros(1, dtype), "bias", step))
    return None


def _split(node: ir.Node, step: Step) -> str | None:
    if step.opset >= _SPLIT_COUNT_OPSET or "num_outputs" not in node.attributes:
        return None
    count = node.attributes.get_int("num_outputs", len(node.outputs))
    value, rank = node.inputs[0], rank_of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    length = None if value is None or value.shape is None or rank is None else value.shape[axis % rank]
    if not isinstance(length, int) or length % count:
        return "divides a length that is not known to be a multiple of its outputs"
    del node.attributes["num_outputs"]
    return None


def _quantize(node: ir.Node, step: Step) -> str | None:
    scale = node.inputs[1]
    if step.opset >= _SCALES_AS_VECTORS_OPSET or scale is None or scale.shape is None or not len(scale.shape):
        return None
    return "has a scale for each channel, and its older form one for all"


_FORMS: Mapping[str, Form] = {
    **dict.fromkeys(SOFTMAX, _softmax),
    "Clip": _clip,
    "DequantizeLinear": _quantize,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "GridSample": _grid_sample,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Resize": older_resize,
    "Slice": _slice,
    "Split": _split,
    "TopK": _top_k,
    "Upsample": older_upsample,
}
