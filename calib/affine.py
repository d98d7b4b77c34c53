"""Affine quantization: q = clip(round(x / scale) + zero_point, low, high), x' = (q - zero_point) * scale.

This is QuantizeLinear and DequantizeLinear of the ONNX operator specification: division in float32, ties to even.
For 8-bit floats, q is the nearest of them, saturated, and the zero point is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qtool.calib.errors import CalibError
from qtool.calib.granularity import Granularity, PerChannel, PerTensor
from qtool.calib.grid import Grid

# Below this a product of two scales is subnormal in float32, and runtimes flush it to zero.
SMALLEST_SCALE = float(2.0**-60)


@dataclass(frozen=True, slots=True)
class Range:
    """The range of real numbers, from ``low`` to ``high``, that a grid covers."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineParams:
    """The quantization parameters of a tensor.

    Attributes:
        scale: float32, shape () or (channels,): the step between adjacent integers; finite, positive.
        zero_point: the grid's dtype, same shape: the integer that represents 0.0.
        grid: the integers in use.
        granularity: per tensor, or per channel of an axis.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[Any]
    grid: Grid
    granularity: Granularity

    @property
    def range(self) -> Range:
        """The real range that a per-tensor grid can represent."""
        scale, zero = float(self.scale), int(self.zero_point)
        return Range((self.grid.low - zero) * scale, (self.grid.high - zero) * scale)


def params_from_range(span: Range, grid: Grid) -> AffineParams:
    """Returns per-tensor parameters with which ``grid`` covers ``span``, widened to contain zero.

    Raises:
        CalibError: an end of the range is not finite, or they are in the wrong order.
    """
    params = params_from_ranges(np.array([span.low]), np.array([span.high]), grid, PerTensor())
    return AffineParams(
        scale=params.scale.reshape(()), zero_point=params.zero_point.reshape(()), grid=grid, granularity=PerTensor()
    )


def params_from_ranges(
    lows: npt.NDArray[np.floating[Any]],
    highs: npt.NDArray[np.floating[Any]],
    grid: Grid,
    granularity: Granularity,
) -> AffineParams:
    """Returns per-channel parameters with which ``grid`` covers each ``lows[c]..highs[c]``, widened to contain zero.

    Zero is always exactly representable. A range of zero width (a constant zero, a dead channel) gets scale 1.
    Scales are never below ``SMALLEST_SCALE``.

    Raises:
        CalibError: an end of a range is not finite, or they are in the wrong order.
    """
    low = np.minimum(lows.astype(np.float64), 0.0)
    high = np.maximum(highs.astype(np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CalibError("a range is not finite", fix="look for NaN and infinity in the data and the weights")
    if (lows > highs).any():
        raise CalibError("a range ends before it begins", fix="give the lower end first")
    if grid.symmetric:
        reach = np.maximum(-low, high)
        scale = reach / (grid.high - grid.middle)
    else:
        scale = (high - low) / (grid.high - grid.low)
    dead = scale == 0.0
    with np.errstate(over="ignore"):  # an overflow is rejected below
        scales = np.where(dead, 1.0, np.maximum(scale, SMALLEST_SCALE)).astype(np.float32)
    if not np.isfinite(scales).all():
        raise CalibError("a range is too wide for a float32 scale", fix="leave this tensor float with --exclude")
    if grid.symmetric:
        zero_point = np.full(scales.shape, grid.middle)
    else:
        zero_point = np.clip(np.rint(grid.low - low / scales.astype(np.float64)), grid.low, grid.high)
    return AffineParams(scale=scales, zero_point=zero_point.astype(grid.dtype), grid=grid, granularity=granularity)


def quantize(values: npt.NDArray[np.floating[Any]], params: AffineParams) -> npt.NDArray[Any]:
    """Quantizes ``values``: returns the nearest integers, of the grid's dtype and the same shape."""
    scale, zero_point = _spread(params, values.ndim)
    if params.grid.float8 is not None:
        # Casting rounds to nearest, ties to even; what is beyond the largest value saturates.
        with np.errstate(over="ignore"):
            scaled = np.clip(values.astype(np.float32) / scale, params.grid.low, params.grid.high)
        rounded: npt.NDArray[Any] = scaled.astype(params.grid.dtype)
        return rounded
    with np.errstate(over="ignore"):  # infinity is clipped to the grid
        steps = np.rint(values.astype(np.float32) / scale).astype(np.float64) + zero_point
    integers: npt.NDArray[Any] = np.clip(steps, params.grid.low, params.grid.high).astype(params.grid.dtype)
    return integers


def dequantize(integers: npt.NDArray[Any], params: AffineParams) -> npt.NDArray[np.float32]:
    """Dequantizes ``integers``: returns float32 of the same shape."""
    scale, zero_point = _spread(params, integers.ndim)
    return ((integers.astype(np.float64) - zero_point).astype(np.float32) * scale).astype(np.float32)


def _spread(params: AffineParams, rank: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Reshapes scale and zero point so that they broadcast along the channel axis."""
    if isinstance(params.granularity, PerChannel):
        shape = [1] * rank
        shape[params.granularity.axis] = -1
        return params.scale.reshape(shape), params.zero_point.astype(np.float64).reshape(shape)
    return params.scale, params.zero_point.astype(np.float64)
