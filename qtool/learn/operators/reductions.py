"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from qtool.learn.operators.calls import Call, Inputs, Operator, axes_of, given

_Reduce = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _reduction(reduce: _Reduce) -> Operator:
    def operator(call: Call, inputs: Inputs) -> torch.Tensor:
        value, axes, keep = given(inputs, 0), axes_of(call, inputs), bool(call.integer("keepdims", 1))
        if not axes:
            if call.integer("noop_with_empty_axes", 0):
                return value
            axes = list(range(value.ndim))
        return reduce(value, axes, keep) if axes else value

    return operator


def _product(value: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % value.ndim for axis in axes), reverse=True):
        value = value.prod(axis, keepdim=keep)
    return value


def _chosen(largest: bool) -> Operator:
    def operator(call: Call, inputs: Inputs) -> torch.Tensor:
        if call.integer("select_last_index", 0):
            raise LookupError("the last of equal values is not looked for")
        choose = torch.argmax if largest else torch.argmin
        return choose(given(inputs, 0), call.integer("axis", 0), keepdim=bool(call.integer("keepdims", 1)))

    return operator


def _top_k(call: Call, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    count, axis = int(given(inputs, 1).reshape(()).item()), call.integer("axis", -1)
    # Of equal values the first counts, which torch.topk does not promise.
    values, places = given(inputs, 0).sort(dim=axis, descending=bool(call.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _running_sum(call: Call, inputs: Inputs) -> torch.Tensor:
    value, axis = given(inputs, 0), int(given(inputs, 1).reshape(()).item())
    backwards = bool(call.integer("reverse", 0))
    value = value.flip(axis) if backwards else value
    total = value.cumsum(axis)
    total = total - value if call.integer("exclusive", 0) else total
    return total.flip(axis) if backwards else total


REDUCTIONS: Mapping[str, Operator] = {
    "ArgMax": _chosen(largest=True),
    "ArgMin": _chosen(largest=False),
    "CumSum": _running_sum,
    "ReduceL1": _reduction(lambda value, axes, keep: value.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda value, axes, keep: value.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSum": _reduction(lambda value, axes, keep: value.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda value, axes, keep: value.logsumexp(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda value, axes, keep: value.amax(axes, keepdim=keep)),
    "ReduceMean": _reduction(lambda value, axes, keep: value.mean(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda value, axes, keep: value.amin(axes, keepdim=keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda value, axes, keep: value.sum(axes, keepdim=keep, dtype=value.dtype)),
    "ReduceSumSquare": _reduction(lambda value, axes, keep: value.square().sum(axes, keepdim=keep, dtype=value.dtype)),
    "TopK": _top_k,
}
