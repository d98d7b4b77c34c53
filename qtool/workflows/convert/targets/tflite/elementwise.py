"""Operators that compute every element by itself, and reductions (https://onnx.ai/onnx/operators/)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from qtool.workflows.convert.targets.tflite.node_call import NodeCall, Operator


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.tensor())


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _all_inputs(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    def combined(call: NodeCall) -> torch.Tensor:
        found = call.tensor(0)
        for index in range(1, len(call.values)):
            found = function(found, call.tensor(index))
        return found

    return combined


def _reduction(function: Callable[[torch.Tensor, list[int], bool], torch.Tensor]) -> Operator:
    def reduced(call: NodeCall) -> torch.Tensor:
        data, axes = call.tensor(), call.axes(1)
        if not axes:
            if call.integer("noop_with_empty_axes", 0):
                return data
            axes = list(range(data.ndim))
        return function(data, axes, bool(call.integer("keepdims", 1)))

    return reduced


def _divided(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_floating_point():
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


def _clip(call: NodeCall) -> torch.Tensor:
    limits = [call.stored_number(index) for index in (1, 2)]
    # Kernels of ReLU and ReLU6 are fused into layers.
    if limits == [0.0, None]:
        return functional.relu(call.tensor())
    return functional.relu6(call.tensor()) if limits == [0.0, 6.0] else torch.clamp(call.tensor(), limits[0], limits[1])


def _hard_sigmoid(call: NodeCall) -> torch.Tensor:
    return torch.clamp(call.tensor() * call.number("alpha", 0.2) + call.number("beta", 0.5), 0.0, 1.0)


def _hard_swish(call: NodeCall) -> torch.Tensor:
    return functional.hardswish(call.tensor())


def _prelu(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    return functional.relu(data) - functional.relu(-data) * call.tensor(1)


def _where(call: NodeCall) -> torch.Tensor:
    return torch.where(call.tensor(0).bool(), call.tensor(1), call.tensor(2))


def _softmax(call: NodeCall) -> torch.Tensor:
    return torch.softmax(call.tensor(), call.integer("axis", -1))


def _log_softmax(call: NodeCall) -> torch.Tensor:
    return torch.log_softmax(call.tensor(), call.integer("axis", -1))


def _gelu(call: NodeCall) -> torch.Tensor:
    return functional.gelu(call.tensor(), approximate=call.only("approximate", ("none", "tanh"), "none"))


def _product(data: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % data.ndim for axis in axes), reverse=True):
        data = torch.prod(data, axis, keepdim=keep)
    return data


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _binary(_divided),
    "Dropout": _unary(lambda data: data),
    "Elu": lambda call: functional.elu(call.tensor(), call.number("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _unary(lambda data: data),
    "LeakyRelu": lambda call: functional.leaky_relu(call.tensor(), call.number("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _log_softmax,
    "Max": _all_inputs(torch.maximum),
    "Min": _all_inputs(torch.minimum),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _binary(torch.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduction(lambda data, axes, keep: torch.sqrt(torch.sum(data * data, axes, keepdim=keep))),
    "ReduceMax": _reduction(lambda data, axes, keep: torch.amax(data, axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda data, axes, keep: torch.mean(data, axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda data, axes, keep: torch.amin(data, axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda data, axes, keep: torch.sum(data, axes, keepdim=keep, dtype=data.dtype)),
    "Relu": _unary(functional.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax,
    "Softplus": _unary(functional.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _all_inputs(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
}
