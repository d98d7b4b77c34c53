"""Adds changes to the initializers of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.lora.graph_search import Place, dequantized
from qtool.passes.constants import add_constant, constant_array

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphChange:
    """Says what happened to one initializer.

    Attributes:
        stored: its name.
        form: the form in which it holds the weight, in words.
        relative_change: the norm of what was added, over that of what was there.
        rounding_error: the norm of what rounding to the stored type cut off, over that of the sum.
    """

    stored: str
    form: str
    relative_change: float
    rounding_error: float


def add_to_graph(place: Place, delta: Array, name: str) -> GraphChange:
    """Adds ``delta``, float64 in the shape of the checkpoint's tensor, to where that tensor is in the graph.

    Raises:
        InputError: the sum holds what the stored type does not.
    """
    if place.channel_scale is not None:
        delta = delta * place.channel_scale.reshape(-1, *(1,) * (delta.ndim - 1))
    delta = delta.T if place.transposed else delta
    if place.dequantize is not None:
        return _requantize(place, delta)
    stored = _array(place.stored).astype(np.float64)
    window = (..., slice(place.offset, place.offset + place.length)) if place.offset is not None else (...,)
    before = stored[window].copy()
    stored[window] += delta
    with np.errstate(over="ignore"):
        merged = stored.astype(_array(place.stored).dtype)
    if not np.isfinite(merged).all():
        raise InputError(
            f"the merged {name} holds values that {merged.dtype} does not",
            fix="check the scale of the adapter, or merge into a graph of float32",
        )
    _store(place, merged)
    exact = stored[window]
    return GraphChange(
        stored=place.stored.name or "",
        form=place.form,
        relative_change=_ratio(delta, before),
        rounding_error=_ratio(merged[window].astype(np.float64) - exact, exact),
    )


def _requantize(place: Place, delta: Array) -> GraphChange:
    """Adds to the floats behind integers, and finds new integers; scales stay unless a channel outgrows its own."""
    node = place.dequantize
    if node is None:
        raise AssertionError(place)
    before = dequantized(node)
    exact = before + delta
    integers, scale = _array(node.inputs[0]), _array(node.inputs[1])
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    zeros = np.zeros(scale.shape) if zero is None else zero.astype(np.float64)
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[node.attributes.get_int("axis", 1)] = scale.size
    limits = np.iinfo(integers.dtype)
    low, high = max(limits.min, -limits.max) if not zeros.any() else limits.min, limits.max
    others = tuple(axis for axis in range(exact.ndim) if scale.size == 1 or shape[axis] == 1)
    needed = np.maximum(
        exact.max(axis=others).reshape(scale.shape) / np.maximum(high - zeros, 1),
        exact.min(axis=others).reshape(scale.shape) / np.minimum(low - zeros, -1),
    )
    grown = np.maximum(scale.astype(np.float64), needed).astype(scale.dtype)
    wide = grown.astype(np.float64).reshape(shape)
    found = np.clip(np.rint(exact / wide) + zeros.reshape(shape), limits.min, limits.max).astype(integers.dtype)
    merged = (found.astype(np.float64) - zeros.reshape(shape)) * wide
    _store(place, found)
    if not np.array_equal(grown, scale):
        _rescale(node, scale, grown)
    return GraphChange(
        stored=place.stored.name or "",
        form=place.form,
        relative_change=_ratio(delta, before),
        rounding_error=_ratio(merged - exact, exact),
    )


def _rescale(node: ir.Node, old: Array, new: Array) -> None:
    """Gives a weight other scales, and its layer's bias with it: runtimes want the product of both scales there."""
    _replace_input(node, 1, new)
    for use in list(node.outputs[0].uses()):
        bias = use.node.inputs[2].producer() if len(use.node.inputs) > 2 and use.node.inputs[2] is not None else None
        if bias is None or bias.op_type != "DequantizeLinear":
            continue
        integers, scale = constant_array(bias.inputs[0]), constant_array(bias.inputs[1])
        if integers is None or scale is None or integers.dtype != np.int32:
            continue
        factor = new.astype(np.float64) / old.astype(np.float64)
        _replace_input(bias, 0, np.rint(integers / factor).astype(np.int32))
        _replace_input(bias, 1, (scale * factor).astype(scale.dtype))


def _replace_input(node: ir.Node, index: int, array: Array) -> None:
    value = node.inputs[index]
    if value is None or node.graph is None or not isinstance(node.graph, ir.Graph):
        raise AssertionError(node)
    node.replace_input_with(index, add_constant(node.graph, value.name or "constant", array))


def _store(place: Place, array: Array) -> None:
    """Puts other values into an initializer, or into a copy where others read the old ones."""
    value = place.stored
    readers = [use.node for use in value.uses()]
    chosen = [place.dequantize] if place.dequantize is not None else list(place.nodes or readers)
    if all(reader in chosen for reader in readers):
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        return
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(value)
    copy = add_constant(graph, value.name or "weight", array)
    for use in list(value.uses()):
        if use.node in chosen:
            use.node.replace_input_with(use.idx, copy)


def _array(value: ir.Value | None) -> Array:
    array = constant_array(value)
    if array is None:
        raise AssertionError(value)
    return array


def _ratio(part: Array, whole: Array) -> float:
    norm = float(np.linalg.norm(whole))
    return float(np.linalg.norm(part)) / norm if norm else 0.0


def worst(changes: Sequence[GraphChange]) -> GraphChange:
    """Returns the change of the place that rounding hurt most."""
    return max(changes, key=lambda change: change.rounding_error)
