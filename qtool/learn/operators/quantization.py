"""Quantization with the straight-through estimator: integers are held as floats, and rounding has the gradient one.

With ``DequantizeLinear`` behind ``QuantizeLinear`` the gradient of a scale is that of LSQ (S. Esser et al., Learned
Step Size Quantization, ICLR 2020): the rounding error inside of the range, the nearest bound outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional

LIMITS: Mapping[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


def straight_through(value: torch.Tensor) -> torch.Tensor:
    """Rounds halves to even; the gradient passes."""
    return value + (torch.round(value) - value).detach()


def _spread(parameter: torch.Tensor, call: Call, rank: int, length: int = 0) -> torch.Tensor:
    """Shapes a scale or zero point so that it broadcasts; ``length`` is that of the axis, where blocks divide it."""
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim > 1:
        block, axis = call.integer("block_size", 0), call.integer("axis", 1)
        if not block or not length:
            raise LookupError("scales of blocks are read with constants only")
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, length)
    shape = [1] * rank
    shape[call.integer("axis", 1)] = -1
    return parameter.reshape(shape)


class _Quantized(torch.autograd.Function):
    """Divides, rounds and clamps in one buffer; spelled out, the seven operators cost more than a convolution."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, low: int, high: int
    ) -> torch.Tensor:
        steps = torch.div(value, scale).round_()
        if zero is not None:
            steps.add_(zero)
        inside = (steps >= low) & (steps <= high)
        ctx.save_for_backward(value, scale, inside)
        return steps.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value, scale, inside = ctx.saved_tensors
        slope = slopes[0] * inside / scale
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = -(slope * value).sum_to_size(scale.shape) / scale
        return slope, of_scale, None, None, None


def _quantize(call: Call, inputs: Inputs) -> torch.Tensor:
    value, scale, zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    low, high = LIMITS[torch.uint8 if zero is None else zero.dtype]
    point = None if zero is None else _spread(zero, call, value.ndim).to(value.dtype)
    apply: Callable[..., torch.Tensor] = _Quantized.apply
    return apply(value, _spread(scale, call, value.ndim), point, low, high)


def _dequantize(call: Call, inputs: Inputs) -> torch.Tensor:
    steps, scale, zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    steps = steps.to(scale.dtype)
    length = steps.shape[call.integer("axis", 1)] if scale.ndim > 1 else 0
    if zero is not None:
        steps = steps - _spread(zero, call, steps.ndim, length).to(scale.dtype)
    return steps * _spread(scale, call, steps.ndim, length)


QUANTIZATION: Mapping[str, Operator] = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "com.microsoft.DequantizeLinear": _dequantize,
    "com.microsoft.QuantizeLinear": _quantize,
}
