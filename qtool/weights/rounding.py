"""Rounds weights by the chosen algorithm (round to nearest, clipping, GPTQ or reconstruction) and caches the results.

A search quantizes the same model many times with different nodes left float. Most weights stay the same, and rounding
them is the most expensive step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from qtool.plan import WeightPlan
from qtool.weights.gptq import Curvature
from qtool.weights.gptq_layer import curvature_of, output_noise, product_power
from qtool.weights.input_hessian import Hessians, LayerInput
from qtool.weights.registry import GPTQ, WEIGHT_ALGORITHMS, algorithms_named, read_biases
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import without_saturation
from qtool.weights.weight_problem import WeightProblem


class WeightRounding:
    """Rounds the weights of one float model.

    Attributes:
        algorithms: the names of what chooses integers by the layers' inputs, in the order in which they work.
    """

    def __init__(
        self,
        layers: Sequence[LayerInput] = (),
        hessians: Hessians | None = None,
        *,
        algorithms: Collection[str] = (),
        fitted: Mapping[str, QuantizedWeight] | None = None,
    ) -> None:
        """Rounds to nearest by default.

        Args:
            layers: how layers' weights multiply their inputs.
            hessians: of these inputs, by node.
            algorithms: keys of ``WEIGHT_ALGORITHMS``, in any order.
            fitted: integers by weight from a reconstruction, valid as long as their scales are unchanged.
        """
        self._hessians = {} if hessians is None else hessians
        self._layers = {layer.weight: layer for layer in layers if layer.node in self._hessians}
        self._fitted = {} if fitted is None else fitted
        self._known: dict[tuple[object, ...], QuantizedWeight] = {}
        self._curvatures: dict[str, Curvature] = {}
        self._forms: dict[frozenset[str], WeightRounding] = {}
        self.algorithms = tuple(name for name in WEIGHT_ALGORITHMS if name in algorithms)

    @property
    def guided(self) -> tuple[str, ...]:
        """The nodes whose weights are rounded with GPTQ."""
        return tuple(layer.node for layer in self._layers.values()) if GPTQ in self.algorithms else ()

    @property
    def fitted(self) -> tuple[str, ...]:
        """The weights whose integers were fitted."""
        return tuple(self._fitted)

    def form(self, algorithms: Collection[str]) -> WeightRounding:
        """Returns the same rounding with these algorithms; each form is one object, which caches its results."""
        key = frozenset(algorithms)
        if key not in self._forms:
            form = WeightRounding(tuple(self._layers.values()), self._hessians, algorithms=key)
            form._curvatures = self._curvatures
            self._forms[key] = form
        return self._forms[key]

    def with_fitted(self, fitted: Mapping[str, QuantizedWeight]) -> WeightRounding:
        """Returns the same with integers that were found otherwise."""
        layers = tuple(self._layers.values())
        form = WeightRounding(layers, self._hessians, algorithms=self.algorithms, fitted=fitted)
        # What inputs alone choose stays the same.
        form._known, form._curvatures = self._known, self._curvatures
        return form

    def __call__(
        self,
        weight: npt.NDArray[np.float32],
        plan: WeightPlan,
        *,
        bias: npt.NDArray[np.float64] | None,
    ) -> QuantizedWeight:
        """Returns the integers of ``weight``.

        Args:
            weight: the float values.
            plan: the grid, the nodes that read them, and how kernels sum up their products.
            bias: in units of the input's scale, (channels,), or None; scales are widened so that it fits.

        Raises:
            InputError: the weight holds NaN or infinity.
        """
        nearest = round_to_nearest(plan.tensor, weight, plan.grid, plan.granularity, bias=bias)
        layer = self._layers.get(plan.tensor)
        if layer is None:
            found = without_saturation(nearest, weight, plan.orders, plan.largest_pair)
        else:
            room = bias.tobytes() if bias is not None and read_biases(self.algorithms) else b""
            key = (plan, nearest.params.scale.tobytes(), room)
            if key not in self._known:
                guided = self._guided(weight, nearest, layer, bias, plan)
                self._known[key] = without_saturation(guided, weight, plan.orders, plan.largest_pair)
            found = self._known[key]
        fitted = self._fitted.get(plan.tensor)
        return found if fitted is None or not _same_grid(fitted, found) else fitted

    def noise_share(self, weight: npt.NDArray[np.float32], tensor: str, rounded: QuantizedWeight) -> float:
        """Returns the noise of the rounded weights relative to the power of a layer's products; 0 if not known."""
        layer = self._layers.get(tensor)
        if layer is None:
            return 0.0
        hessian = self._hessians[layer.node]
        signal = float(product_power(weight, layer, hessian).sum())
        return output_noise(weight, rounded, layer, hessian) / max(signal, float(np.finfo(np.float32).tiny))

    def _guided(
        self,
        weight: npt.NDArray[np.float32],
        nearest: QuantizedWeight,
        layer: LayerInput,
        bias: npt.NDArray[np.float64] | None,
        plan: WeightPlan,
    ) -> QuantizedWeight:
        problem = WeightProblem(
            weight=weight,
            layer=layer,
            hessian=self._hessians[layer.node],
            curvature=partial(self._curvature, layer.node),
            bias=bias,
            orders=plan.orders,
            largest_pair=plan.largest_pair,
        )
        found = nearest
        for algorithm in algorithms_named(self.algorithms):
            found = algorithm(problem, found)
        return found

    def _curvature(self, node: str) -> Curvature:
        if node not in self._curvatures:
            self._curvatures[node] = curvature_of(self._hessians[node])
        return self._curvatures[node]


def _same_grid(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return np.array_equal(one.params.scale, other.params.scale)
