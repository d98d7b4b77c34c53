"""Rounds weights by the chosen algorithm (round to nearest, clipping, GPTQ or reconstruction) and caches the results.

A search quantizes the same model many times with different nodes left float. Most weights stay the same, and rounding
them is the most expensive step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qtool.plan import WeightPlan
from qtool.weights.clipping import clip_channels
from qtool.weights.gptq import Curvature
from qtool.weights.gptq_layer import curvature_of, gptq_rounded, output_noise, product_power
from qtool.weights.input_hessian import Hessians, LayerInput
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import KernelOrder, without_saturation


class WeightRounding:
    """Rounds the weights of one float model.

    Attributes:
        clips: whether scales may be narrower than a channel's largest weight.
        feeds_back: whether weights are rounded by GPTQ.
    """

    def __init__(
        self,
        layers: Sequence[LayerInput] = (),
        hessians: Hessians | None = None,
        *,
        clips: bool = False,
        feeds_back: bool = False,
        fitted: Mapping[str, QuantizedWeight] | None = None,
    ) -> None:
        """Rounds to nearest by default.

        Args:
            layers: how layers' weights multiply their inputs.
            hessians: of these inputs, by node.
            clips: see the attribute.
            feeds_back: see the attribute.
            fitted: integers by weight from a reconstruction, valid as long as their scales are unchanged.
        """
        self._hessians = {} if hessians is None else hessians
        self._layers = {layer.weight: layer for layer in layers if layer.node in self._hessians}
        self._fitted = {} if fitted is None else fitted
        self._known: dict[tuple[object, ...], QuantizedWeight] = {}
        self._curvatures: dict[str, Curvature] = {}
        self._forms: dict[tuple[bool, bool], WeightRounding] = {}
        self.clips = clips
        self.feeds_back = feeds_back

    @property
    def guided(self) -> tuple[str, ...]:
        """The nodes whose weights are rounded with GPTQ."""
        return tuple(layer.node for layer in self._layers.values()) if self.feeds_back else ()

    @property
    def fitted(self) -> tuple[str, ...]:
        """The weights whose integers were fitted."""
        return tuple(self._fitted)

    def form(self, *, clips: bool, feeds_back: bool) -> WeightRounding:
        """Returns the same rounding with these settings; each setting is one object, which caches its results."""
        key = clips, feeds_back
        if key not in self._forms:
            layers = tuple(self._layers.values())
            self._forms[key] = WeightRounding(layers, self._hessians, clips=clips, feeds_back=feeds_back)
        return self._forms[key]

    def with_fitted(self, fitted: Mapping[str, QuantizedWeight]) -> WeightRounding:
        """Returns the same with integers from a reconstruction."""
        return WeightRounding(
            tuple(self._layers.values()), self._hessians, clips=self.clips, feeds_back=self.feeds_back, fitted=fitted
        )

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
            plan: the grid, and the nodes that read them.
            bias: in units of the input's scale, (channels,), or None; scales are widened so that it fits.
            orders: how kernels sum up its products.

        Raises:
            InputError: the weight holds NaN or infinity.
        """
        nearest = round_to_nearest(plan.tensor, weight, plan.grid, plan.granularity, bias=bias)
        layer = self._layers.get(plan.tensor)
        if layer is None:
            found = without_saturation(nearest, weight, orders, plan.largest_pair)
        else:
            # Clipping leaves room for the bias.
            room = bias.tobytes() if self.clips and bias is not None else b""
            key = (plan, tuple(orders), nearest.params.scale.tobytes(), room)
            if key not in self._known:
                guided = self._guided(weight, nearest, layer, bias, plan, orders)
                self._known[key] = without_saturation(guided, weight, orders, plan.largest_pair)
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
        orders: Sequence[KernelOrder],
    ) -> QuantizedWeight:
        hessian = self._hessians[layer.node]
        clipped = clip_channels(weight, nearest, layer, hessian, bias=bias) if self.clips else nearest
        if not self.feeds_back:
            return clipped
        if layer.node not in self._curvatures:
            self._curvatures[layer.node] = curvature_of(hessian)
        return gptq_rounded(
            weight,
            clipped,
            layer,
            hessian,
            curvature=self._curvatures[layer.node],
            orders=orders,
            largest_pair=plan.largest_pair,
        )


def _same_grid(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return np.array_equal(one.params.scale, other.params.scale)
