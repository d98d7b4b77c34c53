"""Normalizations, as they are at inference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional


def _batch(call: Call, inputs: Inputs) -> torch.Tensor:
    if call.integer("training_mode", 0):
        raise LookupError("statistics of a batch are not computed")
    value, scale, bias, mean, variance = (given(inputs, index) for index in range(5))
    shape = (-1, *[1] * (value.ndim - 2))
    factor = scale * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    return value * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


def _layer(call: Call, inputs: Inputs) -> torch.Tensor:
    if call.outputs > 1:
        raise LookupError("the statistics of a layer are not returned")
    value, scale, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    axis = call.integer("axis", -1)
    shape = value.shape[axis if axis >= 0 else value.ndim + axis :]
    scaled = functional.layer_norm(value, shape, eps=call.number("epsilon", 1e-5)) * scale
    return scaled if bias is None else scaled + bias


def _root_mean_square(call: Call, inputs: Inputs) -> torch.Tensor:
    value, scale = given(inputs, 0), given(inputs, 1)
    axis = call.integer("axis", -1)
    axes = tuple(range(axis if axis >= 0 else value.ndim + axis, value.ndim))
    return value * torch.rsqrt(value.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


def _instance(call: Call, inputs: Inputs) -> torch.Tensor:
    value, scale, bias = given(inputs, 0), given(inputs, 1), given(inputs, 2)
    return functional.instance_norm(value, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


def _group(call: Call, inputs: Inputs) -> torch.Tensor:
    value, scale, bias = given(inputs, 0), given(inputs, 1), given(inputs, 2)
    groups = call.integer("num_groups", 1)
    if scale.numel() != value.shape[1]:
        scale, bias = (part.repeat_interleave(value.shape[1] // groups) for part in (scale, bias))
    return functional.group_norm(value, groups, scale, bias, eps=call.number("epsilon", 1e-5))


def _lp(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return functional.normalize(value, p=call.integer("p", 2), dim=call.integer("axis", -1), eps=1e-30)


def _skip_root_mean_square(call: Call, inputs: Inputs) -> tuple[torch.Tensor | None, ...]:
    """Adds, then normalizes: output 0 is normalized, output 3 the sum."""
    value = given(inputs, 0) + given(inputs, 1)
    bias = optional(inputs, 3)
    value = value if bias is None else value + bias
    scaled = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + call.number("epsilon", 1e-5))
    return (scaled * given(inputs, 2), None, None, value)


def _skip_layer(call: Call, inputs: Inputs) -> tuple[torch.Tensor | None, ...]:
    """Adds, then normalizes: output 0 is normalized, output 3 the sum."""
    value = given(inputs, 0) + given(inputs, 1)
    bias = optional(inputs, 4)
    value = value if bias is None else value + bias
    scaled = functional.layer_norm(value, value.shape[-1:], eps=call.number("epsilon", 1e-5)) * given(inputs, 2)
    beta = optional(inputs, 3)
    return (scaled if beta is None else scaled + beta, None, None, value)


NORMALIZATIONS: Mapping[str, Operator] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "LpNormalization": _lp,
    "RMSNormalization": _root_mean_square,
    "SimplifiedLayerNormalization": _root_mean_square,
    "com.microsoft.SkipLayerNormalization": _skip_layer,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_root_mean_square,
}
