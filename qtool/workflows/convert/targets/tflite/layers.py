"""Layers with weights, pooling and normalizations (https://onnx.ai/onnx/operators/)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from qtool.workflows.convert.targets.tflite.node_call import NodeCall, Operator, UnsupportedError

_CONVOLUTIONS = (functional.conv1d, functional.conv2d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d)


def _paddings(call: NodeCall, kernel: list[int], strides: list[int], dilations: list[int]) -> list[tuple[int, int]]:
    """Returns how many values are added before and behind each spatial axis."""
    automatic = call.only("auto_pad", ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), "NOTSET")
    if automatic == "NOTSET":
        pads = call.numbers("pads", [0] * (2 * len(kernel)))
        return list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
    if automatic == "VALID":
        return [(0, 0)] * len(kernel)
    found = []
    lengths = call.tensor().shape[2:]
    for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + (size - 1) * dilation + 1 - length, 0)
        less, more = total // 2, total - total // 2
        found.append((less, more) if automatic == "SAME_UPPER" else (more, less))
    return found


def _padded(data: torch.Tensor, paddings: list[tuple[int, int]], value: float) -> torch.Tensor:
    flat = [amount for pair in reversed(paddings) for amount in pair]
    return functional.pad(data, flat, value=value)


def _conv(call: NodeCall) -> torch.Tensor:
    data, weight = call.tensor(0), call.tensor(1)
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise UnsupportedError(call.node, f"it has {axes} spatial axes")
    strides, dilations = call.numbers("strides", [1] * axes), call.numbers("dilations", [1] * axes)
    paddings = _paddings(call, list(weight.shape[2:]), strides, dilations)
    even = [before for before, _ in paddings]
    if any(before != after for before, after in paddings):
        data, even = _padded(data, paddings, 0.0), [0] * axes
    return _CONVOLUTIONS[axes - 1](data, weight, call.optional(2), strides, even, dilations, call.integer("group", 1))


def _conv_transpose(call: NodeCall) -> torch.Tensor:
    data, weight = call.tensor(0), call.tensor(1)
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise UnsupportedError(call.node, f"it has {axes} spatial axes")
    if "output_shape" in call.node.attributes or call.text("auto_pad", "NOTSET") != "NOTSET":
        raise UnsupportedError(call.node, "its padding follows from its output's shape")
    pads = call.numbers("pads", [0] * (2 * axes))
    if pads[:axes] != pads[axes:]:
        raise UnsupportedError(call.node, "its padding is not the same on both sides")
    return _TRANSPOSED[axes - 1](
        data,
        weight,
        call.optional(2),
        call.numbers("strides", [1] * axes),
        pads[:axes],
        call.numbers("output_padding", [0] * axes),
        call.integer("group", 1),
        call.numbers("dilations", [1] * axes),
    )


def _gemm(call: NodeCall) -> torch.Tensor:
    left, right = call.tensor(0), call.tensor(1)
    left = left.t() if call.integer("transA", 0) else left
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    bias = call.optional(2)
    if alpha == beta == 1.0 and (bias is None or bias.ndim == 1):
        return functional.linear(left, right if call.integer("transB", 0) else right.t(), bias)
    product = left @ (right.t() if call.integer("transB", 0) else right)
    product = product if alpha == 1.0 else product * alpha
    return product if bias is None else product + bias * beta


def _matmul(call: NodeCall) -> torch.Tensor:
    left, right = call.tensor(0), call.tensor(1)
    # LiteRT has a kernel of per-channel weights for fully connected layers only.
    return functional.linear(left, right.t()) if right.ndim == 2 and left.ndim > 1 else torch.matmul(left, right)


def _max_pool(call: NodeCall) -> torch.Tensor:
    data, kernel = call.tensor(), call.numbers("kernel_shape", [])
    if len(kernel) not in (1, 2) or len(call.node.outputs) > 1 or call.integer("ceil_mode", 0):
        raise UnsupportedError(call.node, "it returns indices, rounds up, or has more than two spatial axes")
    strides, dilations = call.numbers("strides", [1] * len(kernel)), call.numbers("dilations", [1] * len(kernel))
    paddings = _paddings(call, kernel, strides, dilations)
    even = [before for before, _ in paddings]
    if any(before != after or 2 * before > size for (before, after), size in zip(paddings, kernel, strict=True)):
        data, even = _padded(data, paddings, float("-inf")), [0] * len(kernel)
    function = functional.max_pool1d if len(kernel) == 1 else functional.max_pool2d
    return function(data, kernel, strides, even, dilations)


def _average_pool(call: NodeCall) -> torch.Tensor:
    data, kernel = call.tensor(), call.numbers("kernel_shape", [])
    if len(kernel) not in (1, 2) or call.integer("ceil_mode", 0) or "dilations" in call.node.attributes:
        raise UnsupportedError(call.node, "it rounds up, is dilated, or has more than two spatial axes")
    strides = call.numbers("strides", [1] * len(kernel))
    paddings = _paddings(call, kernel, strides, [1] * len(kernel))
    counted = bool(call.integer("count_include_pad", 0))
    even = [before for before, _ in paddings]
    if any(before != after for before, after in paddings):
        if not counted:
            raise UnsupportedError(call.node, "its padding is not the same on both sides, and does not count")
        data, even = _padded(data, paddings, 0.0), [0] * len(kernel)
    function = functional.avg_pool1d if len(kernel) == 1 else functional.avg_pool2d
    return function(data, kernel, strides, even, False, counted)


def _global(reduce: str) -> Operator:
    def pooled(call: NodeCall) -> torch.Tensor:
        data = call.tensor()
        axes = list(range(2, data.ndim))
        return torch.mean(data, axes, keepdim=True) if reduce == "mean" else torch.amax(data, axes, keepdim=True)

    return pooled


def _batch_norm(call: NodeCall) -> torch.Tensor:
    data = call.tensor()
    scale, bias, mean, variance = (call.tensor(index) for index in (1, 2, 3, 4))
    return functional.batch_norm(data, mean, variance, scale, bias, eps=call.number("epsilon", 1e-5))


def _layer_norm(call: NodeCall) -> torch.Tensor:
    if len(call.node.outputs) > 1:
        raise UnsupportedError(call.node, "its mean is read")
    data = call.tensor()
    axis = call.integer("axis", -1) % data.ndim
    return functional.layer_norm(
        data, list(data.shape[axis:]), call.tensor(1), call.optional(2), call.number("epsilon", 1e-5)
    )


def _instance_norm(call: NodeCall) -> torch.Tensor:
    return functional.instance_norm(
        call.tensor(), weight=call.tensor(1), bias=call.tensor(2), eps=call.number("epsilon", 1e-5)
    )


LAYERS: Mapping[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max"),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
}
