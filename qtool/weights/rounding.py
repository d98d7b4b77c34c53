"""Rounds weights by the chosen algorithm (round to nearest, clipping, GPTQ or reconstruction) and caches the results.

A search quantizes the same model many times with different nodes left float. Most weights stay the same, and rounding
them is the most expensive step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qtool.cluster.work import IN_THIS_PROCESS, Workers, results
from qtool.plan import WeightPlan
from qtool.weights.gptq import Curvature
from qtool.weights.gptq_layer import output_noise, product_power
from qtool.weights.guided_rounding import GuidedRoundingWork, GuidedWeight, with_content
from qtool.weights.input_hessian import Hessians, LayerInput
from qtool.weights.registry import GPTQ, WEIGHT_ALGORITHMS, read_biases
from qtool.weights.round_to_nearest import QuantizedWeight, round_to_nearest
from qtool.weights.saturation import without_saturation

# The plan of a weight, its scales and its bias, where that has a say.
_Key: TypeAlias = tuple[WeightPlan, bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatWeight:
    """A weight to round.

    Attributes:
        weight: the float values.
        plan: the grid, the nodes that read them, and how kernels sum up their products.
        bias: in units of the input's scale, (channels,), or None; scales are widened so that it fits.
    """

    weight: npt.NDArray[np.float32]
    plan: WeightPlan
    bias: npt.NDArray[np.float64] | None


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
        workers: Workers = IN_THIS_PROCESS,
    ) -> None:
        """Rounds to nearest by default.

        Args:
            layers: how layers' weights multiply their inputs.
            hessians: of these inputs, by node.
            algorithms: keys of ``WEIGHT_ALGORITHMS``, in any order.
            fitted: integers by weight from a reconstruction, valid as long as their scales are unchanged.
            workers: who chooses integers by the layers' inputs.
        """
        self._hessians = {} if hessians is None else hessians
        self._layers = {layer.weight: layer for layer in layers if layer.node in self._hessians}
        self._fitted = {} if fitted is None else fitted
        self._workers = workers
        self._known: dict[_Key, QuantizedWeight] = {}
        self._nearest: dict[tuple[WeightPlan, bytes], QuantizedWeight] = {}
        self._curvatures: dict[str, Curvature] = {}
        self._forms: dict[frozenset[str], WeightRounding] = {}
        self.algorithms = tuple(name for name in WEIGHT_ALGORITHMS if name in algorithms)

    def __getstate__(self) -> dict[str, object]:
        """Leaves here what others can do without: other forms, factors of Hessians, and the workers."""
        others: dict[str, object] = {"_forms": {}, "_nearest": {}, "_curvatures": {}, "_workers": IN_THIS_PROCESS}
        return {**vars(self), **others}

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
            layers = tuple(self._layers.values())
            form = WeightRounding(layers, self._hessians, algorithms=key, workers=self._workers)
            form._nearest, form._curvatures = self._nearest, self._curvatures
            self._forms[key] = form
        return self._forms[key]

    def with_fitted(self, fitted: Mapping[str, QuantizedWeight]) -> WeightRounding:
        """Returns the same with integers that were found otherwise."""
        layers = tuple(self._layers.values())
        form = WeightRounding(layers, self._hessians, algorithms=self.algorithms, fitted=fitted, workers=self._workers)
        # What inputs alone choose stays the same.
        form._known, form._nearest, form._curvatures = self._known, self._nearest, self._curvatures
        return form

    def __call__(
        self,
        weight: npt.NDArray[np.float32],
        plan: WeightPlan,
        *,
        bias: npt.NDArray[np.float64] | None,
    ) -> QuantizedWeight:
        """Returns the integers of one weight; see ``every``.

        Raises:
            InputError: the weight holds NaN or infinity.
        """
        (found,) = self.every([FloatWeight(weight=weight, plan=plan, bias=bias)])
        return found

    def every(self, weights: Iterable[FloatWeight]) -> list[QuantizedWeight]:
        """Returns the integers of weights; those that layers' inputs choose are chosen by the workers.

        Raises:
            InputError: a weight holds NaN or infinity.
        """
        places: list[tuple[str, QuantizedWeight | _Key]] = []
        asked: dict[_Key, QuantizedWeight] = {}
        keys: list[_Key] = []

        def tasks() -> Iterator[tuple[str, GuidedWeight]]:
            for given in weights:
                plan, bias = given.plan, given.bias
                layer = self._layers.get(plan.tensor)
                if layer is None:
                    nearest = round_to_nearest(plan.tensor, given.weight, plan.grid, plan.granularity, bias=bias)
                    found = without_saturation(nearest, given.weight, plan.orders, plan.largest_pair)
                    places.append((plan.tensor, found))
                    continue
                # The layers are those of one model, whose weights stay the same.
                whole = (plan, b"" if bias is None else bias.tobytes())
                if whole not in self._nearest:
                    self._nearest[whole] = round_to_nearest(
                        plan.tensor, given.weight, plan.grid, plan.granularity, bias=bias
                    )
                nearest = self._nearest[whole]
                room = bias.tobytes() if bias is not None and read_biases(self.algorithms) else b""
                key = (plan, nearest.params.scale.tobytes(), room)
                places.append((plan.tensor, key))
                if key in self._known or key in asked:
                    continue
                if not self.algorithms:
                    self._known[key] = without_saturation(nearest, given.weight, plan.orders, plan.largest_pair)
                    continue
                asked[key] = nearest
                keys.append(key)
                hessian = self._hessians[layer.node]
                task = GuidedWeight(
                    weight=given.weight, nearest=nearest, layer=layer, hessian=hessian, bias=bias, plan=plan
                )
                yield str(len(keys) - 1), task

        work = GuidedRoundingWork(algorithms=self.algorithms, curvatures=self._curvatures)
        for number, content in results(self._workers, work, tasks()):
            key = keys[int(number)]
            self._known[key] = with_content(asked[key], content)
        return [
            self._unless_fitted(tensor, found if isinstance(found, QuantizedWeight) else self._known[found])
            for tensor, found in places
        ]

    def _unless_fitted(self, tensor: str, found: QuantizedWeight) -> QuantizedWeight:
        fitted = self._fitted.get(tensor)
        return found if fitted is None or not _same_grid(fitted, found) else fitted

    def noise_share(self, weight: npt.NDArray[np.float32], tensor: str, rounded: QuantizedWeight) -> float:
        """Returns the noise of the rounded weights relative to the power of a layer's products; 0 if not known."""
        layer = self._layers.get(tensor)
        if layer is None:
            return 0.0
        hessian = self._hessians[layer.node]
        signal = float(product_power(weight, layer, hessian).sum())
        return output_noise(weight, rounded, layer, hessian) / max(signal, float(np.finfo(np.float32).tiny))


def _same_grid(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return np.array_equal(one.params.scale, other.params.scale)
