"""The place and the form of a checkpoint's weight in a stored tensor of a graph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qtool.errors import InputError
from qtool.graph.constants import constant_array
from qtool.graph.weight_records import WeightRecord
from qtool.lora.onnx.channel_scales import channel_scale, inputs_differ, is_one, whole_scale
from qtool.lora.onnx.layer_biases import BIAS_OF_BLOCKS, layers_of
from qtool.qdq.packed_integers import is_packed
from qtool.qdq.stored_integers import StoredIntegers

Array = npt.NDArray[Any]

# What a channel of a weight may differ from a multiple of the checkpoint's, as a share of its norm: the rounding of
# what was multiplied into it; and that of eight-bit integers with GPTQ, to which unrelated weights never come
# near.
FLOAT_TOLERANCE = 1e-5
_HALF_TOLERANCE = 2e-3
_INTEGER_TOLERANCE = 0.15
_FOUR_BIT_TOLERANCE = 0.4
# Rounding to four values leaves about half of a weight; unrelated weights differ by more than the norm of one.
_TWO_BIT_TOLERANCE = 0.8
# Rows within the tolerance of two bits have a cosine of 0.6 and more.
_LEAST_COSINE = 0.5
_COMPARED_ROWS = 4
_TOLERANCES = {2: _TWO_BIT_TOLERANCE, 4: _FOUR_BIT_TOLERANCE}
# Operators into whose weights no exporter folds anything.
NEVER_SCALED = frozenset({"MatMul", "MatMulInteger", "Gather", "Add", "LayerNormalization", "Identity"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place and the form of a weight in the graph.

    Attributes:
        stored: the initializer.
        transposed: whether it holds the transposed weight.
        offset: where it begins along the last axis of an initializer that holds several; None where it is alone.
        length: its length there.
        channel_scale: the factor of each output channel, or of all of them, (1,); None where there is none.
        record: the changes by qtool's passes after the export.
        dequantize: the node that dequantizes it, or multiplies with it, where it holds integers.
        nodes: the nodes that read this weight from it; None for all of them.
    """

    stored: ir.Value
    transposed: bool = False
    offset: int | None = None
    length: int = 0
    channel_scale: Array | None = None
    record: WeightRecord | None = None
    dequantize: ir.Node | None = None
    nodes: tuple[ir.Node, ...] | None = None

    @property
    def form(self) -> str:
        """The form in words."""
        parts = ["transposed"] if self.transposed else []
        parts += ["joined with others"] if self.offset is not None else []
        parts += ["scaled by a normalization"] if self.channel_scale is not None else []
        parts += [self.record.form] if self.record is not None and self.record.steps else []
        parts += ["quantized"] if self.dequantize is not None else []
        return ", ".join(parts) or "as it is"


def never_scaled(layer: ir.Node) -> bool:
    """Returns whether no exporter folds anything into the weight of a layer."""
    # MatMulNBits with a bias was a Gemm.
    product = layer.op_type == "MatMulNBits" and (len(layer.inputs) <= BIAS_OF_BLOCKS or not layer.inputs[-1])
    return layer.op_type in NEVER_SCALED or layer.op_type == "GatherBlockQuantized" or product


def first_numbers(value: ir.Value, record: WeightRecord) -> Array | None:
    """Returns the first row of a stored tensor before the passes' changes, to compare it quickly."""
    array = constant_array(value)
    before = None if array is None else record.undo(array)
    return None if before is None or before.ndim == 0 else before.reshape(-1, before.shape[-1])[:1].copy()


def recorded_place(
    value: ir.Value, record: WeightRecord, numbers: Array | None, weight: Array, *, transposed: bool
) -> Place | None:
    """Returns the place of ``weight`` in a tensor with the changes of ``record``; None where it is not there.

    Args:
        value: the stored tensor.
        record: the changes by passes.
        numbers: see ``first_numbers``.
        weight: a tensor of the checkpoint.
        transposed: whether to search its transposed form.
    """
    part, array = weight.T if transposed else weight, constant_array(value)
    if array is None or len(part.shape) != len(record.shape):
        return None
    tolerance = _HALF_TOLERANCE if array.dtype == np.float16 else FLOAT_TOLERANCE
    if part.shape == record.shape:
        # The first row may be small relative to the others, so that it is rounded more coarsely.
        first = part.reshape(-1, part.shape[-1])[:1] if part.ndim else None
        if numbers is not None and first is not None and not _is_near(numbers, first, 10 * tolerance):
            return _scaled_before(value, record, array, part) if not transposed else None
        if _is_near(array, record.replay(part).tensor, tolerance):
            return Place(stored=value, transposed=transposed, record=record)
        return None
    length = part.shape[-1] if part.ndim else 0
    if part.shape[:-1] != record.shape[:-1] or not 0 < length < record.shape[-1]:
        return None
    before = record.undo(array)
    for offset in range(0, record.shape[-1] - length + 1, length) if before is not None else ():
        if before is not None and _is_near(before[..., offset : offset + length], part, tolerance):
            return Place(stored=value, transposed=transposed, offset=offset, length=length, record=record)
    return None


def _scaled_before(value: ir.Value, record: WeightRecord, array: Array, weight: Array) -> Place | None:
    """Finds a weight into which an exporter folded a normalization before passes changed it."""
    before = record.undo(array) if weight.ndim > 1 else None
    scale = None if before is None else channel_scale(before, weight, FLOAT_TOLERANCE)
    return None if scale is None else Place(stored=value, channel_scale=scale, record=record)


def resembles(stored: StoredIntegers, record: WeightRecord | None, part: Array) -> bool:
    """Returns whether a few rows of packed integers point where those of ``part`` do, which costs little to find out.

    Weights whose inputs were scaled are not looked at.
    """
    if record is not None and record.steps and not record.is_transposed_only:
        return True
    turned = record is not None and len(record.steps) % 2 == 1
    rows = part.T if turned else part
    if rows.shape != stored.integers.shape:
        return False
    few = slice(_COMPARED_ROWS)
    seen = replace(stored, integers=stored.integers[few], scale=stored.scale[few], zero=stored.zero[few]).floats()
    expected = rows[few].astype(np.float64)
    norms = np.linalg.norm(seen, axis=1) * np.linalg.norm(expected, axis=1)
    return bool((np.einsum("ij,ij->i", seen, expected) >= _LEAST_COSINE * norms).all())


def integer_place(
    nodes: tuple[ir.Node, ...],
    stored: StoredIntegers,
    record: WeightRecord | None,
    weight: Array,
    name: str,
    *,
    transposed: bool,
) -> Place | None:
    """Returns the place of ``weight`` in the integers that ``nodes`` read; None where it is not there.

    Several nodes read the packed integers of blocks.

    Raises:
        InputError: its inputs were scaled by unknown factors.
    """
    tolerance = _TOLERANCES.get(stored.bits, _INTEGER_TOLERANCE)
    part, node = weight.T if transposed else weight, nodes[0]
    readers = nodes if is_packed(node) else None
    if record is not None and record.steps:
        if part.shape != record.shape:
            return None
        expected, seen = record.replay(part).tensor, stored.floats()
        if _is_near(seen, expected, tolerance):
            return Place(stored=stored.value, transposed=transposed, record=record, dequantize=node, nodes=readers)
        before = record.undo(seen) if not transposed else None
        scale = None if before is None else channel_scale(before, weight, tolerance)
        if scale is None:
            return None
        return Place(stored=stored.value, channel_scale=scale, record=record, dequantize=node, nodes=readers)
    if part.shape != stored.integers.shape:
        return None
    array = stored.floats().T if transposed else stored.floats()
    scale = channel_scale(array, weight, tolerance)
    if scale is None:
        return None
    place = Place(stored=stored.value, transposed=transposed, dequantize=node, nodes=readers)
    if all(never_scaled(layer) for layer in layers_of(stored.value, nodes)):
        factor = whole_scale(array, weight, stored.bits)
        scale = np.array([factor]) if factor != 1 else np.ones(1)
    elif is_one(scale, array, weight):
        scale = np.ones(1)
    if inputs_differ(array, weight, scale):
        raise InputError(
            f"the inputs of '{name}' are scaled by channel in the graph, and the factors are not recorded",
            fix="merge into the float weights, export them, and quantize the result",
        )
    return place if (scale == 1).all() else replace(place, channel_scale=scale)


def _is_near(seen: Array, expected: Array, tolerance: float) -> bool:
    return bool(np.linalg.norm(seen - expected) <= tolerance * np.linalg.norm(expected))
