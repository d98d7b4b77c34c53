"""GPTQ on blocks: rounds weights on given grids with little error in the layer's products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from qtool.weights.blocks.quantization import BlockWeight, Matrix, per_input, row_parts
from qtool.weights.gptq import Curvature, gptq


def gptq_blocks(matrix: Matrix, given: BlockWeight, curvature: Curvature) -> BlockWeight:
    """Returns ``given`` with integers that cause less error in the products, on the same scales and zero points.

    Args:
        matrix: the float weights, (outputs, inputs).
        given: the grids of its blocks.
        curvature: of the layer's inputs, one group.
    """
    grid, inputs = given.grid, matrix.shape[1]
    integers = np.empty(matrix.shape, np.uint8)
    # Outputs do not depend on each other.
    for rows in row_parts(matrix):
        sizes = per_input(given.scales[rows], grid, inputs).astype(np.float64)[np.newaxis]
        zeros = per_input(given.zero_points[rows], grid, inputs).astype(np.float64)[np.newaxis]
        steps = gptq(matrix[np.newaxis, rows] / sizes, curvature, -zeros, grid.highest - zeros, sizes=sizes)
        integers[rows] = (steps + zeros)[0]
    return replace(given, integers=integers)


def product_noise(matrix: Matrix, rounded: BlockWeight, hessian: npt.NDArray[np.float64]) -> float:
    """Returns the sum of |(W' - W) x|² over the inputs of ``hessian``, Σ x xᵀ, (inputs, inputs)."""
    error = rounded.dequantized().astype(np.float64) - matrix
    return float(((error @ hessian) * error).sum())
