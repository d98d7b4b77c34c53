"""Prevents saturation of 16-bit sums in x86 integer kernels without VNNI.

On x86 without VNNI, integer kernels multiply with VPMADDUBSW, which adds the products of two adjacent u8 x s8 pairs in
a saturating int16 (Intel 64 and IA-32 Architectures Software Developer's Manual, PMADDUBSW). Activations reach 255, so
nothing can saturate where no pair of weights of the same sign adds up to more than 32767 / 255, which is 128; weights
of opposite signs never do. Kernels pair weights along the reduction axis, the first with the second, the third with the
fourth; the order in which a kernel reads them is known to its backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import dequantize, quantize
from qtool.calib.granularity import PerChannel
from qtool.weights.round_to_nearest import QuantizedWeight

LARGEST_ACTIVATION = 255
# Steps between the scale that clips the most and the one that clips nothing; more do not improve the result.
_CANDIDATES = 9


@dataclass(frozen=True, slots=True)
class KernelOrder:
    """The order in which a layer's kernel sums up products.

    Attributes:
        axes: the weight's axes, those of the output first, those that are summed over last.
        summed: how many of them are summed over.
    """

    axes: tuple[int, ...]
    summed: int

    def rows(self, integers: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Returns the weights, (outputs, products in one sum), in the kernel's order."""
        ordered = integers.transpose(self.axes)
        outputs = int(np.prod(ordered.shape[: ordered.ndim - self.summed]))
        return ordered.reshape(outputs, -1).astype(np.int32)

    def restored(self, rows: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
        """Inverts ``rows``: returns the weight in its own ``shape``."""
        ordered = rows.reshape([shape[axis] for axis in self.axes])
        return ordered.transpose(np.argsort(self.axes))


@dataclass(frozen=True, slots=True)
class PairSums:
    """The extreme sums of pairs, int32, (outputs,) each.

    Attributes:
        lowest: over weights below zero; 0 where there are none.
        highest: over weights above zero; 0 where there are none.
    """

    lowest: npt.NDArray[np.int32]
    highest: npt.NDArray[np.int32]

    @property
    def worst(self) -> npt.NDArray[np.int32]:
        """The larger magnitude."""
        return np.maximum(-self.lowest, self.highest)


def pair_sums(integers: npt.NDArray[Any], order: KernelOrder) -> PairSums:
    """Returns the sums of pairs of weights; a kernel pads an unpaired weight with zero."""
    rows = order.rows(integers)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    return PairSums(
        lowest=np.minimum(pairs, 0).sum(axis=2).min(axis=1, initial=0),
        highest=np.maximum(pairs, 0).sum(axis=2).max(axis=1, initial=0),
    )


def partners_in(order: KernelOrder, shape: Sequence[int], output_axis: int) -> npt.NDArray[np.intp]:
    """Returns by input the partner whose product a kernel adds to its own in 16 bits, (inputs,); itself if unpaired.

    Args:
        order: in which the kernel sums up products.
        shape: of the weight.
        output_axis: the axis of its outputs; the others, in their order, make up the inputs.
    """
    inner = [length for axis, length in enumerate(shape) if axis != output_axis]
    inputs = np.expand_dims(np.arange(int(np.prod(inner))).reshape(inner), output_axis)
    row: npt.NDArray[np.intp] = order.rows(inputs)[0].astype(np.intp)
    partners = row.copy()
    even = row.size // 2 * 2
    partners[row[0:even:2]], partners[row[1:even:2]] = row[1:even:2], row[0:even:2]
    if row.size % 2:
        partners[row[-1]] = row[-1]
    return partners


def without_saturation(
    weight: QuantizedWeight,
    original: npt.NDArray[np.floating[Any]],
    orders: Sequence[KernelOrder],
    largest_pair: int | None,
) -> QuantizedWeight:
    """Changes a weight where, and only where, pairs could saturate.

    Each such scale is widened by the factor that loses least, between keeping it and moving each pair that is too large
    towards zero, and widening it until no pair is too large. Twice the scale is tried as well: that is one bit less,
    which is never lost against.

    Args:
        weight: the integers and their parameters.
        original: the float weights.
        orders: how the kernels of its layers pair them.
        largest_pair: limit on the sum of a pair of one sign; None for no limit.
    """
    if largest_pair is None or not weight.params.grid.signed or not orders:
        return weight
    excess = excess_of(weight, orders, largest_pair)
    reduced = np.flatnonzero(excess > 1.0)
    if not reduced.size:
        return weight
    best, least = weight, np.full(excess.shape, np.inf)
    factors = [1.0 + (excess - 1.0) * step for step in np.linspace(0.0, 1.0, _CANDIDATES)]
    for widened in (*factors, np.where(excess > 1.0, 2.0, 1.0)):
        candidate = limited(rescaled(weight, original, widened), orders, largest_pair)
        loss = _loss(candidate, original)
        best = merged(best, candidate, loss < least)
        least = np.minimum(loss, least)
    changed = tuple(int(channel) for channel in reduced)
    return replace(merged(weight, best, excess > 1.0), reduced_channels=changed)


def excess_of(weight: QuantizedWeight, orders: Sequence[KernelOrder], largest_pair: int) -> npt.NDArray[np.float64]:
    """Returns for each scale by what factor its worst pair is too large, 1 where none is: (scales,)."""
    worst = np.zeros(weight.integers.shape, np.int32)
    for order in orders:
        sums = pair_sums(weight.integers, order).worst
        rows = np.broadcast_to(sums[:, None], order.rows(weight.integers).shape)
        worst = np.maximum(worst, order.restored(rows, weight.integers.shape))
    highest = worst.max(axis=_others(weight), initial=0).reshape(-1).astype(np.float64)
    excess: npt.NDArray[np.float64] = np.maximum(highest / largest_pair, 1.0)
    return excess


def rescaled(
    weight: QuantizedWeight, original: npt.NDArray[np.floating[Any]], factors: npt.NDArray[np.float64]
) -> QuantizedWeight:
    """Requantizes with scales wider by ``factors``; channels with unchanged scales keep their integers."""
    params = weight.params
    shape = params.scale.shape
    scale = (params.scale.reshape(-1) * factors).astype(np.float32).reshape(shape)
    zero_point = np.rint(params.zero_point.reshape(-1) / factors).astype(params.zero_point.dtype).reshape(shape)
    wider = replace(params, scale=scale, zero_point=zero_point)
    fresh = replace(weight, params=wider, integers=quantize(original, wider))
    return merged(weight, fresh, factors > 1.0)


def limited(weight: QuantizedWeight, orders: Sequence[KernelOrder], largest_pair: int) -> QuantizedWeight:
    """Moves every pair that is too large towards zero, both weights by the same amount where possible."""
    integers = weight.integers
    for order in orders:
        rows = order.rows(integers)
        left, right = rows[:, 0 : rows.shape[1] // 2 * 2 : 2], rows[:, 1::2]
        over = np.abs(left + right) - largest_pair
        # Opposite signs cancel, and one weight alone is at most 128.
        over = np.where((over > 0) & (np.sign(left) == np.sign(right)), over, 0)
        from_left = np.minimum(np.abs(left), (over + (np.abs(left) > np.abs(right))) // 2)
        from_right = np.minimum(np.abs(right), over - from_left)
        sign = np.sign(left)
        left -= sign * (over - from_right)
        right -= sign * from_right
        integers = order.restored(rows, integers.shape).astype(weight.integers.dtype)
    return replace(weight, integers=integers)


def _loss(weight: QuantizedWeight, original: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Returns the squared error of each scale, (scales,)."""
    error = dequantize(weight.integers, weight.params).astype(np.float64) - original
    loss: npt.NDArray[np.float64] = np.square(error).sum(axis=_others(weight)).reshape(-1)
    return loss


def merged(old: QuantizedWeight, new: QuantizedWeight, choice: npt.NDArray[np.bool_]) -> QuantizedWeight:
    """Takes the channels of ``choice``, (scales,), from ``new`` and the others from ``old``."""
    shape = old.params.scale.shape
    params = replace(
        old.params,
        scale=np.where(choice.reshape(shape), new.params.scale, old.params.scale),
        zero_point=np.where(choice.reshape(shape), new.params.zero_point, old.params.zero_point),
    )
    granularity = old.params.granularity
    spread = [1] * old.integers.ndim
    if isinstance(granularity, PerChannel):
        spread[granularity.axis] = -1
    return replace(old, params=params, integers=np.where(choice.reshape(spread), new.integers, old.integers))


def _others(weight: QuantizedWeight) -> tuple[int, ...]:
    granularity = weight.params.granularity
    kept = granularity.axis if isinstance(granularity, PerChannel) else None
    return tuple(axis for axis in range(weight.integers.ndim) if axis != kept)
