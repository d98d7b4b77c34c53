"""Recognizes the two layouts in which rotary embeddings split and join a tensor.

Half-rotated, element i of the last axis is rotated with element i + D / 2; interleaved, element 2 i with 2 i + 1.
Source: Su et al., RoFormer, https://arxiv.org/abs/2104.09864, section 3.4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from qtool.graph.constants import constant_array, integer_attribute
from qtool.graph.slices import Cut, cuts_of, keeps_all
from qtool.graph.views import axes_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the two halves of a tensor.

    Attributes:
        source: the tensor.
        index: 0 for the first half or the even elements, 1 for the others.
        interleaved: whether it is every second element.
    """

    source: ir.Value
    index: int
    interleaved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A tensor made of two halves.

    Attributes:
        parts: the halves.
        interleaved: whether their elements alternate.
    """

    parts: tuple[ir.Value, ir.Value]
    interleaved: bool


def part_of(value: ir.Value) -> Part | None:
    """Returns what ``value`` is a half of; None where it is none."""
    producer = value.producer()
    if producer is None or producer.domain != "" or producer.inputs[0] is None:
        return None
    if producer.op_type == "Slice":
        return _sliced(producer)
    if producer.op_type == "Split":
        return _split(producer, value)
    if producer.op_type in ("Squeeze", "Gather"):
        return _picked(producer)
    return None


def joined(value: ir.Value) -> Joined | None:
    """Returns the two halves that ``value`` is made of, along the last axis; None where it is not."""
    producer = value.producer()
    if producer is None or producer.domain != "":
        return None
    if producer.op_type == "Concat":
        parts = _concatenated(producer)
        return None if parts is None else Joined(parts=parts, interleaved=False)
    if producer.op_type not in ("Reshape", "Flatten") or producer.inputs[0] is None:
        return None
    stack = producer.inputs[0].producer()
    pairs = None if stack is None or stack.op_type != "Concat" else _concatenated(stack)
    if pairs is None:
        return None
    first, second = (_before_last_unsqueeze(pair) for pair in pairs)
    if first is None or second is None or not _doubles(first, value):
        return None
    return Joined(parts=(first, second), interleaved=True)


def last_length(value: ir.Value) -> int | None:
    """Returns the length of the last axis, where it is known."""
    length = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return length if isinstance(length, int) else None


def is_doubled(value: ir.Value | None, *, interleaved: bool) -> bool:
    """Returns whether both halves of a table are the same, as a full table of cosines or sines has it."""
    while value is not None:
        array = constant_array(value)
        if array is not None:
            return _is_doubled_array(array, interleaved=interleaved)
        parts = joined(value)
        if parts is not None and parts.parts[0] is parts.parts[1]:
            return parts.interleaved == interleaved
        producer = value.producer()
        if producer is None or producer.domain != "":
            return False
        if interleaved and producer.op_type == "Reshape" and _repeats(producer):
            return True
        value = _same_along_last(producer)
    return False


def _sliced(node: ir.Node) -> Part | None:
    source, cuts = node.inputs[0], cuts_of(node)
    length = None if source is None else last_length(source)
    if source is None or source.shape is None or cuts is None or length is None or length % 2 or len(cuts) != 1:
        return None
    (cut,), half = cuts, length // 2
    if cut.axis != len(source.shape) - 1:
        return None
    ends = cut.end >= length
    if cut.step == 2 and cut.start in (0, 1) and ends:
        return Part(source=source, index=cut.start, interleaved=True)
    if cut.step == 1 and cut.start == 0 and cut.end in (half, -half):
        return Part(source=source, index=0, interleaved=False)
    if cut.step == 1 and cut.start in (half, -half) and ends:
        return Part(source=source, index=1, interleaved=False)
    return None


def _split(node: ir.Node, value: ir.Value) -> Part | None:
    source = node.inputs[0]
    if source is None or source.shape is None or len(node.outputs) != 2 or not _is_last(node, 0, len(source.shape)):
        return None
    lengths = [last_length(output) for output in node.outputs]
    index = next(place for place, output in enumerate(node.outputs) if output is value)
    return (
        Part(source=source, index=index, interleaved=False) if None not in lengths and len(set(lengths)) == 1 else None
    )


def _picked(node: ir.Node) -> Part | None:
    """Recognizes one of two columns of a tensor whose last axis was split into pairs."""
    pairs, index = node.inputs[0], None
    if pairs is None or pairs.shape is None:
        return None
    if node.op_type == "Gather":
        place = constant_array(node.inputs[1])
        if place is not None and place.ndim == 0 and _is_last(node, 0, len(pairs.shape)):
            index = int(place) % 2
    elif axes_of(node) in ([-1], [len(pairs.shape) - 1]):
        cut = pairs.producer()
        cuts = None if cut is None else cuts_of(cut)
        if cut is not None and cut.inputs[0] is not None and cuts is not None and len(cuts) == 1:
            pairs, index = cut.inputs[0], _only_index(cuts[0], cut.inputs[0])
    if index is None or last_length(pairs) != 2:
        return None
    producer = pairs.producer()
    source = None if producer is None or producer.op_type != "Reshape" else producer.inputs[0]
    if source is None or not _halves(pairs, source):
        return None
    return Part(source=source, index=index, interleaved=True)


def _only_index(cut: Cut, pairs: ir.Value) -> int | None:
    rank = 0 if pairs.shape is None else len(pairs.shape)
    if cut.axis != rank - 1 or cut.step != 1 or cut.start not in (0, 1) or keeps_all(cut, 2):
        return None
    return cut.start if cut.end > cut.start else None


def _halves(pairs: ir.Value, source: ir.Value) -> bool:
    """Returns whether ``pairs`` is ``source`` with its last axis as pairs."""
    if pairs.shape is None or source.shape is None or len(pairs.shape) != len(source.shape) + 1:
        return False
    length, half = last_length(source), pairs.shape[-2]
    return length is not None and half == length // 2 and list(pairs.shape[:-2]) == list(source.shape[:-1])


def _doubles(part: ir.Value, whole: ir.Value) -> bool:
    """Returns whether ``whole`` has the shape of ``part`` but for a last axis twice as long."""
    if part.shape is None or whole.shape is None or len(part.shape) != len(whole.shape):
        return False
    half, length = last_length(part), last_length(whole)
    return half is not None and length == 2 * half and list(part.shape[:-1]) == list(whole.shape[:-1])


def _concatenated(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    output = node.outputs[0]
    if first is None or second is None or output.shape is None or not _is_last(node, 0, len(output.shape)):
        return None
    return first, second


def _before_last_unsqueeze(value: ir.Value) -> ir.Value | None:
    producer = value.producer()
    if producer is None or producer.op_type != "Unsqueeze" or value.shape is None:
        return None
    return producer.inputs[0] if axes_of(producer) in ([-1], [len(value.shape) - 1]) else None


def _is_last(node: ir.Node, default: int, rank: int) -> bool:
    return integer_attribute(node, "axis", default) in (-1, rank - 1)


def _is_doubled_array(array: npt.NDArray[Any], *, interleaved: bool) -> bool:
    if array.ndim == 0 or array.shape[-1] % 2:
        return False
    half = array.shape[-1] // 2
    if interleaved:
        return bool((array[..., ::2] == array[..., 1::2]).all())
    return bool((array[..., :half] == array[..., half:]).all())


def _repeats(reshape: ir.Node) -> bool:
    """Recognizes repeat_interleave(2): a new last axis, repeated to a length of 2, joined with the one before."""
    output, source = reshape.outputs[0], reshape.inputs[0]
    expand = None if source is None else source.producer()
    if expand is None or expand.op_type != "Expand" or expand.inputs[0] is None or source is None:
        return False
    before = _before_last_unsqueeze(expand.inputs[0])
    return before is not None and last_length(source) == 2 and _doubles(before, output)


def _same_along_last(node: ir.Node) -> ir.Value | None:
    """Returns the input that a node treats all elements of the last axis of alike."""
    output = node.outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if node.op_type in ("Cos", "Sin", "Cast", "Identity"):
        return node.inputs[0]
    if node.op_type == "Unsqueeze":
        axes = axes_of(node)
        return node.inputs[0] if axes is not None and rank is not None and not {-1, rank - 1} & set(axes) else None
    if node.op_type == "Gather":
        table = constant_array(node.inputs[0])
        deep = table is not None and table.ndim > 1
        return node.inputs[0] if deep and integer_attribute(node, "axis", 0) == 0 else None
    if node.op_type == "Mul":
        for value, factor in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            array = constant_array(factor)
            if array is not None and array.size == 1:
                return value
    return None
