"""Adds changes to weights that a graph stores in integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.lora.onnx.block_fitting import as_stored, block_form, fitted, is_fitted
from qtool.lora.onnx.pair_bound import within_bound
from qtool.qdq.packed_integers import is_packed, packed_integers, replace_packed
from qtool.qdq.scale_policy import ScalePolicy
from qtool.qdq.stored_integers import IntegerRules, StoredIntegers, integer_inputs, stored_integers

Array = npt.NDArray[Any]

# Rounding errors of the largest values are a little above half a step.
_HALF_STEP = 0.501


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantized:
    """The change of integers.

    Attributes:
        changed: the share of integers that changed.
        clipped: the share that was clipped to the grid.
        smallest_factor: the smallest ratio of a new scale to the old one.
        largest_factor: the largest such ratio.
        from_floats: whether they were rounded from the checkpoint's floats, and not from what they stood for before.
    """

    changed: float
    clipped: float
    smallest_factor: float
    largest_factor: float
    from_floats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedFloats:
    """The values of integers before and after a change.

    Attributes:
        before: the old dequantized values, in float64.
        exact: the values to store.
        merged: the new dequantized values.
        integers: the change of the integers.
    """

    before: Array
    exact: Array
    merged: Array
    integers: Requantized


def integers_of(node: ir.Node) -> StoredIntegers | None:
    """Returns the weight of a layer of integers, packed or not; None where it has none that can be read."""
    return packed_integers(node) if is_packed(node) else stored_integers(node)


def add_to_integers(
    node: ir.Node,
    delta: Array,
    rules: IntegerRules,
    *,
    name: str,
    weight: Array | None = None,
    nodes: tuple[ir.Node, ...] = (),
) -> ChangedFloats:
    """Adds ``delta`` to the dequantized values of ``node``, and stores new integers.

    Biases, in 32 bits, keep their scales under any policy: runtimes require the product of both inputs' scales.

    Args:
        node: the layer, or the DequantizeLinear in front of it.
        delta: the change, in the shape of the integers.
        rules: what becomes of scales.
        name: the weight, for errors.
        weight: the float values with the change; None where only the integers are known. Blocks are rounded from them.
        nodes: the layers that share packed integers.

    Raises:
        InputError: the sum is not finite.
    """
    stored = integers_of(node)
    if stored is None:
        raise AssertionError(node)
    before = stored.floats()
    exact = before + delta
    if rules.fits_blocks and is_fitted(node, stored):
        if weight is not None:
            exact = np.where(delta != 0, weight, exact)
        found = _fitted(nodes or (node,), stored, before, exact, delta, name)
        return replace(found, integers=replace(found.integers, from_floats=weight is not None))
    scale = stored.scale if stored.bits == 32 else _scale(stored, exact, rules.scales)
    integers, beyond = stored.rounded(exact, scale)
    if is_packed(node):
        replace_packed(nodes or (node,), block_form(stored, integers, scale))
        return _changed(stored, before, exact, integers, scale, beyond)
    places = integer_inputs(node)
    if places is None:
        raise AssertionError(node)
    integers, scale = within_bound(node, stored, exact, integers, scale, rules)
    factors = scale.astype(np.float64) / stored.scale.astype(np.float64)
    _replace_input(*places.integers, integers)
    if not np.array_equal(scale, stored.scale):
        _replace_input(*places.scale, scale if places.unit == 1.0 else (scale / places.unit).astype(scale.dtype))
        rescale_biases([node], factors)
    return _changed(stored, before, exact, integers, scale, beyond)


def _fitted(
    nodes: tuple[ir.Node, ...], stored: StoredIntegers, before: Array, exact: Array, delta: Array, name: str
) -> ChangedFloats:
    found = fitted(stored, exact, delta != 0, name)
    integers, scale, zero = as_stored(found, stored)
    if is_packed(nodes[0]):
        replace_packed(nodes, found)
    else:
        places = integer_inputs(nodes[0])
        if places is None:
            raise AssertionError(nodes)
        _replace_input(*places.integers, integers)
        _replace_input(*places.scale, scale)
        if places.zero is not None:
            _replace_input(*places.zero, zero.astype(stored.integers.dtype))
    merged = replace(stored, zero=zero).with_scale(integers, scale)
    steps = np.abs(exact - merged) / np.abs(replace(stored, zero=0 * zero).with_scale(np.ones_like(integers), scale))
    # What is rounded is within half a step.
    beyond = steps > _HALF_STEP
    return replace(_changed(stored, before, exact, integers, scale, beyond), merged=merged)


def _changed(
    stored: StoredIntegers, before: Array, exact: Array, integers: Array, scale: Array, beyond: Array
) -> ChangedFloats:
    factors = np.abs(scale.astype(np.float64) / stored.scale.astype(np.float64))
    return ChangedFloats(
        before=before,
        exact=exact,
        merged=stored.with_scale(integers, scale),
        integers=Requantized(
            changed=float(np.mean(integers.astype(np.int64) != stored.integers.astype(np.int64))),
            clipped=float(np.mean(beyond)),
            smallest_factor=float(factors.min()),
            largest_factor=float(factors.max()),
        ),
    )


def _scale(stored: StoredIntegers, exact: Array, policy: ScalePolicy) -> Array:
    if policy is ScalePolicy.KEEP:
        return stored.scale
    old, needed = stored.scale.astype(np.float64), stored.needed_scale(exact)
    # A channel of zeros may have any scale.
    taken = needed != 0 if policy is ScalePolicy.RECOMPUTE else np.abs(needed) > np.abs(old)
    wanted = np.where(taken, needed, old)
    found: Array = wanted.astype(stored.scale.dtype)
    return found


def rescale_biases(nodes: Sequence[ir.Node], factors: Array) -> None:
    """Rescales the biases of layers after a change of their inputs' scales, each bias once.

    Args:
        nodes: the DequantizeLinear of the weights, or of the inputs.
        factors: the new scales over the old ones, () or (channels,).
    """
    biases: dict[ir.Node, None] = {}
    for use in [use for node in nodes for use in node.outputs[0].uses()]:
        value = use.node.inputs[2] if use.idx < 2 and len(use.node.inputs) > 2 else None
        bias = None if value is None else value.producer()
        if bias is not None and bias.op_type == "DequantizeLinear":
            biases[bias] = None
    for bias in biases:
        integers, scale = constant_array(bias.inputs[0]), constant_array(bias.inputs[1])
        if integers is None or scale is None or integers.dtype != np.int32 or factors.ndim > 1:
            continue
        _replace_input(bias, 0, np.rint(integers / factors).astype(np.int32))
        _replace_input(bias, 1, (scale * factors).astype(scale.dtype))


def _replace_input(node: ir.Node, index: int, array: Array) -> None:
    """Stores new values in an initializer, or in a copy where other nodes read the old ones."""
    value = node.inputs[index]
    if value is None or not isinstance(node.graph, ir.Graph):
        raise AssertionError(node)
    if len(value.uses()) == 1 and value.graph is node.graph:
        value.const_value = ir.tensor(np.asarray(array, order="C"), name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    copy = add_constant(node.graph, value.name or "constant", array)
    copy.metadata_props.update(value.metadata_props)
    node.replace_input_with(index, copy)
