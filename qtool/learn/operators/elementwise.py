"""Operators that work on one element after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch.nn import functional

from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional

_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def torch_dtype(code: int) -> torch.dtype:
    """Returns the dtype of a code in ``TensorProto.DataType``.

    Raises:
        LookupError: torch computes with no such type.
    """
    return _DTYPES[code]


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda _, inputs: function(given(inputs, 0))


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    return lambda _, inputs: function(given(inputs, 0), given(inputs, 1))


def _variadic(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    return lambda _, inputs: reduce(function, [given(inputs, index) for index in range(len(inputs))])


def _divide(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    if first.dtype.is_floating_point:
        return first / second
    return torch.div(first, second, rounding_mode="trunc")


def _mod(call: Call, inputs: Inputs) -> torch.Tensor:
    first, second = given(inputs, 0), given(inputs, 1)
    return torch.fmod(first, second) if call.integer("fmod", 0) else torch.remainder(first, second)


def _mean(_: Call, inputs: Inputs) -> torch.Tensor:
    return reduce(torch.add, [given(inputs, index) for index in range(len(inputs))]) / len(inputs)


def _power(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.pow(first, second.to(first.dtype) if first.dtype.is_floating_point else second).to(first.dtype)


def _where(_: Call, inputs: Inputs) -> torch.Tensor:
    return torch.where(given(inputs, 0), given(inputs, 1), given(inputs, 2))


def _cast(call: Call, inputs: Inputs) -> torch.Tensor:
    return given(inputs, 0).to(torch_dtype(call.integer("to", 1)))


def _cast_like(_: Call, inputs: Inputs) -> torch.Tensor:
    return given(inputs, 0).to(given(inputs, 1).dtype)


def _clip(call: Call, inputs: Inputs) -> torch.Tensor:
    value, low, high = given(inputs, 0), optional(inputs, 1), optional(inputs, 2)
    if "min" in call.attributes or "max" in call.attributes:
        return value.clamp(call.attributes.get("min"), call.attributes.get("max"))
    value = value if low is None else torch.maximum(value, low)
    return value if high is None else torch.minimum(value, high)


def _leaky_relu(call: Call, inputs: Inputs) -> torch.Tensor:
    return functional.leaky_relu(given(inputs, 0), call.number("alpha", 0.01))


def _elu(call: Call, inputs: Inputs) -> torch.Tensor:
    return functional.elu(given(inputs, 0), call.number("alpha", 1.0))


def _celu(call: Call, inputs: Inputs) -> torch.Tensor:
    return functional.celu(given(inputs, 0), call.number("alpha", 1.0))


def _selu(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    alpha, gamma = call.number("alpha", 1.67326319217681884765625), call.number("gamma", 1.05070102214813232421875)
    return gamma * torch.where(value > 0, value, alpha * torch.expm1(value.clamp(max=0)))


def _thresholded_relu(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return torch.where(value > call.number("alpha", 1.0), value, torch.zeros_like(value))


def _hard_sigmoid(call: Call, inputs: Inputs) -> torch.Tensor:
    return (call.number("alpha", 0.2) * given(inputs, 0) + call.number("beta", 0.5)).clamp(0, 1)


def _hard_swish(_: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value * (value / 6 + 0.5).clamp(0, 1)


def _gelu(call: Call, inputs: Inputs) -> torch.Tensor:
    return functional.gelu(given(inputs, 0), approximate=call.text("approximate", "none"))


def _quick_gelu(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value * torch.sigmoid(call.number("alpha", 1.702) * value)


def _swish(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    return value * torch.sigmoid(call.number("alpha", 1.0) * value)


def _prelu(_: Call, inputs: Inputs) -> torch.Tensor:
    value, slope = given(inputs, 0), given(inputs, 1)
    return torch.where(value < 0, slope * value, value)


def _shrink(call: Call, inputs: Inputs) -> torch.Tensor:
    value, bound, bias = given(inputs, 0), call.number("lambd", 0.5), call.number("bias", 0.0)
    zero = torch.zeros_like(value)
    return torch.where(value < -bound, value + bias, torch.where(value > bound, value - bias, zero))


def _softmax(call: Call, inputs: Inputs) -> torch.Tensor:
    return torch.softmax(given(inputs, 0), call.integer("axis", -1))


def _log_softmax(call: Call, inputs: Inputs) -> torch.Tensor:
    return torch.log_softmax(given(inputs, 0), call.integer("axis", -1))


def _is_inf(call: Call, inputs: Inputs) -> torch.Tensor:
    value = given(inputs, 0)
    below = torch.isneginf(value) & bool(call.integer("detect_negative", 1))
    return below | (torch.isposinf(value) & bool(call.integer("detect_positive", 1)))


UNARY: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda value: value,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
BINARY: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
ELEMENTWISE: Mapping[str, Operator] = {
    **{name: _unary(function) for name, function in UNARY.items()},
    **{name: _binary(function) for name, function in BINARY.items()},
    "Cast": _cast,
    "CastLike": _cast_like,
    "Celu": _celu,
    "Clip": _clip,
    "Dropout": lambda _, inputs: given(inputs, 0),
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsInf": _is_inf,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "Max": _variadic(torch.maximum),
    "Mean": _mean,
    "Min": _variadic(torch.minimum),
    "Mod": _mod,
    "PRelu": _prelu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Softmax": _softmax,
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "com.microsoft.Gelu": _gelu,
    "com.microsoft.QuickGelu": _quick_gelu,
}
