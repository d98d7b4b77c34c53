"""Turns float weights into integers, with what a search has found out about the layers' inputs; remembers the results.

A search quantizes the same model many times, each time with other nodes left float. Most weights come out the same,
and rounding them costs more than all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qtool.plan import WeightPlan
from qtool.weights.error_feedback import round_with_feedback
from qtool.weights.input_moments import LayerInput, Moments
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import KernelOrder, without_saturation


class WeightRounding:
    """Rounds the weights of one float model.

    Attributes:
        guided: the nodes whose weights are rounded with error feedback.
    """

    def __init__(self, layers: Sequence[LayerInput] = (), moments: Moments | None = None) -> None:
        """Rounds to nearest where there are no moments.

        Args:
            layers: how layers meet their inputs.
            moments: second moments of these inputs, by node.
        """
        self._moments = {} if moments is None else moments
        self._layers = {layer.weight: layer for layer in layers if layer.node in self._moments}
        self._known: dict[tuple[object, ...], QuantizedWeight] = {}
        self.guided = tuple(layer.node for layer in self._layers.values())

    def __call__(
        self,
        weight: npt.NDArray[np.float32],
        plan: WeightPlan,
        *,
        bias: npt.NDArray[np.float64] | None,
        orders: Sequence[KernelOrder],
    ) -> QuantizedWeight:
        """Returns the integers of ``weight``.

        Args:
            weight: the float values.
            plan: the grid, and who reads them.
            bias: in units of the input's scale, (channels,), or None; scales are made to hold it.
            orders: how kernels sum up its products.

        Raises:
            InputError: the weight holds NaN or infinity.
        """
        nearest = round_to_nearest(plan.tensor, weight, plan.grid, plan.granularity, bias=bias)
        layer = self._layers.get(plan.tensor)
        if layer is None:
            return without_saturation(nearest, weight, orders, plan.largest_pair)
        key = (plan, tuple(orders), nearest.params.scale.tobytes())
        if key not in self._known:
            guided = round_with_feedback(weight, nearest, layer, self._moments[layer.node])
            self._known[key] = without_saturation(guided, weight, orders, plan.largest_pair)
        return self._known[key]
