"""Slices with constant bounds, and whether they have an effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.graph.constants import add_constant, constant_array
from qtool.graph.names import Names
from qtool.passes.normalization.remove_identities import bypass

# Exporters write some large number for "to the end"; no axis has so many elements.
_END = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The bounds of a Slice along one axis.

    Attributes:
        axis: the axis, counted from the front where the rank is known.
        start: its first element.
        end: the index after its last element.
        step: the distance from one to the next.
    """

    axis: int
    start: int
    end: int
    step: int


def cuts_of(node: ir.Node) -> tuple[Cut, ...] | None:
    """Returns the bounds of a Slice along each axis; None where they are not constant inputs."""
    if node.op_type != "Slice" or node.domain != "" or len(node.inputs) < 3 or node.inputs[0] is None:
        return None
    arrays = [None if value is None else constant_array(value) for value in node.inputs[1:]]
    given = [value is not None for value in node.inputs[1:]]
    if any(known and array is None for known, array in zip(given, arrays, strict=True)):
        return None
    if arrays[0] is None or arrays[1] is None:
        return None
    count = arrays[0].size
    axes = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(count)
    steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones(count, np.int64)
    rank = None if node.inputs[0].shape is None else len(node.inputs[0].shape)
    if rank is None and (axes < 0).any():
        return None
    columns = zip(axes, arrays[0].reshape(-1), arrays[1].reshape(-1), steps, strict=True)
    return tuple(
        Cut(axis=int(axis) % (rank or 1 << 30), start=int(start), end=int(end), step=int(step))
        for axis, start, end, step in columns
    )


def keeps_all(cut: Cut, length: int | None) -> bool:
    """Returns whether a cut keeps all of an axis of ``length``, which may be unknown (None)."""
    begins = cut.start == 0 or (length is not None and cut.start <= -length)
    ends = cut.end >= _END or (length is not None and cut.end >= length)
    return cut.step == 1 and begins and ends


def full_axes_removed(node: ir.Node, graph: ir.Graph, names: Names) -> bool:
    """Removes axes that are kept whole from a Slice, or the Slice itself; returns whether there were any."""
    cuts, source = cuts_of(node), node.inputs[0]
    if cuts is None or source is None:
        return False
    left = [cut for cut in cuts if not keeps_all(cut, _length(source, cut.axis))]
    if not left:
        return bypass(node, source)
    if len(left) == len(cuts):
        return False
    set_cuts(node, left, graph, names)
    return True


def set_cuts(node: ir.Node, cuts: Sequence[Cut], graph: ir.Graph, names: Names) -> None:
    """Sets the bounds of a Slice; they are stored in ``graph``."""
    columns = {
        "starts": [cut.start for cut in cuts],
        "ends": [cut.end for cut in cuts],
        "axes": [cut.axis for cut in cuts],
        "steps": [cut.step for cut in cuts],
    }
    if all(cut.step == 1 for cut in cuts):
        del columns["steps"]
    node.resize_inputs(1 + len(columns))
    for index, (column, numbers) in enumerate(columns.items(), start=1):
        array = np.asarray(numbers, np.int64)
        node.replace_input_with(index, add_constant(graph, f"{node.outputs[0].name}_{column}", array, names=names))


def _length(value: ir.Value, axis: int) -> int | None:
    if value.shape is None or axis >= len(value.shape):
        return None
    length = value.shape[axis]
    return length if isinstance(length, int) else None
