"""Pooling, resizing, and moving between channels and positions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from qtool.learn.operators.calls import Call, Inputs, Operator, given, listed, optional
from qtool.learn.operators.products import padded, padding

_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_MEAN = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _pads(call: Call, value: torch.Tensor, kernel: list[int]) -> list[int]:
    """Returns the padding, with what a last incomplete window needs where the node rounds up."""
    pads, rank = padding(call, value.shape[2:], kernel), len(kernel)
    if not call.integer("ceil_mode", 0):
        return pads
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    for axis in range(rank):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        length = value.shape[2 + axis] + pads[axis]
        windows = math.ceil((length + pads[rank + axis] - reach) / strides[axis]) + 1
        if (windows - 1) * strides[axis] >= length:
            windows -= 1  # a window must not lie in the padding alone
        pads[rank + axis] = max((windows - 1) * strides[axis] + reach - length, pads[rank + axis])
    return pads


def _max_pool(call: Call, inputs: Inputs) -> torch.Tensor:
    if call.outputs > 1:
        raise LookupError("the places of the largest values are not computed")
    value, kernel = given(inputs, 0), call.integers("kernel_shape") or []
    rank = len(kernel)
    value, _ = padded(value, _pads(call, value, kernel), fill=-math.inf)
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    return _MAX[rank - 1](value, kernel, strides, dilation=dilations)


def _average_pool(call: Call, inputs: Inputs) -> torch.Tensor:
    value, kernel = given(inputs, 0), call.integers("kernel_shape") or []
    rank = len(kernel)
    if any(step != 1 for step in call.integers("dilations") or []):
        raise LookupError("averages with gaps are not computed")
    strides = call.integers("strides") or [1] * rank
    pads, explicit = _pads(call, value, kernel), padding(call, value.shape[2:], kernel)
    sums = _MEAN[rank - 1](_filled(value, pads), kernel, strides)
    # What counts: the values alone, or also the padding that is asked for, but not what rounding up adds.
    counted = torch.ones_like(value[:1, :1])
    if call.integer("count_include_pad", 0):
        counted = _filled(counted, explicit, fill=1.0)
        pads = [whole - own for whole, own in zip(pads, explicit, strict=True)]
    return sums / _MEAN[rank - 1](_filled(counted, pads), kernel, strides)


def _filled(value: torch.Tensor, pads: list[int], fill: float = 0.0) -> torch.Tensor:
    rank = len(pads) // 2
    flat = [width for axis in reversed(range(rank)) for width in (pads[axis], pads[rank + axis])]
    return functional.pad(value, flat, value=fill)


def _global_mean(_: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value.mean(dim=tuple(range(2, value.ndim)), keepdim=True)


def _global_max(_: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value.amax(dim=tuple(range(2, value.ndim)), keepdim=True)


def _resize(call: Call, inputs: Inputs) -> torch.Tensor:
    """Nearest and linear resizing of maps in the forms that torch knows, see the conditions below."""
    value = given(inputs, 0)
    rank = value.ndim - 2
    sizes, scales = listed(inputs, 3), optional(inputs, 2)
    unusual = call.integers("axes") is not None or call.integer("antialias", 0)
    if unusual or call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise LookupError("this form of Resize is not computed")
    if not sizes:
        factors = [] if scales is None else scales.reshape(-1).tolist()
        exact_sizes = [length * factor for length, factor in zip(value.shape, factors, strict=True)]
        sizes = [math.floor(size) for size in exact_sizes]
        if sizes != exact_sizes:
            raise LookupError("places between values follow the scale, not the sizes")
    if list(value.shape[:2]) != sizes[:2]:
        raise LookupError("channels are not resized")
    exact = all(new % old == 0 for new, old in zip(sizes[2:], value.shape[2:], strict=True))
    place = call.text("coordinate_transformation_mode", "half_pixel")
    mode = call.text("mode", "nearest")
    if mode == "nearest" and exact:
        rounding = call.text("nearest_mode", "round_prefer_floor")
        # Each of these repeats every value where the size is a multiple.
        if (place == "asymmetric" and rounding == "floor") or (
            place in {"half_pixel", "pytorch_half_pixel"} and rounding in {"round_prefer_floor", "round_prefer_ceil"}
        ):
            return functional.interpolate(value, size=sizes[2:], mode="nearest")
    if mode == "linear" and rank in {1, 2} and place in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        name = ("linear", "bilinear")[rank - 1]
        larger = all(new > 1 for new in sizes[2:])
        if place != "pytorch_half_pixel" or larger:
            return functional.interpolate(value, size=sizes[2:], mode=name, align_corners=place == "align_corners")
    raise LookupError("this form of Resize is not computed")


def _depth_to_space(call: Call, inputs: Inputs) -> torch.Tensor:
    value, block = given(inputs, 0), call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(value, block)
    batch, channels, height, width = value.shape
    parts = value.reshape(batch, block, block, channels // block**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, -1, height * block, width * block)


def _space_to_depth(call: Call, inputs: Inputs) -> torch.Tensor:
    if call.text("mode", "DCR") != "DCR":
        raise LookupError("the other order of channels is not computed")
    value, block = given(inputs, 0), call.integer("blocksize", 1)
    batch, channels, height, width = value.shape
    parts = value.reshape(batch, channels, height // block, block, width // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)


WINDOWS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": _global_mean,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
