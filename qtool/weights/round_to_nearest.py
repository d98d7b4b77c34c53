"""Round to nearest (RTN): the baseline weight quantization, per tensor or per channel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.affine import SMALLEST_SCALE, AffineParams, params_from_ranges, quantize
from qtool.calib.granularity import Granularity, PerChannel
from qtool.calib.grid import Grid
from qtool.errors import InputError
from qtool.formats.scratch import kept_aside

# A bias of at most 2^30 leaves half of an int32 accumulator to the products.
LARGEST_BIAS = 2.0**30
# A channel of zero weights outputs its bias alone: 24 bits are as precise as float32.
_DEAD_CHANNEL_BIAS = 2.0**24
# Weights that are rounded at once, few enough to stay in the processor's cache.
_VALUES_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """A weight as integers.

    Attributes:
        integers: the grid's dtype, the weight's shape.
        params: scale and zero point, one or one per channel.
        dead_channels: channels without a weight other than zero.
        widened_channels: channels whose scale had to grow for the bias to fit into int32.
        reduced_channels: channels that use less of the grid, so that sums of 16 bits hold their products.
    """

    integers: npt.NDArray[Any]
    params: AffineParams
    dead_channels: tuple[int, ...] = ()
    widened_channels: tuple[int, ...] = ()
    reduced_channels: tuple[int, ...] = ()


def weight_params(
    name: str, weight: npt.NDArray[np.floating[Any]], grid: Grid, granularity: Granularity
) -> AffineParams:
    """Returns the parameters whose grid covers each channel of ``weight`` from its smallest to its largest value.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise InputError(
            f"the weight '{name}' holds NaN or infinity", fix="repair the model, or keep its node float with --exclude"
        )
    if isinstance(granularity, PerChannel):
        others = tuple(axis for axis in range(weight.ndim) if axis != granularity.axis)
        return params_from_ranges(weight.min(axis=others), weight.max(axis=others), grid, granularity)
    params = params_from_ranges(weight.min().reshape(1), weight.max().reshape(1), grid, granularity)
    return replace(params, scale=params.scale.reshape(()), zero_point=params.zero_point.reshape(()))


def round_to_nearest(
    name: str,
    weight: npt.NDArray[np.floating[Any]],
    grid: Grid,
    granularity: Granularity,
    *,
    bias: npt.NDArray[np.floating[Any]] | None = None,
    input_scale: float = 1.0,
) -> QuantizedWeight:
    """Quantizes ``weight`` with scales at which ``bias`` fits into int32 with scale input scale times weight scale.

    Args:
        name: the tensor's name, for messages.
        weight: any shape, float.
        grid: the integers to use.
        granularity: one scale, or one per channel.
        bias: shape (channels,), or None.
        input_scale: scale of the activations that the weight multiplies.

    Raises:
        InputError: the weight holds NaN or infinity.
    """
    params = weight_params(name, weight, grid, granularity)
    dead: tuple[int, ...] = ()
    widened: tuple[int, ...] = ()
    if isinstance(granularity, PerChannel):
        others = tuple(axis for axis in range(weight.ndim) if axis != granularity.axis)
        is_dead = ~np.any(weight != 0, axis=others)
        dead = tuple(int(channel) for channel in np.flatnonzero(is_dead))
    else:
        is_dead = np.asarray(not np.any(weight != 0))
    if bias is not None:
        magnitudes = np.abs(bias.astype(np.float64))
        largest = magnitudes if isinstance(granularity, PerChannel) else np.asarray(magnitudes.max(initial=0.0))
        scale = params.scale.astype(np.float64)
        scale = np.where(is_dead & (largest > 0), largest / input_scale / _DEAD_CHANNEL_BIAS, scale)
        needed = largest / input_scale / LARGEST_BIAS
        if isinstance(granularity, PerChannel):
            widened = tuple(int(channel) for channel in np.flatnonzero((needed > scale) & ~is_dead))
        scale = np.maximum(np.maximum(scale, needed), SMALLEST_SCALE)
        params = replace(params, scale=scale.astype(np.float32))
    return QuantizedWeight(
        integers=_quantized(weight, params), params=params, dead_channels=dead, widened_channels=widened
    )


def _quantized(weight: npt.NDArray[np.floating[Any]], params: AffineParams) -> npt.NDArray[Any]:
    """Returns the integers of ``weight``, which are made of some of its rows at a time: steps take several floats."""
    rows = max(_VALUES_AT_ONCE * len(weight) // weight.size, 1) if weight.ndim and weight.size else 1
    if weight.ndim == 0 or rows >= len(weight):
        return quantize(weight, params)
    integers = np.empty(weight.shape, params.grid.dtype)
    per_row = isinstance(params.granularity, PerChannel) and params.granularity.axis == 0
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        own = replace(params, scale=params.scale[part], zero_point=params.zero_point[part]) if per_row else params
        integers[part] = quantize(weight[part], own)
    return kept_aside(integers)


def quantize_bias(
    bias: npt.NDArray[np.floating[Any]], weight_scale: npt.NDArray[np.float32], input_scale: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Returns the bias as int32, shape (channels,), and its scale, input scale times weight scale."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    limit = 2.0**31 - 1
    integers = np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), -limit, limit).astype(np.int32)
    return integers, scale
