"""Adds changes to the initializers of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.formats.scratch import kept_aside
from qtool.graph.constants import add_constant, constant_array
from qtool.lora.merge.tensor_merge import TensorMerge, WeightedChange
from qtool.lora.onnx.layer_biases import bias_input, layers_of
from qtool.lora.onnx.places import Place
from qtool.lora.onnx.requantizing import ChangedFloats, Requantized, add_to_integers, integers_of
from qtool.qdq.stored_integers import IntegerRules

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphChange:
    """The change of one initializer.

    Attributes:
        stored: its name.
        form: the form in which it holds the weight, in words.
        relative_change: the norm of the change relative to that of the original.
        rounding_error: the norm of the rounding error relative to that of the sum.
        growth: the norm of the sum relative to that of the original.
        integers: the change of its integers, where the graph stores integers.
    """

    stored: str
    form: str
    relative_change: float
    rounding_error: float
    growth: float
    integers: Requantized | None = None


def add_to_graph(
    place: Place, delta: Array, name: str, rules: IntegerRules, *, weight: Array | None = None
) -> GraphChange:
    """Adds ``delta``, float64 in the shape of the checkpoint's tensor, to that tensor in the graph.

    Args:
        place: where the tensor is.
        delta: the change.
        name: the tensor, for errors.
        rules: how integers are found.
        weight: the checkpoint's tensor with the change, of which blocks of integers are made; None where it is unknown.

    Raises:
        InputError: the sum does not fit the stored type.
    """
    merged_weight = None if weight is None or place.dequantize is None else _in_form(place, weight)
    if place.channel_scale is not None:
        delta = delta * place.channel_scale.reshape(-1, *(1,) * (delta.ndim - 1))
    delta = delta.T if place.transposed else delta
    window = (..., slice(place.offset, place.offset + place.length)) if place.offset is not None else (...,)
    if place.record is not None:
        whole = np.zeros(place.record.shape)
        whole[window] = delta
        replayed = place.record.replay(whole)
        if replayed.bias is not None:
            _add_to_biases(place, replayed.bias, name, rules)
        # Factors of inputs and outputs may have been broadcast over all of it.
        delta, window = replayed.tensor, (...,)
    if place.dequantize is not None:
        shape = _integer_shape(place.dequantize)
        changed = add_to_integers(
            place.dequantize,
            delta.reshape(shape),
            rules,
            name=name,
            weight=None if merged_weight is None or merged_weight.size != delta.size else merged_weight.reshape(shape),
            nodes=place.nodes or (),
        )
        return _requantized(place, changed, delta)
    stored = _array(place.stored).astype(np.float64)
    before = stored[window].copy()
    delta = delta.reshape(before.shape)
    stored[window] += delta
    with np.errstate(over="ignore"):
        merged = stored.astype(_array(place.stored).dtype)
    if not np.isfinite(merged).all():
        raise InputError(
            f"the merged {name} has values out of the range of {merged.dtype}",
            fix="check the scale of the adapter, or merge into a graph of float32",
        )
    _store(place, merged)
    exact = stored[window]
    return GraphChange(
        stored=place.stored.name or "",
        form=place.form,
        relative_change=_ratio(delta, before),
        rounding_error=_ratio(merged[window].astype(np.float64) - exact, exact),
        growth=_ratio(exact, before),
    )


def holds_alone(place: Place, weight: torch.Tensor) -> bool:
    """Returns whether a place holds nothing but ``weight``, of its type, as it is or transposed."""
    tensor = place.stored.const_value
    steps = () if place.record is None else place.record.steps
    plain = place.dequantize is None and place.offset is None and place.channel_scale is None and not steps
    return plain and weight.ndim > 1 and tensor is not None and str(weight.dtype) == f"torch.{tensor.dtype.numpy()}"


def merge_rows(place: Place, weight: torch.Tensor, changes: Sequence[WeightedChange], name: str) -> GraphChange:
    """Stores ``weight`` with its changes, which are added to some of its rows at a time, in a place that it has alone.

    Args:
        place: where the tensor is.
        weight: its values in the graph, in the shape of the checkpoint's tensor.
        changes: what to add.
        name: the tensor, for errors.

    Raises:
        InputError: the sum does not fit the stored type.
    """
    merge, merged, row = TensorMerge(name, weight, changes), np.empty(weight.shape, _array(place.stored).dtype), 0
    for part in merge.rows():
        merged[row : row + len(part)] = part.numpy()
        row += len(part)
    form, stored = place.form, place.stored.name or ""
    _store(place, merged.T if place.transposed else merged)
    return GraphChange(
        stored=stored,
        form=form,
        relative_change=merge.relative_change,
        rounding_error=merge.rounding_error,
        growth=merge.growth,
    )


def round_again(place: Place, weight: Array, rules: IntegerRules) -> bool:
    """Rounds integers again, each to the nearest, for ``weight`` in the form of ``place``.

    The statistics that guided their rounding may no longer be valid, such as which inputs are small. Integers that hold
    several joined weights do not change.

    Args:
        place: where the weight is in the graph.
        weight: float64 in the shape of the checkpoint's tensor.
        rules: how integers are found.

    Returns:
        Whether that was done.
    """
    if place.dequantize is None or place.offset is not None:
        return False
    weight = _in_form(place, weight)
    stored = integers_of(place.dequantize)
    if stored is None or stored.integers.size != weight.size:
        return False
    delta = weight.reshape(stored.integers.shape) - stored.floats()
    add_to_integers(place.dequantize, delta, rules, name=stored.value.name or "", nodes=place.nodes or ())
    return True


def _in_form(place: Place, weight: Array) -> Array:
    """Returns a tensor of the checkpoint in the form in which the graph holds it, alone."""
    if place.channel_scale is not None:
        weight = weight * place.channel_scale.reshape(-1, *(1,) * (weight.ndim - 1))
    weight = weight.T if place.transposed else weight
    return weight if place.record is None else place.record.replay(weight).tensor


def _add_to_biases(place: Place, delta: Array, name: str, rules: IntegerRules) -> None:
    """Adds the product of the change and the offsets that a pass folded into the bias of the weight's layers.

    Raises:
        InputError: a layer has no such bias.
    """
    for layer in layers_of(place.stored, place.nodes):
        taken = bias_input(layer)
        value = None if taken is None else taken[0].inputs[taken[1]]
        if taken is None or value is None:
            raise InputError(
                f"the bias of {layer.name} contains products of '{name}', and was changed since",
                fix="merge into the checkpoint, and export it again",
            )
        producer = value.producer()
        if producer is not None and producer.inputs[0] is not None:
            add_to_graph(Place(stored=producer.inputs[0], dequantize=producer), delta, name, rules)
        else:
            add_to_graph(Place(stored=value, nodes=(taken[0],)), delta, name, rules)


def _integer_shape(node: ir.Node) -> tuple[int, ...]:
    stored = integers_of(node)
    if stored is None:
        raise AssertionError(node)
    return stored.integers.shape


def _requantized(place: Place, changed: ChangedFloats, delta: Array) -> GraphChange:
    return GraphChange(
        stored=place.stored.name or "",
        form=place.form,
        relative_change=_ratio(delta, changed.before),
        rounding_error=_ratio(changed.merged - changed.exact, changed.exact),
        growth=_ratio(changed.exact, changed.before),
        integers=changed.integers,
    )


def _store(place: Place, array: Array) -> None:
    """Stores new values in an initializer, or in a copy where other nodes read the old ones."""
    value, array = place.stored, kept_aside(array)
    readers = [use.node for use in value.uses()]
    chosen = list(place.nodes or readers)
    if all(reader in chosen for reader in readers):
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
        return
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        raise AssertionError(value)
    copy = add_constant(graph, value.name or "weight", array)
    copy.metadata_props.update(value.metadata_props)
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
    """Returns the change with the largest rounding error."""
    return max(changes, key=lambda change: change.rounding_error)
