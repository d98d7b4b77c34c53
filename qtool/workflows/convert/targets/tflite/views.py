"""Operators that move, select or repeat values (https://onnx.ai/onnx/operators/)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from qtool.workflows.convert.targets.tflite.node_call import NodeCall, Operator, UnsupportedError

_DTYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
}
_PAD_MODES: Mapping[str, str] = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _reshape(call: NodeCall) -> torch.Tensor:
    data, shape = call.tensor(), call.integers(1)
    if not call.integer("allowzero", 0):
        shape = [data.shape[axis] if length == 0 else length for axis, length in enumerate(shape)]
    return data.reshape(shape)


def _flatten(call: NodeCall) -> torch.Tensor:
    data, axis = call.tensor(), call.integer("axis", 1)
    axis = axis + data.ndim if axis < 0 else axis
    rows = 1
    for length in data.shape[:axis]:
        rows *= length
    return data.reshape([rows, -1])


def _transpose(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    return data.permute(call.numbers("perm", list(reversed(range(data.ndim)))))


def _squeeze(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    axes = {axis % data.ndim for axis in call.axes(1)} or {axis for axis, size in enumerate(data.shape) if size == 1}
    return data.reshape([size for axis, size in enumerate(data.shape) if axis not in axes])


def _unsqueeze(call: NodeCall) -> torch.Tensor:
    data, axes = call.tensor(), call.axes(1)
    rank = data.ndim + len(axes)
    added, lengths = {axis % rank for axis in axes}, iter(data.shape)
    return data.reshape([1 if axis in added else next(lengths) for axis in range(rank)])


def _concat(call: NodeCall) -> torch.Tensor:
    return torch.cat([call.tensor(index) for index in range(len(call.values))], call.integer("axis", 0))


def _split(call: NodeCall) -> tuple[torch.Tensor, ...]:
    data, axis = call.tensor(), call.integer("axis", 0)
    if call.has(1):
        return torch.split(data, call.integers(1), axis)
    size = -(-data.shape[axis] // len(call.node.outputs))
    return torch.split(data, size, axis)


def _slice(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    starts, ends = call.integers(1), call.integers(2)
    axes = call.axes(3) or list(range(len(starts)))
    steps = call.integers(4) if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = _places(data.shape[axis], start, end, step)
        if step > 0:
            whole = (slice(None),) * (axis % data.ndim)
            data = data[(*whole, slice(places.start, max(places.stop, places.start), step))]
        else:
            data = torch.flip(data.index_select(axis, torch.tensor(sorted(places))), [axis])
    return data


def _places(length: int, start: int, end: int, step: int) -> range:
    """Returns what Slice takes of an axis: negative numbers count from its end, and those beyond it are its ends."""
    start, end = (place + length if place < 0 else place for place in (start, end))
    if step > 0:
        return range(min(max(start, 0), length), min(max(end, 0), length), step)
    return range(min(max(start, 0), length - 1), min(max(end, -1), length - 1), step)


def _gather(call: NodeCall) -> torch.Tensor:
    data, index, axis = call.tensor(0), call.tensor(1), call.integer("axis", 0) % call.tensor(0).ndim
    index = torch.where(index < 0, index + data.shape[axis], index).to(torch.int64)
    if axis == 0 and data.ndim == 2 and data.is_floating_point() and index.ndim > 0:
        return functional.embedding(index, data)
    found = data.index_select(axis, index.reshape(-1))
    return found.reshape([*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]])


def _gather_elements(call: NodeCall) -> torch.Tensor:
    data, axis = call.tensor(0), call.integer("axis", 0)
    index = call.tensor(1)
    return torch.gather(data, axis, torch.where(index < 0, index + data.shape[axis], index).to(torch.int64))


def _gather_nd(call: NodeCall) -> torch.Tensor:
    if call.integer("batch_dims", 0):
        raise UnsupportedError(call.node, "it gathers within batches")
    return call.tensor(0)[call.tensor(1).unbind(-1)]


def _expand(call: NodeCall) -> torch.Tensor:
    data, shape = call.tensor(), call.integers(1)
    return data.expand(torch.broadcast_shapes(tuple(data.shape), tuple(shape)))


def _pad(call: NodeCall) -> torch.Tensor:
    data, pads = call.tensor(), call.integers(1)
    mode = _PAD_MODES[call.only("mode", _PAD_MODES, "constant")]
    axes = [axis % data.ndim for axis in call.axes(3)] or list(range(data.ndim))
    amounts = [[0, 0] for _ in range(data.ndim)]
    for place, axis in enumerate(axes):
        amounts[axis] = [pads[place], pads[place + len(axes)]]
    flat = [amount for pair in reversed(amounts) for amount in pair]
    if mode == "constant":
        return functional.pad(data, flat, value=call.stored_number(2) or 0.0)
    inner = len(flat)
    while inner > 2 and flat[inner - 2 : inner] == [0, 0]:
        inner -= 2
    return functional.pad(data, flat[:inner], mode=mode)


def _resize(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    mode = call.only("mode", ("nearest", "linear"), "nearest")
    placing = call.text("coordinate_transformation_mode", "half_pixel")
    if data.ndim != 4 or "axes" in call.node.attributes:
        raise UnsupportedError(call.node, "it does not resize images")
    lengths = call.integers(3) if call.has(3) else None
    if lengths is None:
        scales = call.stored(2).tolist()
        lengths = [int(length * scale) for length, scale in zip(data.shape, scales, strict=True)]
    if lengths[:2] != list(data.shape[:2]):
        raise UnsupportedError(call.node, "it resizes more than height and width")
    if mode == "linear":
        if placing not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            raise UnsupportedError(call.node, f"it places pixels as {placing}")
        return functional.interpolate(data, lengths[2:], mode="bilinear", align_corners=placing == "align_corners")
    factors = [new // old for new, old in zip(lengths[2:], data.shape[2:], strict=True)]
    if [old * factor for old, factor in zip(data.shape[2:], factors, strict=True)] != lengths[2:]:
        raise UnsupportedError(call.node, "it is no whole multiple of its input")
    # Whole multiples repeat every pixel, however their places are counted.
    if placing == "align_corners" or (placing == "half_pixel" and call.text("nearest_mode", "") == "ceil"):
        raise UnsupportedError(call.node, f"it places pixels as {placing}")
    return functional.interpolate(data, lengths[2:], mode="nearest")


def _depth_to_space(call: NodeCall) -> torch.Tensor:
    data, size = call.tensor(), call.integer("blocksize", 1)
    if call.only("mode", ("DCR", "CRD"), "DCR") == "CRD":
        return functional.pixel_shuffle(data, size)
    count, channels, height, width = data.shape
    blocks = data.reshape(count, size, size, channels // size**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(count, channels // size**2, height * size, width * size)


def _cast(call: NodeCall) -> torch.Tensor:
    target = call.integer("to", 0)
    if target not in _DTYPES:
        raise UnsupportedError(call.node, "LiteRT has no such type")
    return call.tensor().to(_DTYPES[target])


def _tile(call: NodeCall) -> torch.Tensor:
    return call.tensor().repeat(call.integers(1))


VIEWS: Mapping[str, Operator] = {
    "Cast": _cast,
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
