"""Rounds weights one input at a time, and lets the inputs still to come make up for each rounding error.

Rounding to nearest minimizes the error of each weight; what counts is that of the products, |(W' - W) x|^2 over the
inputs x that the layer really meets. Source: E. Frantar et al., GPTQ (ICLR 2023), algorithm 1, after the optimal brain
surgeon: with U the upper Cholesky factor of the inverse of H = E[x x^T], an error e in column j is best answered by
subtracting e * U[j, k] / U[j, j] from every later column k.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from calib.affine import dequantize
from qtool.weights.input_moments import LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight

# A part of the mean diagonal is added to H, so that inputs that were hardly seen move nothing.
_DAMPING = 0.01
_BLOCK = 64


def round_with_feedback(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, moments: npt.NDArray[np.float64]
) -> QuantizedWeight:
    """Returns ``rounded`` with other integers on the same scales, with less error in the layer's outputs.

    Args:
        weight: the float weight.
        rounded: its integers rounded to nearest, and the scales.
        layer: how the weight meets its input.
        moments: H of the layer's input, (groups, inputs, inputs).
    """
    params = rounded.params
    axis = layer.output_axis
    moved = np.moveaxis(weight, axis, 0)
    matrix = moved.reshape(len(moved), -1).astype(np.float64)
    scales = np.broadcast_to(params.scale.reshape(-1).astype(np.float64), len(matrix))
    zeros = np.broadcast_to(params.zero_point.reshape(-1).astype(np.float64), len(matrix))
    steps = (matrix / scales[:, np.newaxis]).reshape(layer.groups, -1, layer.inputs)
    low = (params.grid.low - zeros).reshape(layer.groups, -1)
    high = (params.grid.high - zeros).reshape(layer.groups, -1)
    integers = _rounded(steps, moments, low, high).reshape(matrix.shape) + zeros[:, np.newaxis]
    stored = np.moveaxis(integers.reshape(moved.shape), 0, axis).astype(params.grid.dtype)
    return replace(rounded, integers=np.ascontiguousarray(stored))


def output_noise(
    weight: npt.NDArray[np.float32], rounded: QuantizedWeight, layer: LayerInput, moments: npt.NDArray[np.float64]
) -> float:
    """Returns sum of |(W' - W) x|^2 over the inputs that ``moments`` has seen."""
    change = dequantize(rounded.integers, rounded.params).astype(np.float64) - weight
    matrix = np.moveaxis(change, layer.output_axis, 0).reshape(layer.groups, -1, layer.inputs)
    return float(np.einsum("goi,gij,goj->", matrix, moments, matrix, optimize=True))


def _rounded(
    steps: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Rounds ``steps``, (groups, outputs, inputs), in units of each output's scale.

    The order is from strong inputs to weak. Limits are (groups, outputs).
    """
    groups, _, count = steps.shape
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    # With a diagonal of damping alone, as in a group that was never fed anything, every weight is rounded to nearest.
    damping = np.where(diagonal.any(axis=1), _DAMPING * diagonal.mean(axis=1), 1.0)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    every = np.arange(groups)[:, np.newaxis]
    damped = moments[every[..., np.newaxis], order[:, :, np.newaxis], order[:, np.newaxis, :]]
    damped += np.eye(count) * damping[:, np.newaxis, np.newaxis]
    factor = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    # Inputs come first, so that what is left of each lies together in memory.
    left = np.ascontiguousarray(steps.transpose(0, 2, 1)[every, order])
    done = np.empty_like(left)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        errors = np.empty((groups, stop - start, left.shape[2]))
        for column in range(start, stop):
            np.clip(np.rint(left[:, column]), low, high, out=done[:, column])
            error = (left[:, column] - done[:, column]) / factor[:, column, column, np.newaxis]
            left[:, column + 1 : stop] -= factor[:, column, column + 1 : stop, np.newaxis] * error[:, np.newaxis]
            errors[:, column - start] = error
        left[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    result = np.empty_like(done)
    result[every, order] = done
    return result.transpose(0, 2, 1)
