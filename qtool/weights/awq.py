"""AWQ: scales up the weights of strong input channels, whose rounding errors then weigh less.

With factors s, one for each input channel, (x / s) (s W) = x W; in the rounded W' the error of a channel shrinks by its
factor as long as the largest weight of its block stays the same. Source: J. Lin et al., AWQ (MLSys 2024), section 3.2:
s = |x|^a with one exponent per layer, searched on a grid by the error of the products. Here |x| is the root mean square
of a channel, and the error that of all layers that read the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.weights.block_grid import BlockGrid
from qtool.weights.block_quantization import Matrix, round_blocks

Floats: TypeAlias = npt.NDArray[np.float64]

_EXPONENTS = np.linspace(0.0, 1.0, 21)[1:]
# Outputs of a layer that the error is looked at in, evenly spread: factors belong to inputs, which all of them have.
_OUTPUTS = 128
# Channels that are never used get no less of the factors' range than this.
_LEAST = 1e-4
# Scaling for less is not worth what it may lose in the rest of the data.
_WORTHWHILE = 0.98


def awq_scales(weights: Sequence[tuple[Matrix, BlockGrid]], hessian: Floats) -> Floats | None:
    """Returns the factors s of a tensor's channels, float64, (inputs,); None where they gain too little.

    Args:
        weights: of every layer that reads the tensor, (outputs, inputs), with the integers that they become.
        hessian: Σ x xᵀ of the tensor, (inputs, inputs).
    """
    strength = np.sqrt(np.diagonal(hessian))
    largest = float(strength.max(initial=0.0))
    if largest == 0.0:
        return None
    strength = np.maximum(strength, _LEAST * largest)
    sampled = [(np.ascontiguousarray(matrix[:: max(len(matrix) // _OUTPUTS, 1)]), grid) for matrix, grid in weights]
    moments = hessian.astype(np.float32)
    plain = least = _error(sampled, moments, np.ones_like(strength))
    found = None
    for exponent in _EXPONENTS:
        scales = strength**exponent
        scales /= np.sqrt(scales.max() * scales.min())
        error = _error(sampled, moments, scales)
        if error < least:
            least, found = error, scales
    return found if least < _WORTHWHILE * plain else None


def scaled_hessian(hessian: Floats, scales: Floats) -> Floats:
    """Returns Σ x xᵀ of the tensor divided by its factors."""
    divided: Floats = hessian / np.outer(scales, scales)
    return divided


def _error(weights: Sequence[tuple[Matrix, BlockGrid]], moments: Matrix, scales: Floats) -> float:
    """Returns the sum of |(W' - W) x|² over the layers, W' rounded to nearest after scaling."""
    factors = scales.astype(np.float32)
    total = 0.0
    for matrix, grid in weights:
        rounded = round_blocks("", matrix * factors, grid).dequantized() / factors
        error = rounded - matrix
        total += float(((error @ moments) * error).sum())
    return total
