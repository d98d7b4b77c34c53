"""Rounds weights by what is known of their layers' inputs, each as a task of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt

from qtool.plan import WeightPlan
from qtool.weights.gptq import Curvature
from qtool.weights.gptq_layer import curvature_of
from qtool.weights.input_hessian import LayerInput
from qtool.weights.registry import algorithms_named
from qtool.weights.round_to_nearest import QuantizedWeight
from qtool.weights.saturation import without_saturation
from qtool.weights.weight_problem import WeightProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedWeight:
    """A task: one weight.

    Attributes:
        weight: the float values.
        nearest: the weight rounded to nearest.
        layer: how it multiplies its input.
        hessian: of that input, (groups, inputs, inputs).
        bias: in units of the input's scale, (channels,), or None.
        plan: the grid, and how kernels sum up products.
    """

    weight: npt.NDArray[np.float32]
    nearest: QuantizedWeight
    layer: LayerInput
    hessian: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64] | None
    plan: WeightPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedRoundingWork:
    """Rounds weights with some algorithms.

    Attributes:
        algorithms: keys of ``WEIGHT_ALGORITHMS``.
        curvatures: what GPTQ needs of Hessians, by node, as far as it is known; None to hold none.
    """

    algorithms: tuple[str, ...]
    curvatures: dict[str, Curvature] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        """Leaves the curvatures here: they are as large as the Hessians, and no two tasks share one."""
        return _without_curvatures, (self.algorithms,)

    @contextmanager
    def opened(self) -> Iterator[Callable[[GuidedWeight], bytes]]:
        """Yields what rounds a weight; ``with_content`` reads what it returns."""
        yield self._rounded

    def _rounded(self, task: GuidedWeight) -> bytes:
        plan, found = task.plan, task.nearest
        problem = WeightProblem(
            weight=task.weight,
            layer=task.layer,
            hessian=task.hessian,
            curvature=partial(self._curvature, task),
            bias=task.bias,
            orders=plan.orders,
            largest_pair=plan.largest_pair,
        )
        for algorithm in algorithms_named(self.algorithms):
            found = algorithm(problem, found)
        return content_of(without_saturation(found, task.weight, plan.orders, plan.largest_pair))

    def _curvature(self, task: GuidedWeight) -> Curvature:
        node = task.layer.node
        if self.curvatures is None:
            return curvature_of(task.hessian)
        if node not in self.curvatures:
            self.curvatures[node] = curvature_of(task.hessian)
        return self.curvatures[node]


def _without_curvatures(algorithms: tuple[str, ...]) -> GuidedRoundingWork:
    return GuidedRoundingWork(algorithms=algorithms)


def content_of(weight: QuantizedWeight) -> bytes:
    """Returns the integers, scales and channels of a weight as the content of an ``.npz`` file."""
    stream = BytesIO()
    np.savez(
        stream,
        integers=weight.integers,
        scale=weight.params.scale,
        zero_point=weight.params.zero_point,
        dead=np.asarray(weight.dead_channels, np.int64),
        widened=np.asarray(weight.widened_channels, np.int64),
        reduced=np.asarray(weight.reduced_channels, np.int64),
    )
    return stream.getvalue()


def with_content(nearest: QuantizedWeight, content: bytes) -> QuantizedWeight:
    """Returns the weight of ``content_of``, on the grid of ``nearest``."""
    with np.load(BytesIO(content), allow_pickle=False) as found:
        return QuantizedWeight(
            integers=found["integers"],
            params=replace(nearest.params, scale=found["scale"], zero_point=found["zero_point"]),
            dead_channels=tuple(found["dead"].tolist()),
            widened_channels=tuple(found["widened"].tolist()),
            reduced_channels=tuple(found["reduced"].tolist()),
        )
