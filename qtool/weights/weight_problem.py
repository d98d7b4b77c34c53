"""What an algorithm that chooses the integers of one layer's weight is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qtool.weights.gptq import Curvature
from qtool.weights.input_hessian import LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import KernelOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightProblem:
    """One weight, and what is known of the layer that reads it.

    Attributes:
        weight: the float weight, float32.
        layer: how the weight meets its input.
        hessian: H = E[x x^T] of the layer's input, up to a factor, float64, (groups, inputs, inputs).
        curvature: computes what GPTQ needs of ``hessian``, once.
        bias: in units of the input's scale, (outputs,), which has to fit into int32 on the weight's scales; or None.
        orders: how the kernels of its layers pair weights.
        largest_pair: what a pair of one sign may add up to; None for everything.
    """

    weight: npt.NDArray[np.float32]
    layer: LayerInput
    hessian: npt.NDArray[np.float64]
    curvature: Callable[[], Curvature]
    bias: npt.NDArray[np.float64] | None
    orders: Sequence[KernelOrder]
    largest_pair: int | None


class WeightAlgorithm(Protocol):
    """Chooses other integers, other scales, or both."""

    def __call__(self, problem: WeightProblem, found: QuantizedWeight) -> QuantizedWeight:
        """Returns ``found``, which the algorithms before it have left, with less error in the layer's products.

        Integers have to stay on the grid of ``found``, and the same arguments have to give the same ones.
        """
        ...
