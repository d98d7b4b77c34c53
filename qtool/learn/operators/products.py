"""Products with weights: convolutions and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from qtool.learn.operators.calls import Call, Inputs, Operator, given, optional

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


def padding(call: Call, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Returns the padding of a window that moves over axes of ``size``: all begins, then all ends."""
    rank = len(kernel)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    mode = call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * (2 * rank)
    if mode == "NOTSET":
        return call.integers("pads") or [0] * (2 * rank)
    begins, ends = [], []
    for length, width, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        reach = dilation * (width - 1) + 1
        missing = max((-(-length // stride) - 1) * stride + reach - length, 0)
        smaller, larger = missing // 2, missing - missing // 2
        begins.append(smaller if mode == "SAME_UPPER" else larger)
        ends.append(larger if mode == "SAME_UPPER" else smaller)
    return begins + ends


def padded(value: torch.Tensor, pads: Sequence[int], fill: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Pads what torch's operators cannot pad themselves, and returns the padding that is left to them."""
    rank = len(pads) // 2
    begins, ends = list(pads[:rank]), list(pads[rank:])
    if begins == ends and fill == 0.0:
        return value, begins
    flat = [width for pair in reversed(list(zip(begins, ends, strict=True))) for width in pair]
    return functional.pad(value, flat, value=fill), [0] * rank


def _conv(call: Call, inputs: Inputs) -> torch.Tensor:
    value, weight, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    rank = value.ndim - 2
    value, pads = padded(value, padding(call, value.shape[2:], weight.shape[2:]))
    return _CONVOLUTIONS[rank - 1](
        value,
        weight,
        bias,
        stride=call.integers("strides") or [1] * rank,
        padding=pads,
        dilation=call.integers("dilations") or [1] * rank,
        groups=call.integer("group", 1),
    )


def _conv_transpose(call: Call, inputs: Inputs) -> torch.Tensor:
    value, weight, bias = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    rank = value.ndim - 2
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    extra = call.integers("output_padding") or [0] * rank
    full = _TRANSPOSED[rank - 1](
        value, weight, bias, stride=strides, dilation=dilations, groups=call.integer("group", 1), output_padding=extra
    )
    pads = call.integers("pads") or [0] * (2 * rank)
    wanted, mode = call.integers("output_shape"), call.text("auto_pad", "NOTSET")
    if mode.startswith("SAME") and wanted is None:
        wanted = [length * stride for length, stride in zip(value.shape[2:], strides, strict=True)]
    if wanted is not None:
        cut = [have - want for have, want in zip(full.shape[2:], wanted[-rank:], strict=True)]
        first = [width // 2 if mode == "SAME_UPPER" else width - width // 2 for width in cut]
        pads = [*first, *(width - begin for width, begin in zip(cut, first, strict=True))]
    # Negative widths cut.
    flat = [-width for pair in reversed(list(zip(pads[:rank], pads[rank:], strict=True))) for width in pair]
    return functional.pad(full, flat) if any(flat) else full


def _gemm(call: Call, inputs: Inputs) -> torch.Tensor:
    first, second, third = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
    first = first.T if call.integer("transA", 0) else first
    second = second.T if call.integer("transB", 0) else second
    product = call.number("alpha", 1.0) * (first @ second)
    return product if third is None else product + call.number("beta", 1.0) * third


def _matmul(_: Call, inputs: Inputs) -> torch.Tensor:
    return given(inputs, 0) @ given(inputs, 1)


def _einsum(call: Call, inputs: Inputs) -> torch.Tensor:
    return torch.einsum(call.text("equation", ""), *[given(inputs, index) for index in range(len(inputs))])


PRODUCTS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
