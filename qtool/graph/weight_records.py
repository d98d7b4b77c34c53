"""Records the changes of a stored tensor by passes since its export, in its metadata.

Quantizing and optimizing scale weights and rearrange them. What changes a weight later, such as merging an adapter,
has to do the same to the change. The record is JSON in the tensor's metadata, so that it stays with the graph: the
tensor's original name and shape, then one entry per step.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array

Array = npt.NDArray[Any]

_KEY = "qtool.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """Multiplied the tensor.

    Attributes:
        factors: float64, of a shape that broadcasts to that of the tensor.
        outputs: the same, one an output channel or (), where factors belong to outputs; None where to inputs.
    """

    factors: Array
    outputs: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rearranged:
    """Reshaped the tensor, then swapped its axes; an empty ``order`` swaps none."""

    shape: tuple[int, ...]
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shifted:
    """Added products of the tensor and offsets of its inputs to the layer's bias.

    Attributes:
        offsets: float64, of a shape that broadcasts to that of the tensor.
        axes: the axes that were summed over.
    """

    offsets: Array
    axes: tuple[int, ...]


Step = Scaled | Rearranged | Shifted


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The changes of a tensor.

    Attributes:
        tensor: its values in the form in which it is stored now.
        bias: what was added to the bias of its layer, (outputs,); None where nothing was.
    """

    tensor: Array
    bias: Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRecord:
    """The origin of a tensor.

    Attributes:
        name: its original name.
        shape: its original shape.
        steps: its changes, in order.
    """

    name: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...]

    def replay(self, tensor: Array) -> Replayed:
        """Applies the recorded changes to ``tensor``, of the original shape, in float64."""
        now, bias = tensor.astype(np.float64), None
        for step in self.steps:
            if isinstance(step, Scaled):
                now = now * step.factors
                if bias is not None and step.outputs is not None:
                    bias = bias * step.outputs
            elif isinstance(step, Rearranged):
                now = _rearranged(now, step)
            else:
                change = (now * step.offsets).sum(axis=step.axes)
                bias = change if bias is None else bias + change
        return Replayed(tensor=now, bias=bias)

    def undo(self, stored: Array) -> Array | None:
        """Returns the original tensor in float64; None where a factor of zero makes that impossible."""
        now = stored.astype(np.float64)
        shapes = _shapes(self.shape, self.steps)
        for step, before in zip(reversed(self.steps), reversed(shapes), strict=True):
            if isinstance(step, Scaled):
                if not step.factors.all():
                    return None
                now = now / step.factors
            elif isinstance(step, Rearranged):
                turned = now.transpose(tuple(np.argsort(step.order))) if step.order else now
                now = turned.reshape(before)
        return now

    @property
    def output_factors(self) -> Array:
        """The factors of the layer's outputs, and of its bias; (outputs,) or ()."""
        product = np.ones(())
        for step in self.steps:
            if isinstance(step, Scaled) and step.outputs is not None:
                product = product * step.outputs
        return product

    @property
    def is_transposed_only(self) -> bool:
        """Whether it is a matrix with its original values, as they were or transposed."""
        rearranged = all(isinstance(step, Rearranged) and len(step.shape) == 2 for step in self.steps)
        return rearranged and len(self.shape) == 2

    @property
    def form(self) -> str:
        """Describes the changes; empty where there are none."""
        words = {Scaled: "multiplied by factors", Rearranged: "rearranged", Shifted: "with offsets in its bias"}
        return ", ".join(dict.fromkeys(words[type(step)] for step in self.steps))


def record_of(value: ir.Value | None, stands_for: tuple[int, ...] | None = None) -> WeightRecord | None:
    """Returns the record of a stored tensor; None where there is none, or it does not fit the tensor.

    Args:
        value: the stored tensor.
        stands_for: the shape of the weight, where the tensor holds it packed.
    """
    text = None if value is None else value.metadata_props.get(_KEY)
    if value is None or text is None:
        return None
    try:
        fields = json.loads(text)
        shape = tuple(_lengths(fields["shape"]))
        record = WeightRecord(name=str(fields["name"]), shape=shape, steps=tuple(map(_parsed, fields["steps"])))
        last = _shapes(shape, record.steps)[-1] if record.steps else shape
        ends = _after(last, record.steps[-1]) if record.steps else shape
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    array = constant_array(value)
    return record if array is not None and ends == (array.shape if stands_for is None else stands_for) else None


def has_records(model: ir.Model) -> bool:
    """Returns whether a model has qtool's records of weights, as all models that it quantizes have."""
    return any(_KEY in value.metadata_props for value in model.graph.initializers.values())


def record_steps(made: ir.Value, source: ir.Value, *steps: Step, stands_for: tuple[int, ...] | None = None) -> None:
    """Copies the metadata of ``source`` to ``made``, with further ``steps`` in its record.

    Args:
        made: the new stored tensor.
        source: what it was made of.
        steps: what was done to it.
        stands_for: the shape of the weight that ``source`` holds packed.
    """
    array = constant_array(source)
    if array is None:
        raise AssertionError(source)
    shape = array.shape if stands_for is None else stands_for
    before = record_of(source, stands_for) or WeightRecord(name=source.name or "", shape=shape, steps=())
    metadata = {key: text for key, text in source.metadata_props.items() if key != _KEY}
    made.metadata_props.update(metadata)
    fields = {"name": before.name, "shape": before.shape, "steps": [_written(step) for step in (*before.steps, *steps)]}
    made.metadata_props[_KEY] = json.dumps(fields)


def record_text(value: ir.Value) -> str:
    """Returns the changes of a tensor as text, equal for tensors with equal changes."""
    record = record_of(value)
    return "" if record is None or not record.steps else json.dumps([_written(step) for step in record.steps])


def _rearranged(tensor: Array, step: Rearranged) -> Array:
    shaped = tensor.reshape(step.shape)
    return shaped.transpose(step.order) if step.order else shaped


def _shapes(shape: tuple[int, ...], steps: Sequence[Step]) -> list[tuple[int, ...]]:
    """Returns the shape of the tensor before each step.

    Raises:
        ValueError: a step does not fit.
    """
    found = []
    for step in steps:
        found.append(shape)
        shape = _after(shape, step)
    return found


def _after(shape: tuple[int, ...], step: Step) -> tuple[int, ...]:
    if isinstance(step, Rearranged):
        if math.prod(step.shape) != math.prod(shape) or (
            step.order and sorted(step.order) != list(range(len(step.shape)))
        ):
            raise ValueError(step)
        return tuple(step.shape[axis] for axis in step.order) if step.order else step.shape
    factors = step.factors if isinstance(step, Scaled) else step.offsets
    if np.broadcast_shapes(shape, factors.shape) != shape:
        raise ValueError(step)
    return shape


def _written(step: Step) -> Mapping[str, object]:
    if isinstance(step, Scaled):
        outputs = None if step.outputs is None else _encoded(step.outputs)
        return {"scaled": _encoded(step.factors), "outputs": outputs}
    if isinstance(step, Rearranged):
        return {"shape": list(step.shape), "order": list(step.order)}
    return {"offsets": _encoded(step.offsets), "axes": list(step.axes)}


def _parsed(fields: Mapping[str, Any]) -> Step:
    if "scaled" in fields:
        outputs = fields["outputs"]
        return Scaled(factors=_decoded(fields["scaled"]), outputs=None if outputs is None else _decoded(outputs))
    if "offsets" in fields:
        return Shifted(offsets=_decoded(fields["offsets"]), axes=tuple(_lengths(fields["axes"])))
    return Rearranged(shape=tuple(_lengths(fields["shape"])), order=tuple(_lengths(fields["order"])))


def _lengths(numbers: Sequence[object]) -> list[int]:
    if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(numbers)
    return [number for number in numbers if isinstance(number, int)]


def _encoded(array: Array) -> Mapping[str, object]:
    # In float64, so that undoing divides by exactly the factors that were multiplied.
    data = base64.b64encode(np.ascontiguousarray(array, "<f8").tobytes()).decode("ascii")
    return {"shape": list(array.shape), "float64": data}


def _decoded(fields: Mapping[str, Any]) -> Array:
    numbers = np.frombuffer(base64.b64decode(fields["float64"], validate=True), "<f8")
    return numbers.reshape(_lengths(fields["shape"])).astype(np.float64)
