"""Quantization with the straight-through estimator: integers are held as floats, and rounding has the gradient one.

With ``DequantizeLinear`` behind ``QuantizeLinear`` the gradient of a scale is that of LSQ (S. Esser et al., Learned
Step Size Quantization, ICLR 2020): the rounding error inside of the range, the nearest bound outside.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def _spread(parameter: torch.Tensor, call: Call, rank: int) -> torch.Tensor:
    if parameter.ndim == 0 or parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim > 1:
        raise LookupError("scales of blocks are not learned")
    shape = [1] * rank
    shape[call.integer("axis", 1)] = -1
    return parameter.reshape(shape)


def _quantize(call: Call, inputs: Inputs) -> torch.Tensor:
    value, scale, zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    low, high = LIMITS[torch.uint8 if zero is None else zero.dtype]
    steps = straight_through(value / _spread(scale, call, value.ndim))
    if zero is not None:
        steps = steps + _spread(zero, call, value.ndim).to(steps.dtype)
    return steps.clamp(low, high)


def _dequantize(call: Call, inputs: Inputs) -> torch.Tensor:
    steps, scale, zero = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    steps = steps.to(scale.dtype)
    if zero is not None:
        steps = steps - _spread(zero, call, steps.ndim).to(scale.dtype)
    return steps * _spread(scale, call, steps.ndim)


QUANTIZATION: Mapping[str, Operator] = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "com.microsoft.DequantizeLinear": _dequantize,
    "com.microsoft.QuantizeLinear": _quantize,
}
