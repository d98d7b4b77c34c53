"""Operators that move values around, and those that compute shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from qtool.learn.operators.calls import Call, Inputs, Operator, axes_of, given, listed, optional


def _reshape(call: Call, inputs: Inputs) -> torch.Tensor:
    value, shape = given(inputs, 0), listed(inputs, 1) or []
    if not call.integer("allowzero", 0):
        shape = [value.shape[axis] if length == 0 else length for axis, length in enumerate(shape)]
    return value.reshape(tuple(shape))


def _transpose(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value.permute(call.integers("perm") or list(reversed(range(value.ndim))))


def _flatten(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    axis = call.integer("axis", 1)
    axis = axis if axis >= 0 else axis + value.ndim
    rows = int(np.prod(value.shape[:axis], dtype=np.int64))
    return value.reshape(rows, -1) if value.numel() else value.reshape(rows, int(np.prod(value.shape[axis:])))


def _squeeze(call: Call, inputs: Inputs) -> torch.Tensor:
    value, axes = given(inputs, 0), axes_of(call, inputs)
    return value.squeeze() if axes is None else value.squeeze(tuple(axes))


def _unsqueeze(call: Call, inputs: Inputs) -> torch.Tensor:
    value, axes = given(inputs, 0), axes_of(call, inputs) or []
    rank = value.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _slice(_: Call, inputs: Inputs) -> torch.Tensor:
    value, starts, ends = given(inputs, 0), listed(inputs, 1) or [], listed(inputs, 2) or []
    axes = listed(inputs, 3) or list(range(len(starts)))
    steps = listed(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            places = range(value.shape[axis])[slice(start, None if end < -value.shape[axis] else end, step)]
            value = value.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=value.device))
            continue
        index: list[slice] = [slice(None)] * value.ndim
        index[axis] = slice(start, end, step)
        value = value[tuple(index)]
    return value


def _split(call: Call, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    value, axis = given(inputs, 0), call.integer("axis", 0)
    lengths = call.integers("split") or listed(inputs, 1)
    if lengths is None:
        part = -(-value.shape[axis] // call.outputs)
        return tuple(value.split(part, axis))
    return tuple(value.split(lengths, axis))


def _concat(call: Call, inputs: Inputs) -> torch.Tensor:
    return torch.cat([given(inputs, index) for index in range(len(inputs))], call.integer("axis", 0))


def _pad(call: Call, inputs: Inputs) -> torch.Tensor:
    value, pads, axes = given(inputs, 0), listed(inputs, 1) or [], listed(inputs, 3)
    mode = call.text("mode", "constant")
    if axes is not None:
        every = [0] * (2 * value.ndim)
        for position, axis in enumerate(axes):
            every[axis % value.ndim], every[axis % value.ndim + value.ndim] = pads[position], pads[position + len(axes)]
        pads = every
    if mode not in {"constant", "reflect", "edge"}:
        raise LookupError(f"padding of mode {mode} is not computed")
    flat = [width for axis in reversed(range(value.ndim)) for width in (pads[axis], pads[axis + value.ndim])]
    if mode == "constant":
        fill = optional(inputs, 2)
        return functional.pad(value, flat, value=0 if fill is None else fill.reshape(()).item())
    return _padded_with_own(value, pads, mode)


def _padded_with_own(value: torch.Tensor, pads: Sequence[int], mode: str) -> torch.Tensor:
    """Pads with values that are there, axis after axis."""
    for axis, length in enumerate(value.shape):
        before, after = pads[axis], pads[axis + value.ndim]
        if before < 0 or after < 0:
            raise LookupError("values are not cut off while others are added")
        if before or after:
            places = np.pad(np.arange(length), (before, after), mode="reflect" if mode == "reflect" else "edge")
            value = value.index_select(axis, torch.from_numpy(places).to(value.device))
    return value


def _expand(_: Call, inputs: Inputs) -> torch.Tensor:
    value, shape = given(inputs, 0), listed(inputs, 1) or []
    return value.expand(torch.broadcast_shapes(value.shape, tuple(shape)))


def _shape(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    end = call.attributes.get("end")
    lengths = list(value.shape)[call.integer("start", 0) : None if end is None else int(end)]
    return torch.tensor(lengths, dtype=torch.int64)


def _gather(call: Call, inputs: Inputs) -> torch.Tensor:
    value, places, axis = given(inputs, 0), given(inputs, 1).long(), call.integer("axis", 0)
    axis = axis if axis >= 0 else axis + value.ndim
    places = torch.where(places < 0, places + value.shape[axis], places).to(value.device)
    taken = value.index_select(axis, places.reshape(-1))
    return taken.reshape((*value.shape[:axis], *places.shape, *value.shape[axis + 1 :]))


def _gather_elements(call: Call, inputs: Inputs) -> torch.Tensor:
    value, places, axis = given(inputs, 0), given(inputs, 1).long(), call.integer("axis", 0)
    return value.gather(axis, torch.where(places < 0, places + value.shape[axis], places))


def _gather_nd(call: Call, inputs: Inputs) -> torch.Tensor:
    value, places = given(inputs, 0), given(inputs, 1).long()
    if call.integer("batch_dims", 0):
        raise LookupError("places in batches are not looked up")
    return value[tuple(places[..., axis] for axis in range(places.shape[-1]))]


def _scatter_nd(call: Call, inputs: Inputs) -> torch.Tensor:
    value, places, updates = given(inputs, 0), given(inputs, 1).long(), given(inputs, 2)
    if call.text("reduction", "none") != "none":
        raise LookupError("only values that replace others are scattered")
    return value.index_put(tuple(places[..., axis] for axis in range(places.shape[-1])), updates)


def _constant_of_shape(call: Call, inputs: Inputs) -> torch.Tensor:
    fill = np.asarray(call.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
    return torch.from_numpy(np.full(listed(inputs, 0) or (), fill[0], fill.dtype))


def _range(_: Call, inputs: Inputs) -> torch.Tensor:
    start, limit, step = (given(inputs, index) for index in range(3))
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _tile(_: Call, inputs: Inputs) -> torch.Tensor:
    return given(inputs, 0).repeat(listed(inputs, 1) or [])


def _triangle(call: Call, inputs: Inputs) -> torch.Tensor:
    value, diagonal = given(inputs, 0), optional(inputs, 1)
    offset = 0 if diagonal is None else int(diagonal.item())
    return value.triu(offset) if call.integer("upper", 1) else value.tril(offset)


def _size(_: Call, inputs: Inputs) -> torch.Tensor:
    return torch.tensor(given(inputs, 0).numel(), dtype=torch.int64)


SHAPES: Mapping[str, Operator] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
